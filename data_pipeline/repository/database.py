"""The DuckDB file: short sessions, the schema, ids.  The only place that opens it.

DuckDB shuts every other process out while one has the file open for writing,
so nobody keeps it open: `Database.session` opens it, waits for whoever has it
now, and closes it again.  Nothing else in a process that uses this module may
open the file, not even to read a byte: closing that descriptor would drop
DuckDB's lock (POSIX locks belong to the process).
"""

import contextlib
import pathlib
import time

import duckdb

from data_pipeline.atomic import fsync_folder
from data_pipeline.repository import schema

# Readable by DuckDB 1.5 shells as well.
STORAGE_VERSION = "v1.5.0"

MAGIC_OFFSET, MAGIC = 8, b"DUCK"
SQLITE_MAGIC = b"SQLite format 3\0"


class DatabaseBusy(Exception):
    """Another process has the file open, and the wait for it is over."""


class NotADatabase(Exception):
    """The file at the database's path is not ours; the text says what to do."""


class DatabaseDamaged(Exception):
    """DuckDB cannot read the file, or found it broken."""


def refuse_foreign_file(path: pathlib.Path) -> None:
    """Look at the first bytes of the file, if there is one.

    Only before the first connection of the process (see above).  Raises
    NotADatabase.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        return
    if head == SQLITE_MAGIC:
        raise NotADatabase(f"{path} is an SQLite file; move it elsewhere and run: gex-bridge migrate FILE")
    if head[MAGIC_OFFSET : MAGIC_OFFSET + 4] != MAGIC:
        raise NotADatabase(f"{path} is not a DuckDB database; move it elsewhere and start again")


class Database:
    """The file at `path`, opened for one session at a time.

    Not safe for several threads at once: one loader thread owns it.
    """

    def __init__(self, path: pathlib.Path):
        self.path = pathlib.Path(path)
        self._schema_seen = False

    @contextlib.contextmanager
    def session(self, wait: float = 0.0, checkpoint: bool = True):
        """Yield a DuckDB connection for writing; checkpoint and close it after.

        wait: seconds to try for while another process has the file.  Raises
        DatabaseBusy after them, DatabaseDamaged where DuckDB says so, and
        whatever DuckDB raises for a failed checkpoint: only a session that
        ends without an exception has everything in the file itself.
        """
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
        finally:
            con.close()

    def _open(self, wait: float):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + wait
        while True:
            try:
                return duckdb.connect(str(self.path), config=self._config())
            except duckdb.IOException as problem:
                if "lock" not in str(problem):
                    raise DatabaseDamaged(str(problem)) from problem
                if time.monotonic() >= until:
                    raise DatabaseBusy(str(problem)) from problem
                time.sleep(0.02)
            except (duckdb.SerializationException, duckdb.InternalException, duckdb.FatalException) as problem:
                raise DatabaseDamaged(str(problem)) from problem

    def _config(self) -> dict:
        # The storage version may only be named for a file that is new.
        settings = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
        if not self.path.exists():
            settings["storage_compatibility_version"] = STORAGE_VERSION
        return settings


def last_id(con, table: str) -> int:
    """The highest id ever given out in `table`; 0 where none was."""
    # fetchall, here and below: after fetchone DuckDB calls the result unfinished and refuses `register`.
    ((value,),) = con.execute(
        f"SELECT greatest(coalesce((SELECT last_id FROM bridge_ids WHERE table_name = ?), 0),"
        f" coalesce((SELECT max(id) FROM {table}), 0))",
        [table],
    ).fetchall()
    return value


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
