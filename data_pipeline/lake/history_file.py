"""A history file into the lake: a day of 23,400 snapshots in some seconds, in memory that does not grow with it.

`history_records` makes rows of the file, which are put aside in temporary files; then each day is merged into the
lake (`lake/write.py`).  It takes all of two cores and half a gigabyte, so it is meant for a process of its own.
"""

import datetime
import hashlib
import json
import pathlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline import BridgeError
from data_pipeline.config import DataFolder
from data_pipeline.files import atomic
from data_pipeline.lake import history_records, history_slow, layout
from data_pipeline.lake.history_records import NotTaken
from data_pipeline.lake.layout import Partition
from data_pipeline.lake.write import merge
from data_pipeline.repository import schema

# Records of one file, of which a number and a time each are in memory: two months of seconds.
RECORDS_LIMIT = 5_000_000

# What other programs pack: never JSON, whatever may be found inside.
_PACKED = {b"PK": "zip", b"BZ": "bzip2", b"\xfd7": "xz", b"7z": "7-Zip", b"\x28\xb5": "zstd"}

Told = Callable[[str, int, int], object]

# Bad records that are described; all are counted.
PROBLEMS_NAMED = 5


class ImportFailed(BridgeError):
    """Nothing of the file could be used; the text says why."""


@dataclass
class ImportResult:
    """What an import did.

    records: in the file; bad: of them, skipped; foreign: of them, imported
    though they name another ticker; problems: what was wrong with the first
    few; snapshots: rows of the file in the lake (records of one
    second count once); strikes: likewise; days: partitions touched, ISO;
    known: the same file was imported before, and nothing was done.
    """

    file: str
    ticker: str
    endpoint: str
    records: int = 0
    bad: int = 0
    foreign: int = 0
    foreign_ticker: str = ""
    snapshots: int = 0
    strikes: int = 0
    days: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    known: bool = False
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The result as JSON-ready names and values."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}

    @property
    def trouble(self) -> str:
        """One line about bad records and such of another ticker; empty where there are none."""
        said = []
        if self.bad:
            more = "; …" if self.bad > len(self.problems) else ""
            said.append(f"{self.bad} of {self.records} records skipped: {'; '.join(self.problems)}{more}")
        if self.foreign:
            name = ascii(self.foreign_ticker[:40])
            said.append(f"{self.foreign} of {self.records} records name another ticker, as {name}")
        return "; ".join(said)


def import_file(
    path: pathlib.Path,
    ticker: str,
    endpoint: str,
    data_dir: pathlib.Path,
    progress: Told | None = None,
    again: bool = False,
    max_bytes: int = 4 << 30,
) -> ImportResult:
    """Put the records of a history file into the lake below `data_dir`.

    progress: called with what is being done ("reading", "writing"), how much
    of it is done, and how much there is (bytes, strikes).  again: also when
    the same content was imported for this ticker and endpoint before.
    max_bytes: of the file when unpacked, and of its rows put aside.  Where
    the lake has the same key already, the file's record replaces it.

    Raises ImportFailed where no record is good or the file is too large,
    LakeNameError for a ticker or endpoint that cannot be a folder,
    LakeDamaged, OSError.  Interrupted at any point, it leaves whole partitions only, and the same call finishes the
    job.
    """
    begun = time.monotonic()
    path, root, ticker = pathlib.Path(path), DataFolder(pathlib.Path(data_dir)).lake, ticker.upper()
    result = ImportResult(path.name, ticker, endpoint)
    layout.encoded(ticker), layout.encoded(endpoint)
    told = progress or (lambda what, done, total: None)
    told("reading", 0, path.stat().st_size)
    _check(path, max_bytes)
    note = _note(path, root, ticker, endpoint)
    if not again and _imported(note, root, ticker, endpoint):
        result.known = True
        return result
    with layout.scratch(root) as scratch:
        rows = _read(path, scratch, result, max_bytes, told)
        _merge_days(root, rows, result, told)
    days = {"file": path.name, "days": result.days}
    atomic.replace(note, json.dumps(days).encode())
    result.seconds = time.monotonic() - begun
    return result


def _check(path: pathlib.Path, max_bytes: int) -> None:
    """Raises ImportFailed for what is no history file, and for one that is too large when it is unpacked."""
    with open(path, "rb") as file:
        packed = _PACKED.get(file.read(2))
    if packed:
        raise ImportFailed(f"a {packed} file; unpack it, and import what is inside")
    size = path.stat().st_size
    if size > max_bytes or history_slow.is_gzip(path) and history_slow.unpacked_more_than(path, max_bytes):
        raise ImportFailed(f"more than the {max_bytes} bytes that HISTORY_MAX_BYTES allows, unpacked")


def _read(path: pathlib.Path, scratch: pathlib.Path, result: ImportResult, max_bytes: int, told: Told) -> "_Rows":
    """The rows of all records, put aside; DuckDB's reader first, the exact one where that does not take the file."""
    for reader in (history_records.fast, history_records.slow):
        result.records = result.bad = result.foreign = 0
        result.problems.clear()
        rows = _Rows(scratch, result, max_bytes)
        try:
            for some in reader(path):
                _count(some.records, result)
                rows.add(some)
                told("reading", min(rows.size, path.stat().st_size), path.stat().st_size)
            if result.bad < result.records:
                told("reading", path.stat().st_size, path.stat().st_size)
                rows.finish()
                return rows
        except NotTaken:
            pass
        finally:
            rows.close()
    raise ImportFailed(result.trouble or "no records in the file")


def _count(records: pa.Table, result: ImportResult) -> None:
    """Count the records of a piece, and describe the first bad ones.  Raises ImportFailed for too many."""
    result.records += records.num_rows
    if result.records > RECORDS_LIMIT:
        raise ImportFailed(f"more than {RECORDS_LIMIT:,} records; split the file")
    foreign = records.filter(pc.and_(records["timestamp"].is_valid(), pc.not_equal(records["named"], result.ticker)))
    result.foreign += foreign.num_rows
    if foreign.num_rows and not result.foreign_ticker:
        result.foreign_ticker = foreign["named"][0].as_py()
    if not records["timestamp"].null_count:
        return
    result.bad += records["timestamp"].null_count
    for row in records.select(["n", "is_json", "is_object", "given", "timestamp"]).to_pylist():
        if row["timestamp"] is not None or len(result.problems) >= PROBLEMS_NAMED:
            continue
        if not row["is_json"]:
            what = f"not JSON, or longer than {history_slow.RECORD_LIMIT >> 20} MiB with its rows"
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

    def __init__(self, scratch: pathlib.Path, result: ImportResult, max_bytes: int):
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
        self._max_bytes = max_bytes
        self._records: list[pa.Table] = []
        self._counts: list[pa.Table] = []
        self.times: pa.Table = None

    @property
    def size(self) -> int:
        """Bytes put aside."""
        return sum(file.size for file in self._files.values())

    def add(self, some: history_records.Rows) -> None:
        """Raises ImportFailed where so much is aside that the disk may fill."""
        good = some.records.filter(some.records["timestamp"].is_valid())
        self._files["snapshots"].add(good)
        self._files["strikes"].add(some.strikes)
        if self.size > self._max_bytes:
            raise ImportFailed(f"its rows are more than the {self._max_bytes} bytes that HISTORY_MAX_BYTES allows")
        self._records.append(good.select(["n", "timestamp"]))
        self._counts.append(some.counts)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def finish(self) -> None:
        """No more rows come; `times` is known now."""
        self.close()
        last = pa.concat_tables(self._records).group_by("timestamp").aggregate([("n", "max")])
        last = last.rename_columns(["timestamp", "n"])
        times = last.join(pa.concat_tables(self._counts), "n")
        self.times = times.set_column(2, "strikes_count", times["strikes_count"].fill_null(0)).sort_by("timestamp")
        self._records, self._counts = [], []

    def between(self, kind: str, start: int, end: int) -> pa.Table:
        """The rows of [start, end) with the columns of the live table."""
        inside = (pc.field("timestamp") >= start) & (pc.field("timestamp") < end)
        # Of a second that many records name, only the last one's rows are taken into memory.
        table = self._files[kind].between(start, end, pc.unique(self.times.filter(inside)["n"]))
        if kind == "snapshots":
            table = table.join(self.times.select(["n", "strikes_count"]), "n")
        columns = schema.columns(layout.KINDS[kind])
        given = {name: pa.repeat(pa.scalar(value, pa.string()), table.num_rows) for name, value in self._same.items()}
        return pa.table({name: given[name] if name in given else table[name] for name in columns})


class _Aside:
    """Tables in an Arrow file, packed, and the times that each spans."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._writer: Any = None
        self._spans: list[tuple[int, int]] = []

    @property
    def size(self) -> int:
        return self._path.stat().st_size if self._writer is not None else 0

    def add(self, table: pa.Table) -> None:
        if self._writer is None:
            self._schema = table.schema
            # Packed: rows of zeros are sixteen times the text that they came in.
            packed = pa.ipc.IpcWriteOptions(compression="lz4")
            self._writer = pa.ipc.new_file(self._path, table.schema, options=packed)
        for batch in table.combine_chunks().to_batches():
            reach = pc.min_max(batch["timestamp"]).as_py()
            self._spans.append((reach["min"], reach["max"]))
            self._writer.write_batch(batch)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def between(self, start: int, end: int, numbers: pa.Array) -> pa.Table:
        """The rows of these records, all of which are of [start, end)."""
        found = []
        with pa.OSFile(str(self._path)) as file:
            reader = pa.ipc.open_file(file)
            for i, (low, high) in enumerate(self._spans):
                if low < end and high >= start:
                    batch = reader.get_batch(i)
                    found.append(batch.filter(pc.is_in(batch["n"], numbers)))
        return pa.Table.from_batches(found, self._schema)


def _merge_days(root: pathlib.Path, rows: _Rows, result: ImportResult, told: Told) -> None:
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
