"""The DuckDB file: short sessions, the schema, ids.  The only place that opens it.

DuckDB shuts every other process out while one has the file open for writing,
so nobody keeps it open: `Database.session` opens it, waits for whoever has it
now, and closes it again.  Nothing else in a process that uses this module may
open the file, not even to read a byte: closing that descriptor would drop
DuckDB's lock (POSIX locks belong to the process).
"""

import contextlib
import os
import pathlib
import secrets
import threading
import time

import duckdb

from data_pipeline import BridgeError
from data_pipeline.files.atomic import ENDING, fsync_folder, make_folder
from data_pipeline.repository import rollback, schema
from data_pipeline.repository.foreign_file import refuse_foreign_file

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


class DatabaseBusy(BridgeError):
    """The file cannot be opened now (another process has it, or the disk says no), and the wait is over."""


class DatabaseDamaged(BridgeError):
    """DuckDB cannot read the file, or found it broken."""


@contextlib.contextmanager
def _turn(wait: float):
    if not _SESSION.acquire(timeout=wait):
        raise DatabaseBusy("another thread has the database open")
    try:
        yield
    finally:
        _SESSION.release()


class Database:
    """The file at `path`, opened for one session at a time."""

    def __init__(self, path: pathlib.Path):
        self.path = pathlib.Path(path)
        self._schema_seen = False

    @contextlib.contextmanager
    def session(self, wait: float = 0.0, checkpoint: bool = True):
        """Yield a DuckDB connection for writing; close it after.

        wait: seconds to try for while another process has the file.
        checkpoint: end with one; without it, what was committed is durable in
        the write-ahead log beside the file, and readers see it too.  Raises
        DatabaseBusy after the wait, DatabaseDamaged where DuckDB says so, and
        whatever DuckDB raises for a failed checkpoint: only a session that
        ends without an exception has everything in the file itself.
        """
        with _turn(wait):
            yield from self._hold(wait, checkpoint)

    def _hold(self, wait: float, checkpoint: bool):
        make_folder(self.path.parent)
        if not self.path.exists():
            self._create()
        rollback.undo(self.path)
        con = self._open(wait, WRITING)
        try:
            if not self._schema_seen:
                make_tables(con)
                self._schema_seen = True
            yield con
            if checkpoint:
                rollback.keep(con, self.path)
                con.execute("CHECKPOINT")
                rollback.drop(self.path)
        except BaseException as problem:
            self._schema_seen = False  # it may be another file, put in its place
            if isinstance(problem, duckdb.Error) and self._is_damage(str(problem), DAMAGE):
                raise DatabaseDamaged(str(problem)) from problem
            raise
        finally:
            con.close()

    @property
    def log_bytes(self) -> int:
        """Size of the write-ahead log."""
        try:
            return self.path.with_name(self.path.name + ".wal").stat().st_size
        except FileNotFoundError:
            return 0

    @contextlib.contextmanager
    def reading(self, wait: float = 0.0):
        """Yield a connection that only reads a file that is there, and makes nothing in it.

        As long as it is open no one can write.  Raises DatabaseBusy,
        DatabaseDamaged, and NotADatabase.
        """
        with _turn(wait):
            refuse_foreign_file(self.path)
            con = self._open(wait, "READ_ONLY")
            try:
                yield con
            finally:
                con.close()

    def _open(self, wait: float, options: str):
        until = time.monotonic() + wait
        while True:
            try:
                return connect(self.path, options)
            except duckdb.Error as problem:
                if self._is_damage(str(problem), DAMAGE_AT_OPENING):
                    raise DatabaseDamaged(str(problem)) from problem
                if time.monotonic() >= until:
                    raise DatabaseBusy(str(problem)) from problem
                time.sleep(0.02)

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
            raise DatabaseBusy(str(problem)) from problem
        finally:
            for ending in ("", ".wal"):
                temporary.with_name(temporary.name + ending).unlink(missing_ok=True)
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
        log, log_aside = (path.with_name(path.name + ".wal") for path in (self.path, aside))
        if log.exists():
            log.rename(log_aside)
        only_log = any(sign in str(damage) for sign in LOG_DAMAGE)
        if not only_log:
            self.path.rename(aside)
        fsync_folder(self.path.parent)
        return log_aside if only_log else aside


def connect(path: pathlib.Path, options: str):
    """A connection whose catalog is the file at `path`.  Raises duckdb.Error."""
    con = duckdb.connect(":memory:")
    try:
        for setting in SETTINGS:
            con.execute(setting)
        quoted = str(path).replace("'", "''")
        con.execute(f"ATTACH '{quoted}' AS {CATALOG} ({options})")
        con.execute(f"USE {CATALOG}")
    except BaseException:
        con.close()
        raise
    return con


def make_tables(con) -> None:
    """Make the tables and indexes that are missing."""
    for statement in schema.statements():
        con.execute(statement)


def last_id(con, table: str) -> int:
    """The highest id ever given out in `table`; 0 where none was."""
    # fetchall, here and below: after fetchone DuckDB calls the result unfinished and refuses `register`.
    ((value,),) = con.execute(
        f"SELECT greatest(coalesce((SELECT last_id FROM bridge_ids WHERE table_name = ?), 0),"
        f" coalesce((SELECT max(id) FROM {table}), 0))",
        [table],
    ).fetchall()
    return value


def queue_counts(con) -> dict[str, int]:
    """The links of the history queue by status; other programs may have words of their own, so at most 20."""
    return dict(con.execute("SELECT status, count(*) FROM gex_history_queue GROUP BY 1 ORDER BY 1 LIMIT 20").fetchall())


def note_last_id(con, table: str, value: int) -> None:
    """Remember that ids up to `value` are given out."""
    con.execute("INSERT OR REPLACE INTO bridge_ids VALUES (?, ?)", [table, value])


def position(con, journal: str) -> int:
    """The last record of that journal that is in the tables; 0 for none."""
    rows = con.execute("SELECT position FROM bridge_journal WHERE journal = ?", [journal]).fetchall()
    return rows[0][0] if rows else 0


def note_position(con, journal: str, value: int) -> None:
    """To be called in the transaction that applies the records up to `value`."""
    con.execute("INSERT OR REPLACE INTO bridge_journal VALUES (?, ?)", [journal, value])
