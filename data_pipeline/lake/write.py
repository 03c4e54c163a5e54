"""Rows into the lake: one partition merged as a whole, in pieces of bounded size."""

import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import dataset

from data_pipeline.lake import layout
from data_pipeline.lake.layout import KINDS, LakeDamaged, Partition
from data_pipeline.repository.arrow import table_schema

SORTED_BY = {"snapshots": ("timestamp",), "strikes": ("timestamp", "strike")}

# Strikes that are in memory at once (a row group): some 20 MB.
ROWS_AT_ONCE = 150_000


def arrow_schema(kind: str) -> pa.Schema:
    """The columns of the lake's files: the table's, in order, then `ts`."""
    return table_schema(KINDS[kind]).append(pa.field("ts", pa.timestamp("us", tz="UTC")))


def merge(
    root: pathlib.Path,
    partition: Partition,
    times: pa.Table,
    fresh: Callable[[str, int, int], pa.Table],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Put rows of one partition into the lake; rows of the same key that are there give way to them.

    times: `timestamp` and `strikes_count` of each new snapshot.  fresh(kind,
    start, end): the new rows of that kind with start <= timestamp < end, with
    at least the live table's columns; of equal keys the last row stays.  The
    strikes of a snapshot replace that snapshot's strikes in the lake as a
    whole; a snapshot without strikes leaves them.  progress: called with the
    number of strike rows written each time.

    The strikes' file is put in place before the snapshots': a reader that
    finds a snapshot finds its strikes.  A crash in between leaves both files
    whole, the snapshots older; the same merge again ends the matter.  Raises
    LakeNameError, LakeDamaged where the partition there cannot be read, and
    OSError; then the lake is as it was.
    """
    with layout.writing(root) as staging:
        old = {kind: _Old(kind, layout.file_of(root, kind, partition)) for kind in KINDS}
        day = spans(partition, times, old["snapshots"])
        rows = {}
        for kind in ("strikes", "snapshots"):
            pieces = (old[kind].with_fresh(fresh(kind, *span), *span) for span in day)
            rows[kind] = _write(staging / f"{kind}.parquet", kind, pieces, progress if kind == "strikes" else None)
        for kind in ("strikes", "snapshots"):
            if rows[kind]:
                layout.publish(root, staging / f"{kind}.parquet", old[kind].path)


class _Old:
    """The partition as it is."""

    def __init__(self, kind: str, path: pathlib.Path):
        self.path = path
        self._schema = arrow_schema(kind).remove(len(arrow_schema(kind)) - 1)
        try:
            self._data = dataset.dataset(path, format="parquet", partitioning=None) if path.exists() else None
        except (pa.ArrowInvalid, OSError) as problem:
            raise LakeDamaged(f"{path} is damaged ({problem}); move it away and try again") from problem

    def between(self, start: int, end: int, columns: list[str]) -> pa.Table:
        if self._data is None:
            return self._schema.empty_table().select(columns)
        at = dataset.field("timestamp")
        late = at > layout.MILLISECONDS
        inside = ~late & (at >= start) & (at < end) | late & (at >= start * 1000) & (at < end * 1000)
        try:
            return self._data.to_table(columns=columns, filter=inside)
        except (pa.ArrowInvalid, OSError) as problem:
            raise LakeDamaged(f"{self.path} is damaged ({problem}); move it away and try again") from problem

    def with_fresh(self, fresh: pa.Table, start: int, end: int) -> pa.Table:
        """The new rows after the old ones that no new row stands for."""
        fresh = fresh.select(self._schema.names).cast(self._schema)
        kept = self.between(start, end, self._schema.names)
        gone = pc.is_in(_second(kept["timestamp"]), pc.unique(_second(fresh["timestamp"])))
        return pa.concat_tables([kept.filter(pc.invert(gone)), fresh])


def spans(partition: Partition, times: pa.Table, old: _Old | None = None) -> list[tuple[int, int]]:
    """The day cut into spans of seconds, [from, to), of about ROWS_AT_ONCE strikes each."""
    first, end = partition.bounds
    times = times.select(["timestamp", "strikes_count"])
    if old:
        times = pa.concat_tables([times, old.between(first, end, times.column_names).cast(times.schema)])
    times = times.set_column(0, "timestamp", _second(times["timestamp"])).sort_by("timestamp")
    strikes = pc.max_element_wise(times["strikes_count"].fill_null(1), 1)
    piece = pc.divide(pc.cumulative_sum(strikes), ROWS_AT_ONCE)
    cuts = times.set_column(1, "piece", piece).group_by("piece").aggregate([("timestamp", "min")])["timestamp_min"]
    edges = [first] + sorted(set(cuts.to_pylist()) - {first})[1:] + [end]
    return list(zip(edges, edges[1:]))


def _write(path: pathlib.Path, kind: str, pieces: Iterator[pa.Table], progress: Callable[[int], None] | None) -> int:
    """Write each piece, sorted, as a row group, while the next is made; returns the rows."""
    made = arrow_schema(kind)
    plain = [f.name for f in made if pa.types.is_floating(f.type) and f.name != "strike" or f.name.endswith("_json")]
    rows = 0
    with (
        pq.ParquetWriter(
            path,
            made,
            compression="zstd",
            use_dictionary=[n for n in made.names if n not in plain],
            sorting_columns=[pq.SortingColumn(made.names.index(c)) for c in SORTED_BY[kind]],
        ) as writer,
        ThreadPoolExecutor(1, thread_name_prefix="lake-read") as ahead,
        open(path, "rb") as file,
    ):
        sync = functools.partial(os.fdatasync, file.fileno())
        following = ahead.submit(next, pieces, None)
        while (piece := following.result()) is not None:
            following = ahead.submit(next, pieces, None)
            table = _with_ts(_sorted(piece, SORTED_BY[kind]))
            if table.num_rows:
                writer.write_table(table, row_group_size=table.num_rows)
                # Bit by bit: flushed at once at the end, the disk would be busy with a whole day
                # while the server's requests wait for it.
                sync()
            rows += table.num_rows
            if progress:
                progress(table.num_rows)
    return rows


def _with_ts(table: pa.Table) -> pa.Table:
    at = table["timestamp"]
    micros = pc.if_else(pc.greater(at, layout.MILLISECONDS), pc.multiply(at, 1000), pc.multiply(_second(at), 1_000_000))
    return table.append_column("ts", micros.cast(pa.timestamp("us", tz="UTC")))


def _second(at: pa.ChunkedArray) -> pa.ChunkedArray:
    """The seconds of keys, which are not negative; above MILLISECONDS they are milliseconds."""
    return pc.if_else(pc.greater(at, layout.MILLISECONDS), pc.divide(at, 1000), at)


def _sorted(table: pa.Table, keys: tuple[str, ...]) -> pa.Table:
    """Sorted by the keys, which are not null; of rows with equal keys the last stays."""
    if table.num_rows < 2 or pc.all(_less(table, keys)).as_py():
        return table  # the usual case, and far cheaper to see than to sort
    numbered = table.append_column("row", pa.array(range(table.num_rows), pa.int64()))  # makes the sort stable
    table = table.take(pc.sort_indices(numbered, sort_keys=[(key, "ascending") for key in (*keys, "row")]))
    return table.filter(pa.concat_arrays([_less(table, keys), pa.array([True])]))


def _less(table: pa.Table, keys: tuple[str, ...]) -> pa.Array:
    """For each row but the last: whether its keys are less than the next one's."""
    less = None
    for key in reversed(keys):
        values = pa.concat_arrays(table[key].chunks)
        before, after = values.slice(0, len(values) - 1), values.slice(1)
        here, same = pc.less(before, after), pc.equal(before, after)
        if pa.types.is_floating(values.type):  # NaN is a key like any other, sorted behind all numbers
            odd, next_odd = pc.is_nan(before), pc.is_nan(after)
            here, same = pc.or_(here, pc.and_not(next_odd, odd)), pc.or_(same, pc.and_(odd, next_odd))
        less = here if less is None else pc.or_(here, pc.and_(same, less))
    return less
