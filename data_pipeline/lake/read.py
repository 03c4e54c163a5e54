"""Live tables and lake as one Polars LazyFrame, also while the server runs.

Everything is read when the frame is collected, not before.  Each file of the
lake is opened once and read through that descriptor: when it is replaced
meanwhile, the reader keeps what it began with.  Polars itself, given a path,
opens it several times and fails if the file changes in between.
"""

import datetime
import os
import pathlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from data_pipeline import BridgeError, config
from data_pipeline.lake.layout import KINDS, MILLISECONDS, SECOND, UTC, Partition, partitions
from data_pipeline.repository import schema

if TYPE_CHECKING:
    import polars as pl

# How long to wait for a database that the writer, or another shell, has open.
WAIT = 30.0

# What a time and a data folder may be given as; see `_scan`.
Moment = datetime.date | str | float | None
Folder = str | os.PathLike[str] | None

_KEY = ("ticker", "timestamp", "endpoint")


class LiveTablesBusy(BridgeError):
    """Another process held the database for the whole wait."""


def scan_snapshots(
    ticker: str | None = None, start: Moment = None, end: Moment = None, data_dir: Folder = None
) -> "pl.LazyFrame":
    """Every snapshot, as a Polars LazyFrame; see `_scan`."""
    return _scan("snapshots", ticker, start, end, data_dir)


def scan_strikes(
    ticker: str | None = None, start: Moment = None, end: Moment = None, data_dir: Folder = None
) -> "pl.LazyFrame":
    """Every strike of every snapshot, as a Polars LazyFrame; see `_scan`."""
    return _scan("strikes", ticker, start, end, data_dir)


def _scan(kind: str, ticker: str | None, start: Moment, end: Moment, data_dir: Folder) -> "pl.LazyFrame":
    """A LazyFrame with the table's columns and `ts` (Datetime, microseconds, UTC), in no fixed order.

    ticker: upper-cased; None for all.  start, end: start <= time < end, each a
    datetime (naive is UTC), a date (its first moment), ISO text, Unix seconds,
    or None.  data_dir: default is the setting DATA_DIR.  They choose the files
    that are opened; filters and columns asked of the frame reach the Parquet
    reader.  A key in both the live tables and the lake counts once, the live
    row; of a snapshot that has live strikes, only these are shown.
    Collecting raises LiveTablesBusy when the database stays locked for WAIT
    seconds.
    """
    import polars as pl
    from polars.io.plugins import register_io_source

    if data_dir is None:
        data_dir = config.load().data_dir
    folder = config.DataFolder(pathlib.Path(data_dir))
    wanted = _Wanted(ticker.upper() if ticker is not None else None, _seconds(start), _seconds(end))
    types = {"VARCHAR": pl.String(), "BIGINT": pl.Int64(), "DOUBLE": pl.Float64()}
    frame: dict[str, pl.DataType] = {name: types[declared.split()[0]] for name, declared in schema.TABLES[KINDS[kind]]}
    frame["ts"] = pl.Datetime("us", "UTC")

    def source(
        columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, _: int | None
    ) -> Iterator[pl.DataFrame]:
        columns = list(frame) if columns is None else columns
        for part in _parts(kind, wanted, folder, columns, predicate):
            if predicate is not None:
                part = part.filter(predicate)
            part = part.select(columns)
            found = (part if n_rows is None else part.head(n_rows)).collect()
            yield found
            if n_rows is not None:
                n_rows -= found.height
                if n_rows <= 0:
                    return

    return register_io_source(source, schema=frame)


class _Wanted(NamedTuple):
    """Which rows were asked for: a ticker or None, and seconds [start, end) or None."""

    ticker: str | None
    start: float | None
    end: float | None

    def sql(self) -> tuple[str, list[str | float | None]]:
        """The same as an SQL condition over a live table, with its parameters."""
        second = SECOND.replace("//", "/")  # as exact as what was asked for
        terms = [("ticker = ?", self.ticker), (f"{second} >= ?", self.start), (f"{second} < ?", self.end)]
        terms = [(text, value) for text, value in terms if value is not None]
        return " AND ".join(text for text, _ in terms) or "true", [value for _, value in terms]

    def touches(self, partition: Partition) -> bool:
        first, end = partition.bounds
        return (self.start is None or end > self.start) and (self.end is None or first < self.end)


def _second(of: "pl.Expr") -> "pl.Expr":
    """The second of a key, which may be in milliseconds."""
    import polars as pl

    return pl.when(of.is_between(-MILLISECONDS, MILLISECONDS)).then(of).otherwise(of // 1000)


def _parts(
    kind: str, wanted: _Wanted, folder: config.DataFolder, columns: list[str], predicate: "pl.Expr | None"
) -> "Iterator[pl.LazyFrame]":
    """LazyFrames: the live rows, then the rows of each file that no live row stands for."""
    import polars as pl

    frame_time = pl.Datetime("us", "UTC")
    needed = set(columns) | (set(predicate.meta.root_names()) if predicate is not None else set())
    # First the live rows, then the list of files: a day that is archived
    # meanwhile is in the lake before it leaves the tables, so it is seen once
    # or twice, and twice is sorted out here.
    live = _live(kind, wanted, folder.database, needed)
    keys = None
    if live is not None:
        keys = live.select("ticker", "endpoint", second=_second(pl.col("timestamp"))).unique()
        yield live.lazy()
    for partition, path in list(partitions(folder.lake, kind, wanted.ticker)):
        if not wanted.touches(partition):
            continue
        with open(path, "rb") as file:
            part = pl.scan_parquet(file)
            first, end = partition.bounds
            if wanted.start is not None and wanted.start > first:
                part = part.filter(pl.col("ts") >= pl.lit(_micros(wanted.start)).cast(frame_time))
            if wanted.end is not None and wanted.end < end:
                part = part.filter(pl.col("ts") < pl.lit(_micros(wanted.end)).cast(frame_time))
            if keys is not None:
                same = keys.filter(
                    pl.col("ticker") == partition.ticker,
                    pl.col("endpoint") == partition.endpoint,
                    pl.col("second").is_between(first, end, closed="left"),
                )
                if same.height:
                    here = [pl.col("ticker"), pl.col("endpoint"), _second(pl.col("timestamp"))]
                    part = part.join(same.lazy(), left_on=here, right_on=["ticker", "endpoint", "second"], how="anti")
            yield part


def _live(kind: str, wanted: _Wanted, path: pathlib.Path, needed: set[str]) -> "pl.DataFrame | None":
    """The live rows as a DataFrame with `ts`, by one short read-only session; None where there are none."""
    import duckdb
    import polars as pl

    if not path.exists():
        return None
    condition, parameters = wanted.sql()
    columns = [c for c in schema.columns(KINDS[kind]) if c in needed or c in _KEY]
    until = time.monotonic() + WAIT
    while True:
        try:
            with duckdb.connect(str(path), read_only=True) as con:
                found: pl.DataFrame = con.sql(
                    f"SELECT {', '.join(columns)} FROM {KINDS[kind]} WHERE {condition}", params=parameters
                ).pl()
            break
        except duckdb.CatalogException:
            return None  # the very first session has not made the tables yet
        except duckdb.IOException as problem:
            if "Could not set lock on file" not in str(problem).replace(str(path), ""):
                raise
            if time.monotonic() > until:
                raise LiveTablesBusy(f"{path} stayed locked for {WAIT:g} s") from problem
            time.sleep(0.02)
    if not found.height:
        return None
    at = pl.col("timestamp")
    in_seconds, is_time = (at.is_between(-limit, limit) for limit in (MILLISECONDS, MILLISECONDS * 1000))
    at = pl.when(in_seconds).then(at * 1_000_000).when(is_time).then(at * 1000)
    return found.with_columns(at.cast(pl.Datetime("us", "UTC")).alias("ts"))


def _micros(seconds: float) -> int:
    return int(max(min(seconds * 1_000_000, 2**62), -(2**62)))


def _seconds(moment: Moment) -> float | None:
    """A moment as Unix seconds; raises ValueError for text that is no ISO time."""
    if moment is None or isinstance(moment, (int, float)):
        return moment
    if isinstance(moment, str):
        moment = datetime.datetime.fromisoformat(moment)
    if not isinstance(moment, datetime.datetime):
        moment = datetime.datetime.combine(moment, datetime.time())
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp()
