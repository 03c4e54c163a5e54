"""A history file into the lake: a day of 23,400 snapshots in some seconds, in memory that does not grow with it.

The file is cut into pieces (`history_shapes`), two threads turn them into rows
(`history_records`), which are put aside in temporary files; then each day is merged
into the lake (`lake/write.py`).  It takes all of two cores and half a
gigabyte, so it is meant for a process of its own.
"""

import datetime
import hashlib
import json
import pathlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import BridgeError
from data_pipeline.config import DataFolder
from data_pipeline.files import atomic
from data_pipeline.lake import layout
from data_pipeline.lake.history_pieces import Pieces
from data_pipeline.lake.history_rows import NotAllJson, Parser
from data_pipeline.lake.layout import Partition
from data_pipeline.lake.write import merge
from data_pipeline.repository import schema

# Of the DuckDB of each thread; a piece takes far less.
MEMORY_LIMIT = "300MB"
THREADS = 2

# Bad records that are described; all are counted.
PROBLEMS_NAMED = 5


class ImportFailed(BridgeError):
    """Nothing of the file could be used; the text says why."""


@dataclass
class ImportResult:
    """What an import did.

    records: in the file; bad: of them, skipped; problems: what was wrong with
    the first few; snapshots: rows of the file in the lake (records of one
    second count once); strikes: likewise; days: partitions touched, ISO;
    known: the same file was imported before, and nothing was done.
    """

    file: str
    ticker: str
    endpoint: str
    records: int = 0
    bad: int = 0
    snapshots: int = 0
    strikes: int = 0
    days: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    known: bool = False
    seconds: float = 0.0

    @property
    def trouble(self) -> str:
        """One line about the bad records; empty where there are none."""
        if not self.bad:
            return ""
        more = "; …" if self.bad > len(self.problems) else ""
        return f"{self.bad} of {self.records} records skipped: {'; '.join(self.problems)}{more}"


def import_file(
    path: pathlib.Path,
    ticker: str,
    endpoint: str,
    data_dir: pathlib.Path,
    progress: Callable[[str, int, int], None] | None = None,
    again: bool = False,
) -> ImportResult:
    """Put the records of a history file into the lake below `data_dir`.

    progress: called with what is being done ("reading", "writing"), how much
    of it is done, and how much there is (bytes, strikes).  again: also when
    the same content was imported for this ticker and endpoint before.  Where
    the lake has the same key already, the file's record replaces it.

    Raises ImportFailed where no record is good, LakeNameError for a ticker or
    endpoint that cannot be a folder, LakeDamaged, OSError.  Interrupted at any point, it
    leaves whole partitions only, and the same call finishes the job.
    """
    begun = time.monotonic()
    path, root, ticker = pathlib.Path(path), DataFolder(pathlib.Path(data_dir)).lake, ticker.upper()
    result = ImportResult(path.name, ticker, endpoint)
    layout.encoded(ticker), layout.encoded(endpoint)
    told = progress or (lambda what, done, total: None)
    told("reading", 0, path.stat().st_size)
    note = _note(path, root, ticker, endpoint)
    if not again and _imported(note, root, ticker, endpoint):
        result.known = True
        return result
    with layout.scratch(root) as scratch:
        rows = _Rows(scratch, result)
        _read(path, rows, result, told)
        rows.close()
        _merge_days(root, rows, result, told)
    days = {"file": path.name, "days": result.days}
    atomic.replace(note, json.dumps(days).encode())
    result.seconds = time.monotonic() - begun
    return result


def _read(path: pathlib.Path, rows: "_Rows", result: ImportResult, told: Callable) -> None:
    """Put the rows of all records aside, in the order of the file."""
    size = path.stat().st_size
    pieces = Pieces(path)
    try:
        for records, strikes in _parsed(pieces):
            _count(records, result)
            rows.add("snapshots", records.filter(records["timestamp"].is_valid()))
            rows.add("strikes", strikes)
            told("reading", pieces.read, size)
    finally:
        pieces.close()
    if result.bad == result.records:
        raise ImportFailed(result.trouble or "no records in the file")


def _parsed(pieces: Pieces):
    """The rows of each piece, in order, made by THREADS threads some pieces ahead."""
    parser, first = Parser(MEMORY_LIMIT), 1
    with ThreadPoolExecutor(THREADS, thread_name_prefix="history-parse") as pool:
        source, waiting = iter(pieces), deque()
        while True:
            while len(waiting) <= THREADS and (piece := next(source, None)) is not None:
                waiting.append((piece, pool.submit(parser.rows, piece, first)))
                first += len(piece.records)
            if not waiting:
                return
            try:
                done = waiting[0][1].result()
            except NotAllJson:
                # Cut this piece and all after it again: where it ends is as doubtful as what is in it.
                pieces.redo([piece for piece, _ in waiting])
                first -= sum(len(piece.records) for piece, _ in waiting)
                source = iter(pieces)
                waiting.clear()
                continue
            waiting.popleft()
            yield done


def _count(records, result: ImportResult) -> None:
    """Count the records of a piece, and describe the first bad ones."""
    result.records += records.num_rows
    if not records["timestamp"].null_count:
        return
    result.bad += records["timestamp"].null_count
    for row in records.select(["n", "is_json", "is_object", "given", "timestamp"]).to_pylist():
        if row["timestamp"] is not None or len(result.problems) >= PROBLEMS_NAMED:
            continue
        if not row["is_json"]:
            what = "not JSON"
        elif not row["is_object"]:
            what = "not an object"
        elif row["given"] is None:
            what = "no timestamp"
        else:
            what = f"no usable timestamp ({ascii(row['given'][:40])})"
        result.problems.append(f"record {row['n']}: {what}")


class _Rows:
    """The rows of a file, put aside in Arrow files, found again by time.

    `times` has a row for each second: the last record (`n`) of it, and how
    many strikes this has.
    """

    def __init__(self, scratch: pathlib.Path, result: ImportResult):
        now = datetime.datetime.now(layout.UTC).strftime("%Y-%m-%d %H:%M:%S")
        self._same = {
            "ticker": result.ticker,
            "endpoint": result.endpoint,
            "payload_kind": "snapshot",
            "received_at": None,
            "max_change_json": "{}",
            "updated_at": now,
        }
        self._files = {kind: _Aside(scratch / f"{kind}.arrow") for kind in layout.KINDS}
        self._records, self._counts = [], []
        self.times = None

    def add(self, kind: str, table: pa.Table) -> None:
        self._files[kind].add(table)
        if kind == "snapshots":
            self._records.append(table.select(["n", "timestamp"]))
        else:
            distinct = table.group_by(["n", "strike"]).aggregate([])
            self._counts.append(distinct.group_by("n").aggregate([([], "count_all")]))

    def close(self) -> None:
        """No more rows come; `times` is known now."""
        for file in self._files.values():
            file.close()
        last = pa.concat_tables(self._records).group_by("timestamp").aggregate([("n", "max")])
        last = last.rename_columns(["timestamp", "n"])
        counts = pa.concat_tables(self._counts).rename_columns(["n", "strikes_count"])
        times = last.join(counts, "n")
        self.times = times.set_column(2, "strikes_count", times["strikes_count"].fill_null(0)).sort_by("timestamp")

    def between(self, kind: str, start: int, end: int) -> pa.Table:
        """The rows of [start, end) with the columns of the live table."""
        table = self._files[kind].between(start, end)
        table = table.filter(pc.is_in(table["n"], self.times["n"].combine_chunks()))
        if kind == "snapshots":
            table = table.join(self.times.select(["n", "strikes_count"]), "n")
        columns = schema.columns(layout.KINDS[kind])
        given = {name: pa.repeat(pa.scalar(value, pa.string()), table.num_rows) for name, value in self._same.items()}
        return pa.table({name: given[name] if name in given else table[name] for name in columns})


class _Aside:
    """Tables in an Arrow file, and the times that each spans."""

    def __init__(self, path: pathlib.Path):
        self._path, self._writer, self._spans = path, None, []

    def add(self, table: pa.Table) -> None:
        if self._writer is None:
            self._schema = table.schema
            self._writer = pa.ipc.new_file(self._path, table.schema)
        for batch in table.combine_chunks().to_batches():
            reach = pc.min_max(batch["timestamp"]).as_py()
            self._spans.append((reach["min"], reach["max"]))
            self._writer.write_batch(batch)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def between(self, start: int, end: int) -> pa.Table:
        with pa.OSFile(str(self._path)) as file:
            reader = pa.ipc.open_file(file)
            found = [reader.get_batch(i) for i, (low, high) in enumerate(self._spans) if low < end and high >= start]
        table = pa.Table.from_batches(found, self._schema)
        return table.filter((pc.field("timestamp") >= start) & (pc.field("timestamp") < end))


def _merge_days(root: pathlib.Path, rows: _Rows, result: ImportResult, told: Callable) -> None:
    result.snapshots, result.strikes = rows.times.num_rows, pc.sum(rows.times["strikes_count"]).as_py()
    written = 0

    def wrote(count: int) -> None:
        nonlocal written
        written += count
        told("writing", written, max(written, result.strikes))

    for day in pc.unique(pc.divide(rows.times["timestamp"], layout.DAY)).to_pylist():
        partition = Partition(result.ticker, result.endpoint, layout.day_of(day * layout.DAY))
        start, end = partition.bounds
        inside = (pc.field("timestamp") >= start) & (pc.field("timestamp") < end)
        merge(root, partition, rows.times.select(["timestamp", "strikes_count"]).filter(inside), rows.between, wrote)
        result.days.append(partition.day.isoformat())


def _note(path: pathlib.Path, root: pathlib.Path, ticker: str, endpoint: str) -> pathlib.Path:
    """The file that, once there, says that this content was imported for this ticker and endpoint."""
    with open(path, "rb") as file:
        content = hashlib.file_digest(file, "sha256")
    content.update(json.dumps([ticker, endpoint]).encode())
    return root / ".imported" / f"{content.hexdigest()}.json"


def _imported(note: pathlib.Path, root: pathlib.Path, ticker: str, endpoint: str) -> bool:
    """Whether it was, and its days are still in the lake."""
    try:
        days = [datetime.date.fromisoformat(day) for day in json.loads(note.read_bytes())["days"]]
    except (OSError, ValueError, KeyError):
        return False
    return all(layout.file_of(root, "snapshots", Partition(ticker, endpoint, day)).exists() for day in days)


def as_json(result: ImportResult) -> dict:
    """The result as JSON-ready names and values."""
    return {**asdict(result), "seconds": round(result.seconds, 3)}
