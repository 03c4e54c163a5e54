"""The DuckDB file: short sessions, the schema, ids.  The only place that opens it.

DuckDB shuts every other process out while one has the file open for writing,
so nobody keeps it open: `Database.session` opens it, waits for whoever has it
now, and closes it again.  Nothing else in a process that uses this module may
open the file, not even to read a byte: closing that descriptor would drop
DuckDB's lock (POSIX locks belong to the process).
"""

import contextlib
import pathlib
import threading
import time

import duckdb

from data_pipeline.atomic import fsync_folder
from data_pipeline.repository import schema
from data_pipeline.repository.magic import refuse_foreign_file

# Readable by DuckDB 1.5 shells as well.
STORAGE_VERSION = "v1.5.0"

# Rows.  A checkpoint writes the whole last row group of a table again; with
# DuckDB's 122,880 rows and payloads of 13 KB each that would be 1.6 GB.
ROW_GROUP_SIZE = 4096

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
DAMAGE = ("not a valid DuckDB database", "orrupt", "hecksum", "Serialization Error", "INTERNAL Error", "FATAL Error")

# One session at a time in a process.  DuckDB's lock keeps other processes out, not a second thread of this one
# (POSIX locks belong to the process), and closing one of two descriptors would drop the lock of both.
_SESSION = threading.Lock()


class DatabaseBusy(Exception):
    """The file cannot be opened now (another process has it, or the disk says no), and the wait is over."""


class DatabaseDamaged(Exception):
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
        con = self._open(wait)
        try:
            if not self._schema_seen:
                for statement in schema.statements():
                    con.execute(statement)
                fsync_folder(self.path.parent)
                self._schema_seen = True
            yield con
            if checkpoint:
                con.execute("CHECKPOINT")
        except BaseException:
            self._schema_seen = False  # it may be another file, put in its place
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
            con = self._open(wait, f"ATTACH '{self._quoted_path}' AS {CATALOG} (READ_ONLY)")
            try:
                yield con
            finally:
                con.close()

    def _open(self, wait: float, attach: str | None = None):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + wait
        while True:
            con = duckdb.connect(":memory:")
            try:
                for setting in SETTINGS:
                    con.execute(setting)
                con.execute(attach or self._attach())
                con.execute(f"USE {CATALOG}")
                return con
            except duckdb.Error as problem:
                con.close()
                if self._is_damage(str(problem)):
                    raise DatabaseDamaged(str(problem)) from problem
                if time.monotonic() >= until:
                    raise DatabaseBusy(str(problem)) from problem
                time.sleep(0.02)

    def _is_damage(self, said: str) -> bool:
        """Whether DuckDB's message is about the file's content; the path and whoever holds it may have any name."""
        said = said.replace(str(self.path), "")
        return "Could not set lock" not in said and any(sign in said for sign in DAMAGE)

    def _attach(self) -> str:
        options = f"ROW_GROUP_SIZE {ROW_GROUP_SIZE}"
        # The storage version may only be named for a file that is new.
        if not self.path.exists():
            self._schema_seen = False
            options += f", STORAGE_VERSION '{STORAGE_VERSION}'"
        return f"ATTACH '{self._quoted_path}' AS {CATALOG} ({options})"

    @property
    def _quoted_path(self) -> str:
        return str(self.path).replace("'", "''")

    def move_aside(self) -> pathlib.Path:
        """Rename the file, and its write-ahead log, out of the way; returns the new name."""
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
        for ending in ("", ".wal"):
            source = self.path.with_name(self.path.name + ending)
            if source.exists():
                source.rename(aside.with_name(aside.name + ending))
        fsync_folder(self.path.parent)
        return aside


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
