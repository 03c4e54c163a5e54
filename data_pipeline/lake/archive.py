"""Closed days of the live tables into the lake: the Parquet file first, checked, then the rows go.

Nothing is ever in neither place.  A day is merged into the lake; then, piece
by piece, one short session compares row by row what is to go with what the
lake has, and deletes it.  A crash at any point leaves rows in both, which the views and scans show
once, and the next run takes up.  Rows that changed in between stay, and the
day is merged again.
"""

import contextlib
import datetime
import pathlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import duckdb
import pyarrow as pa

from data_pipeline import BridgeError
from data_pipeline.config import DataFolder
from data_pipeline.lake import layout
from data_pipeline.lake.layout import KINDS, LakeDamaged, LakeNameError, Partition
from data_pipeline.lake.views import file, view_statements
from data_pipeline.lake.write import merge, spans
from data_pipeline.repository import schema
from data_pipeline.repository.database import Database

# Merges of one day, while its rows keep changing.
TRIES = 3

# Rows of a ticker's day, strikes included, below which it stays in the live tables: two files and a dozen
# sessions for each of a thousand such days cost minutes.
LEAST_ROWS = 1000


class ArchiveFailed(BridgeError):
    """The lake does not have what the tables have, or the views would not show it; the rows stay."""


@dataclass
class ArchiveResult:
    """days: moved ones, as partition folders; snapshots, strikes: rows deleted from the live tables.

    left: of days that are due, rows whose key is no time or whose
    ticker or endpoint cannot be a folder, and days that kept changing.
    failed: days whose rows stay in the live tables for something is wrong
    with the lake, and what.  waiting: days with fewer than LEAST_ROWS rows,
    which stay in the live tables until there are more, or the lake has that day.
    """

    days: list[str] = field(default_factory=list)
    snapshots: int = 0
    strikes: int = 0
    left: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    waiting: int = 0
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": round(self.seconds, 3)}


def archive(
    database: Database,
    data_dir: pathlib.Path,
    keep_days: int,
    wait: float = 60.0,
    today: datetime.date | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    least_rows: int | None = None,
) -> ArchiveResult:
    """Move the UTC days before `today` - `keep_days` from the live tables to the lake.

    keep_days: 0 moves all but today.  wait: seconds for the database each
    time.  progress: called with ("archiving", rows done, rows to do).  least_rows:
    a day with fewer waits; by default LEAST_ROWS.  Raises
    DatabaseBusy, OSError; harmless to run again after either.
    """
    begun = time.monotonic()
    root, result = DataFolder(data_dir).lake, ArchiveResult()
    before = (today or datetime.datetime.now(layout.UTC).date()) - datetime.timedelta(days=keep_days)
    with database.session(wait, checkpoint=False) as con:
        due, whole = _due(con, root, before, LEAST_ROWS if least_rows is None else least_rows, result)
    for partition in due:
        try:
            _ = partition.folder
        except LakeNameError as problem:
            result.left.append(str(problem))
            continue
        try:
            _move(database, root, partition, wait, result)
        except (ArchiveFailed, LakeDamaged, duckdb.Error) as problem:
            result.failed.append(f"{partition.folder}: {str(problem).splitlines()[0]}")
        done = result.snapshots + result.strikes
        if progress:
            progress("archiving", done, max(done, whole))
    result.seconds = time.monotonic() - begun
    return result


def _due(
    con: duckdb.DuckDBPyConnection, root: pathlib.Path, before: datetime.date, least_rows: int, result: ArchiveResult
) -> tuple[list[Partition], int]:
    end, _ = Partition("", "", before).bounds
    rows = con.execute(
        f"SELECT ticker, endpoint, second // {layout.DAY} AS day, count(*) FROM"
        f" (SELECT ticker, endpoint, {layout.SECOND} AS second FROM gex_bridge_snapshots"
        f" UNION ALL SELECT ticker, endpoint, {layout.SECOND} FROM gex_bridge_strikes)"
        " WHERE second >= 0 AND second < ? GROUP BY ALL ORDER BY day, ticker, endpoint",
        [end],
    ).fetchall()
    ((odd,),) = con.execute(
        f"SELECT count(*) FROM gex_bridge_snapshots WHERE {layout.SECOND} NOT BETWEEN 0 AND {layout.MILLISECONDS}"
    ).fetchall()
    if odd:
        result.left.append(f"{odd} snapshots whose key is not a time")
    days = [
        (Partition(ticker, endpoint, layout.day_of(day * layout.DAY)), count) for ticker, endpoint, day, count in rows
    ]
    # What a run that was ended has left of a day goes, however little it is.
    enough = [(day, count) for day, count in days if count >= least_rows or _is_there(root, day)]
    result.waiting = len(days) - len(enough)
    return [day for day, _ in enough], sum(count for _, count in enough)


def _is_there(root: pathlib.Path, partition: Partition) -> bool:
    """Whether the lake has that day; also true for one it cannot have, which is then named."""
    try:
        return any(layout.file_of(root, kind, partition).exists() for kind in KINDS)
    except LakeNameError:
        return True


def _move(database: Database, root: pathlib.Path, partition: Partition, wait: float, result: ArchiveResult) -> None:
    """Merge one day and delete its rows.  Raises ArchiveFailed, LakeDamaged, and what the database and the disk do."""
    for _ in range(TRIES):
        first, end = partition.bounds
        times = _rows(database, wait, "snapshots", partition, first, end, "timestamp, strikes_count")
        merge(root, partition, times, lambda kind, a, b: _rows(database, wait, kind, partition, a, b))
        unchanged = True
        for start, stop in spans(partition, times):
            with database.session(wait) as con:
                deleted = _delete(con, root, partition, start, stop)
            if deleted is None:
                unchanged = False
            else:
                result.snapshots += deleted["snapshots"]
                result.strikes += deleted["strikes"]
        if unchanged:
            result.days.append(partition.folder)
            return
    result.left.append(f"{partition.folder}: its rows kept changing")


def _rows(
    database: Database, wait: float, kind: str, partition: Partition, start: int, end: int, columns: str = "*"
) -> pa.Table:
    with database.session(wait, checkpoint=False) as con:
        return con.sql(
            f"SELECT {columns} FROM {KINDS[kind]} WHERE {_OF}",
            params=[partition.ticker, partition.endpoint, start, end],
        ).to_arrow_table()


# The rows of a span; numbered, for the condition may stand in a query twice.
_OF = f"ticker = $1 AND endpoint = $2 AND {layout.SECOND} >= $3 AND {layout.SECOND} < $4"


def _delete(
    con: duckdb.DuckDBPyConnection, root: pathlib.Path, partition: Partition, start: int, end: int
) -> dict[str, int] | None:
    """Delete the rows of a span if the lake has every one of them; None if one was added or changed meanwhile.

    Raises ArchiveFailed where the lake has other rows of the same snapshots as well.
    """
    _make_views(con, root)
    parameters = [partition.ticker, partition.endpoint, start, end]
    con.execute("BEGIN")
    try:
        for kind, table in KINDS.items():
            columns = ", ".join(schema.columns(table))
            live = f"SELECT {columns} FROM {table} WHERE {_OF}"
            ((ours,),) = con.execute(f"SELECT count(*) FROM ({live})", parameters).fetchall()
            if not ours:
                continue
            lake = f"SELECT {columns} FROM {file(layout.file_of(root, kind, partition))} WHERE {_OF}"
            if con.execute(f"{live} EXCEPT {lake} LIMIT 1", parameters).fetchall():
                con.execute("ROLLBACK")
                return None
            # Strikes of a snapshot go as a whole, so the lake has exactly these for the snapshots that are live.
            lake += f" AND timestamp IN (SELECT timestamp FROM {table} WHERE {_OF})"
            ((theirs,),) = con.execute(f"SELECT count(*) FROM ({lake})", parameters).fetchall()
            if theirs != ours:
                raise ArchiveFailed(f"{kind}: {ours} rows in the tables and {theirs} in the lake")
        deleted = {
            kind: con.execute(f"DELETE FROM {table} WHERE {_OF}", parameters).fetchall()[0][0]
            for kind, table in KINDS.items()
        }
        con.execute("COMMIT")
        return deleted
    except BaseException:
        with contextlib.suppress(duckdb.Error):  # a COMMIT that failed has left nothing to roll back
            con.execute("ROLLBACK")
        raise


def _make_views(con: duckdb.DuckDBPyConnection, root: pathlib.Path) -> None:
    """Before rows go, the views must know where they went.  Raises ArchiveFailed."""
    try:
        for statement in view_statements(root):
            con.execute(statement)
    except duckdb.Error as problem:  # a file of some day is broken, which whoever asks the views is told as well
        known = con.execute("SELECT count(*) FROM duckdb_views() WHERE sql LIKE '%read_parquet%'").fetchall()
        if known != [(len(KINDS),)]:
            raise ArchiveFailed(f"the views on the lake cannot be made: {str(problem).splitlines()[0]}") from problem
