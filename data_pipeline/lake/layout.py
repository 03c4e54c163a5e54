"""Where things are in the lake, and who may write: names, partitions, the lock.  Imports nothing heavy."""

import contextlib
import datetime
import fcntl
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote

from data_pipeline import BridgeError
from data_pipeline.files.atomic import fsync_folder, make_folder
from data_pipeline.files.names import LONGEST, percent_encoded
from data_pipeline.payloads.times import MILLISECONDS_FROM

# kind (a folder of the lake) -> table whose columns its files have
KINDS = {"snapshots": "gex_bridge_snapshots", "strikes": "gex_bridge_strikes"}

# One file of one name a partition: a replacement by rename is then atomic for every reader that lists folders.
FILE = "part-0.parquet"

# Every file of a kind as DuckDB's pattern, in which a folder that was moved away is none.
FILES = "/ticker=*/endpoint=*/date=[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]/" + FILE

# Hive's name for null.
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"

DAY = 86400

# Keys above this are milliseconds.
MILLISECONDS = int(MILLISECONDS_FROM)

# SQL: the second of a row's key, whatever BIGINT it is (abs() of the smallest one is an error).
SECOND = (
    f"CASE WHEN timestamp > {MILLISECONDS} OR timestamp < -{MILLISECONDS} THEN timestamp // 1000 ELSE timestamp END"
)
UTC = datetime.UTC


class LakeNameError(BridgeError, ValueError):
    """A ticker or endpoint that cannot be the name of a partition; the text says which and why."""


class LakeDamaged(BridgeError):
    """A file of the lake cannot be read; the text names it."""


class Partition(NamedTuple):
    """One UTC day of one ticker and endpoint."""

    ticker: str
    endpoint: str
    day: datetime.date

    @property
    def folder(self) -> str:
        """`ticker=…/endpoint=…/date=YYYY-MM-DD`; raises LakeNameError."""
        return f"ticker={encoded(self.ticker)}/endpoint={encoded(self.endpoint)}/date={self.day.isoformat()}"

    @property
    def bounds(self) -> tuple[int, int]:
        """First second of the day, and the first after it (Unix time)."""
        first = int(datetime.datetime.combine(self.day, datetime.time(), UTC).timestamp())
        return first, first + DAY


def encoded(value: str) -> str:
    """A partition's value as Hive writes it: odd characters as %XX (UTF-8).

    Raises LakeNameError for an empty text, one that is not valid Unicode, one
    too long for a folder's name, and the one that readers take for null.
    """
    name = percent_encoded(value)
    if not name or len(name) > LONGEST:
        raise LakeNameError(f"{ascii(value[:40])} is {'too long' if name else 'empty'} for a partition of the lake")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise LakeNameError(f"{ascii(value[:40])} is not valid Unicode")
    if name == _HIVE_NULL:
        raise LakeNameError(f"{name} means no value to readers of the lake")
    return name


def day_of(timestamp: int) -> datetime.date:
    """The UTC day of a Unix time in seconds."""
    return datetime.datetime.fromtimestamp(timestamp, UTC).date()


def file_of(root: pathlib.Path, kind: str, partition: Partition) -> pathlib.Path:
    """The partition's file, whether it exists or not."""
    return root / kind / partition.folder / FILE


def partitions(root: pathlib.Path, kind: str, ticker: str | None = None) -> Iterator[tuple[Partition, pathlib.Path]]:
    """Every partition of the lake that exists, sorted, with its file; of one ticker only, if it is named.

    A folder whose date is none is not of the lake: `date=2025-11-14.bak`, say, where somebody moved a day away.
    """
    for name, of_ticker in _values(root / kind, "ticker"):
        if ticker is not None and name != ticker:
            continue
        for endpoint, of_endpoint in _values(of_ticker, "endpoint"):
            for date, folder in _values(of_endpoint, "date"):
                day, file = _day(date), folder / FILE
                if day and file.is_file():
                    yield Partition(name, endpoint, day), file


def _day(name: str) -> datetime.date | None:
    """The date of YYYY-MM-DD, None for anything else."""
    try:
        day = datetime.date.fromisoformat(name)
    except ValueError:
        return None
    return day if day.isoformat() == name else None  # not 20251114


def _values(folder: pathlib.Path, key: str) -> list[tuple[str, pathlib.Path]]:
    """The values that folders `key=VALUE` have in their names, sorted, with these folders."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    start = key + "="
    return [(unquote(n[len(start) :], errors="replace"), folder / n) for n in names if n.startswith(start)]


@contextlib.contextmanager
def _locked(root: pathlib.Path) -> Iterator[None]:
    """Hold the lake's lock, one among all processes; others wait."""
    make_folder(root)
    fd = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def writing(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Hold the lake's lock; yields a new folder for files in the making.

    What a crash left half made is removed first: whoever holds the lock knows
    it has no owner.  The folder is outside `snapshots/` and `strikes/`, so no
    reader's pattern finds what is in it, and on the same file system, so a
    rename is enough.
    """
    with _locked(root):
        shutil.rmtree(root / ".staging", ignore_errors=True)
        staging = root / ".staging" / secrets.token_hex(6)
        staging.mkdir(parents=True)
        try:
            yield staging
        finally:
            shutil.rmtree(root / ".staging", ignore_errors=True)


@contextlib.contextmanager
def scratch(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder of one's own in the lake for as long as needed, without its lock; those of the dead are removed.

    Its owner holds a lock on the folder itself, which ends with the process.
    """
    with _locked(root):
        for folder in root.glob(".import-*"):
            with contextlib.suppress(BlockingIOError):  # its owner is at work
                held = _hold(folder)
                shutil.rmtree(folder, ignore_errors=True)
                os.close(held)
        made = root / f".import-{secrets.token_hex(6)}"
        made.mkdir()
        held = _hold(made)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(held)


def _hold(folder: pathlib.Path) -> int:
    """A descriptor with the lock on a folder, which ends when it is closed; raises BlockingIOError if it is taken."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise
    return fd


def publish(root: pathlib.Path, staged: pathlib.Path, target: pathlib.Path) -> None:
    """Move a finished file to its place, durably and atomically; `target` is below `root`."""
    with open(staged, "rb") as file:
        os.fsync(file.fileno())
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(staged, target)
    # The folders' own names must survive a power cut as well, also those that one who was killed has made.
    for folder in (root.parent, root, *(above for above in target.parents if root in above.parents)):
        fsync_folder(folder)
