"""The DuckDB file: short sessions, the schema, ids.  The only place that opens it.

DuckDB shuts every other process out while one has the file open for writing,
so nobody keeps it open: `Database.session` opens it, waits for whoever has it
now, and closes it again.  Nothing else in a process that uses this module may
open the file, not even to read a byte: closing that descriptor would drop
DuckDB's lock (POSIX locks belong to the process).
"""

import contextlib
import logging
import os
import pathlib
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator

import duckdb

from data_pipeline import BridgeError
from data_pipeline.files.atomic import ENDING, fsync_folder, make_folder
from data_pipeline.repository import indexes, rollback, schema
from data_pipeline.repository.foreign_file import refuse_foreign_file

log = logging.getLogger("webhook")

# Readable by DuckDB 1.5 shells as well.
STORAGE_VERSION = "v1.5.0"

# Rows.  A checkpoint writes the whole last row group of a table again; with
# DuckDB's 122,880 rows and payloads of 13 KB each that would be 1.6 GB.
ROW_GROUP_SIZE = 4096

# Options for ATTACH.  The storage version may only be named for a file that is new.
WRITING = f"ROW_GROUP_SIZE {ROW_GROUP_SIZE}"
CREATING = f"{WRITING}, STORAGE_VERSION '{STORAGE_VERSION}'"

# The catalog's name: the one it has for whoever opens the file by its path.
CATALOG = "gex_history"

SETTINGS = (
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET threads = 1",  # as fast for what the loader does, and leaves the other cores alone
    "SET wal_autocheckpoint = '1TB'",  # checkpoints are made where a failure of theirs is seen
    "SET preserve_insertion_order = false",
    "PRAGMA disable_checkpoint_on_shutdown",
)


# What DuckDB says of a file that is broken, and not only out of reach.
LOG_DAMAGE = ("Corrupt WAL file", "WAL does not match database file")  # of the write-ahead log alone
DAMAGE = (
    "not a valid DuckDB database",
    "orrupt",
    "hecksum",
    "Serialization Error",
    "Could not read enough bytes",
    *LOG_DAMAGE,
)
# Only while the file is opened: later a payload may be the reason, and the next file would fare no better.
DAMAGE_AT_OPENING = (*DAMAGE, "INTERNAL Error")

# One session at a time in a process.  DuckDB's lock keeps other processes out, not a second thread of this one
# (POSIX locks belong to the process), and closing one of two descriptors would drop the lock of both.
_SESSION = threading.Lock()
# Why the file could not be opened when that was last tried in this process; who does not get his turn is told so too.
_refusal = ""


class DatabaseBusy(BridgeError):
    """The file cannot be opened now (another process has it, or the disk says no), and the wait is over."""


class IndexesRebuilt(DatabaseBusy):
    """An index did not fit its table, so nothing of the session was committed; it does now: try again."""


class DatabaseDamaged(BridgeError):
    """DuckDB cannot read the file, or found it broken; only_log: nothing but its write-ahead log is."""

    def __init__(self, problem: duckdb.Error):
        super().__init__(first_line(problem))
        self.only_log = any(sign in str(problem) for sign in LOG_DAMAGE)


def first_line(problem: object, most: int = 300) -> str:
    """The first line of an exception's text, cut to `most` characters; DuckDB adds rows, hints and stacks below it."""
    lines = str(problem).split("\n")
    return next((line[:most] for line in lines if line.strip()), type(problem).__name__)


class Database:
    """The file at `path`, opened for one session at a time."""

    def __init__(self, path: pathlib.Path):
        self.path = pathlib.Path(path)
        self._schema_seen = False
        self._rebuilt = False

    @contextlib.contextmanager
    def session(self, wait: float = 0.0, checkpoint: bool = True) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a DuckDB connection for writing; close it after.

        wait: seconds to try for while another process has the file.
        checkpoint: end with one; without it, what was committed is durable in
        the write-ahead log beside the file, and readers see it too.  Raises
        DatabaseBusy after the wait (IndexesRebuilt where an index had to be
        built anew), DatabaseDamaged where DuckDB says so, and whatever DuckDB
        raises for a failed checkpoint: only a session that ends without an
        exception has everything in the file itself.
        """
        make_folder(self.path.parent)
        with self._opened(wait, WRITING) as con:
            try:
                if not self._schema_seen:
                    make_tables(con)
                    self._schema_seen = True
                yield con
                if checkpoint:
                    self._checkpoint(con)
                self._rebuilt = False
            except BaseException as problem:
                self._schema_seen = False  # it may be another file, put in its place
                if isinstance(problem, duckdb.Error) and self._is_damage(str(problem), DAMAGE):
                    raise DatabaseDamaged(problem) from problem
                if not indexes.is_fault(problem):
                    raise
                con.close()
                self._rebuild_indexes()
                raise IndexesRebuilt(f"{self.path}: {first_line(problem)}") from problem

    def _checkpoint(self, con: duckdb.DuckDBPyConnection) -> None:
        rollback.keep(con, self.path)
        con.execute("CHECKPOINT")
        rollback.drop(self.path)

    def _rebuild_indexes(self) -> None:
        """Of the secondary indexes first; where that did not help, of the primary keys as well."""
        with contextlib.closing(connect(self.path, WRITING)) as con:
            # What does not fit in is sorted on disk; by default a full day's strikes take 1.6 GB.
            con.execute("SET memory_limit = '400MB'")
            con.execute(f"SET temp_directory = {_quoted(self.path.with_name(self.path.name + '.sort'))}")
            (indexes.rebuild_tables if self._rebuilt else indexes.rebuild)(con)
            self._checkpoint(con)
        what = "the tables with their keys are written" if self._rebuilt else "all indexes are built"
        log.warning(
            "an index of %s did not fit its table (another program had the file open); %s anew", self.path, what
        )
        self._rebuilt = True

    @property
    def log_bytes(self) -> int:
        """Size of the write-ahead log."""
        try:
            return _log(self.path).stat().st_size
        except FileNotFoundError:
            return 0

    @contextlib.contextmanager
    def reading(self, wait: float = 0.0) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a connection that only reads a file that is there, and makes nothing in it.

        As long as it is open no one can write.  Raises DatabaseBusy,
        DatabaseDamaged, and NotADatabase.
        """
        with self._opened(wait, "READ_ONLY") as con:
            yield con

    @contextlib.contextmanager
    def _opened(self, wait: float, options: str) -> Iterator[duckdb.DuckDBPyConnection]:
        """The file's turn in this process is held while it is open, not while another process is waited for."""
        global _refusal
        until = time.monotonic() + wait
        while True:
            with _turn(until):
                try:
                    con = self._open(options)
                except duckdb.Error as problem:
                    _refusal = first_line(problem)
                    if self._is_damage(str(problem), DAMAGE_AT_OPENING):
                        raise DatabaseDamaged(problem) from problem
                    if time.monotonic() >= until:
                        raise DatabaseBusy(_refusal) from problem
                else:
                    _refusal = ""
                    with contextlib.closing(con):
                        yield con
                    return
            time.sleep(0.02)

    def _open(self, options: str) -> duckdb.DuckDBPyConnection:
        if options != WRITING:
            refuse_foreign_file(self.path)
            with contextlib.suppress(OSError):  # who may only read cannot undo it, and is told by DuckDB what is wrong
                rollback.undo(self.path)
        else:
            if not self.path.exists():
                self._create()
            rollback.undo(self.path)
        return connect(self.path, options)

    def misfits(self, tables: Iterable[str], wait: float = 0.0) -> list[str]:
        """Those of the tables of which some row is not in every index.

        No query can tell: DuckDB only looks a row up in an index of several
        columns to delete it.  So that is done, for all of them, through a
        second name of the file, whose log is thrown away; nothing is written
        to the file.  While it lasts nobody else can open it: 9 s for 21 million
        rows.  Raises DatabaseBusy, DatabaseDamaged, OSError where the file
        system has no second names.
        """
        found = []
        for table in tables:
            with self._on_second_name(wait) as con:
                if not indexes.fits(con, table):
                    found.append(table)
        return found

    @contextlib.contextmanager
    def _on_second_name(self, wait: float) -> Iterator[duckdb.DuckDBPyConnection]:
        second = Database(self.path.with_name(f".{self.path.name}.{secrets.token_hex(6)}{ENDING}"))
        until = time.monotonic() + wait
        os.link(self.path, second.path)
        try:
            while True:
                before = self._state()
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(_log(self.path), _log(second.path))
                with second._opened(max(0.0, until - time.monotonic()), WRITING) as con:
                    if self._state() == before:  # nobody came in between copying the log and opening the file
                        yield con
                        return
                _log(second.path).unlink(missing_ok=True)
        finally:
            second.path.unlink(missing_ok=True)
            _log(second.path).unlink(missing_ok=True)

    def _state(self) -> tuple[object, ...]:
        log_file = _log(self.path)
        stats = [path.stat() for path in (self.path, log_file) if path.exists()]
        return tuple((found.st_ino, found.st_size, found.st_mtime_ns) for found in stats)

    def _is_damage(self, said: str, signs: tuple[str, ...]) -> bool:
        """Whether DuckDB's message is about the file's content; the path and whoever holds it may have any name."""
        said = said.replace(str(self.path), "")
        return "Could not set lock" not in said and any(sign in said for sign in signs)

    def _create(self) -> None:
        """Put a new file, whole and with all its tables, at the path where none is.

        DuckDB begins one in several steps; cut off between them it could never be opened again.
        """
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(6)}{ENDING}")
        try:
            with contextlib.closing(connect(temporary, CREATING)) as con:
                make_tables(con)
                con.execute("CHECKPOINT")
            self._give_name(temporary)
        except duckdb.Error as problem:
            raise DatabaseBusy(first_line(problem)) from problem
        finally:
            for path in (temporary, _log(temporary)):
                path.unlink(missing_ok=True)
        fsync_folder(self.path.parent)

    def _give_name(self, temporary: pathlib.Path) -> None:
        """Not by a rename, where it can be helped: whoever was faster keeps the name."""
        try:
            os.link(temporary, self.path)
        except OSError:  # it is there, or the file system has no hard links
            if not self.path.exists():
                os.rename(temporary, self.path)

    def move_aside(self, damage: DatabaseDamaged) -> pathlib.Path:
        """Rename what is damaged out of the way; returns its new name.

        That is the file with its write-ahead log, or the log alone where the
        damage is there: what it held since the last checkpoint, the journal
        holds as well.
        """
        stamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
        aside = self.path.with_name(f"{self.path.name}.damaged-{stamp}")
        if _log(self.path).exists():
            _log(self.path).rename(_log(aside))
        if not damage.only_log:
            self.path.rename(aside)
        fsync_folder(self.path.parent)
        return _log(aside) if damage.only_log else aside


@contextlib.contextmanager
def _turn(until: float) -> Iterator[None]:
    if not _SESSION.acquire(timeout=max(0.0, until - time.monotonic())):
        raise DatabaseBusy(_refusal or "another thread of this process has the database open")
    try:
        yield
    finally:
        _SESSION.release()


def _log(path: pathlib.Path) -> pathlib.Path:
    """Where DuckDB keeps the write-ahead log of a file."""
    return path.with_name(path.name + ".wal")


def _quoted(path: pathlib.Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def connect(path: pathlib.Path, options: str) -> duckdb.DuckDBPyConnection:
    """A connection whose catalog is the file at `path`.  Raises duckdb.Error."""
    con = duckdb.connect(":memory:")
    try:
        for setting in SETTINGS:
            con.execute(setting)
        con.execute(f"ATTACH {_quoted(path)} AS {CATALOG} ({options})")
        con.execute(f"USE {CATALOG}")
    except BaseException:
        con.close()
        raise
    return con


def make_tables(con: duckdb.DuckDBPyConnection) -> None:
    """Make the tables and indexes that are missing."""
    for statement in schema.statements():
        con.execute(statement)


def last_id(con: duckdb.DuckDBPyConnection, table: str) -> int:
    """The highest id ever given out in `table`; 0 where none was."""
    # fetchall, here and below: after fetchone DuckDB calls the result unfinished and refuses `register`.
    value: int
    ((value,),) = con.execute(
        f"SELECT greatest(coalesce((SELECT last_id FROM bridge_ids WHERE table_name = ?), 0),"
        f" coalesce((SELECT max(id) FROM {table}), 0))",
        [table],
    ).fetchall()
    return value


def queue_counts(con: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """The links of the history queue by status; other programs may have words of their own, so at most 20."""
    return dict(con.execute("SELECT status, count(*) FROM gex_history_queue GROUP BY 1 ORDER BY 1 LIMIT 20").fetchall())


def note_last_id(con: duckdb.DuckDBPyConnection, table: str, value: int) -> None:
    """Remember that ids up to `value` are given out."""
    con.execute("INSERT OR REPLACE INTO bridge_ids (table_name, last_id) VALUES (?, ?)", [table, value])


def position(con: duckdb.DuckDBPyConnection, journal: str) -> int:
    """The last record of that journal that is in the tables; 0 for none."""
    rows: list[tuple[int]] = con.execute("SELECT position FROM bridge_journal WHERE journal = ?", [journal]).fetchall()
    return rows[0][0] if rows else 0


def note_position(con: duckdb.DuckDBPyConnection, journal: str, value: int) -> None:
    """To be called in the transaction that applies the records up to `value`."""
    con.execute("INSERT OR REPLACE INTO bridge_journal (journal, position) VALUES (?, ?)", [journal, value])
