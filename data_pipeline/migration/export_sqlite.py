"""The way back: an SQLite file with the original's exact schema, which the original could carry on with.

Written beside its final name, which it gets when it is whole.  It shows the
database as it was at one moment: first the file is copied, with its
write-ahead log, while nobody can write to it (about a second for ten million
strikes); the slow part, SQLite, is made from that copy while the server has
the database again.  The database itself is only read.
"""

import contextlib
import glob
import os
import pathlib
import secrets
import sqlite3
import subprocess

from tqdm import tqdm

from data_pipeline import BridgeError
from data_pipeline.files import atomic
from data_pipeline.repository import database, schema

ROWS_AT_ONCE = 4096

_TYPES = {"VARCHAR": "TEXT", "BIGINT": "INTEGER", "DOUBLE": "REAL"}

# How far the original's source indents each table's columns: SQLite keeps the text of a statement as it was given.
_INDENT = {"universal_webhooks": 28, "option_trades_events": 36}

# In the order in which the original makes them.
_ORDER = (
    "gex_bridge_snapshots",
    "gex_bridge_strikes",
    "idx_bridge_strikes_ts",
    "idx_bridge_snapshots_ts",
    "gex_history_queue",
    "idx_history_queue_status",
    "universal_webhooks",
    "option_trades_events",
)


class ExportError(BridgeError):
    """The file cannot be written; the text is one line for the operator."""


def statements() -> list[str]:
    """The original's own SQL, to the blank."""
    made = []
    for name in _ORDER:
        if name in schema.INDEXES:
            table, columns = schema.INDEXES[name]
            made.append(f"CREATE INDEX {name} ON {table}({', '.join(columns)})")
            continue
        indent = _INDENT.get(name, 20)
        lines = [_column(*column) for column in schema.TABLES[name]]
        if name not in schema.TABLES_WITH_IDS:
            lines.append(f"PRIMARY KEY ({', '.join(schema.KEYS[name])})")
        body = ",\n".join(" " * indent + line for line in lines)
        made.append(f"CREATE TABLE {name} (\n{body}\n{' ' * (indent - 4)})")
    return made


def _column(name: str, definition: str) -> str:
    if name == "id":
        return "id INTEGER PRIMARY KEY AUTOINCREMENT"
    kind, _, rest = definition.replace(schema.NOW, "CURRENT_TIMESTAMP").partition(" ")
    return f"{name} {_TYPES[kind]} {rest}".rstrip()


def export(source: pathlib.Path, target: pathlib.Path, wait: float = 60.0, show: bool | None = None) -> dict[str, int]:
    """Write the database at `source` to a new SQLite file at `target`; rows of each table.

    wait: seconds to try for the database while others have it.  show: as in
    `migrate.Migration`.  Raises ExportError, DatabaseBusy, NotADatabase,
    DatabaseDamaged, OSError, duckdb.Error, sqlite3.Error; then there is no
    file at `target`.
    """
    if target.exists() or target.is_symlink():
        raise ExportError(f"{target} exists already; it stays as it is")
    if not source.exists():
        raise ExportError(f"there is no database at {source}")
    target.parent.mkdir(parents=True, exist_ok=True)
    name = f".{target.name[:100]}.{secrets.token_hex(6)}"
    beside = target.with_name(name + atomic.ENDING)
    try:
        copy = beside.with_name(beside.name + ".duckdb")
        _copy_out(source, copy, wait)
        rows = _write(beside, copy, show)
        _fsync(beside)
        # A hard link, unlike a rename, never takes the place of a file that came meanwhile.
        os.link(beside, target)
        atomic.fsync_folder(target.parent)
        return rows
    except FileExistsError:
        raise ExportError(f"{target} exists already; it stays as it is") from None
    finally:
        for left in target.parent.glob(f"{glob.escape(name)}*"):
            left.unlink()


def _copy_out(source: pathlib.Path, copy: pathlib.Path, wait: float) -> None:
    with database.Database(source).reading(wait=wait):
        for ending in ("", ".wal"):
            if (path := source.with_name(source.name + ending)).exists():
                # By another process: this one may not open the file (see repository.database).
                command = ["cp", "--reflink=auto", "--", str(path), str(copy.with_name(copy.name + ending))]
                done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
                if done.returncode:
                    raise ExportError(f"the database could not be copied: {done.stderr.strip()}")


def _write(beside: pathlib.Path, copy: pathlib.Path, show: bool | None) -> dict[str, int]:
    rows: dict[str, int] = {}
    disable = None if show is None else not show
    with (
        contextlib.closing(database.connect(copy, database.WRITING)) as live,
        contextlib.closing(sqlite3.connect(beside, isolation_level=None)) as con,
    ):
        database.make_tables(live)  # an older database may lack one
        con.execute("PRAGMA journal_mode = OFF")
        con.execute("PRAGMA synchronous = OFF")
        con.execute("BEGIN")
        for statement in statements():
            con.execute(statement)
        for table in schema.TABLES:
            ((rows[table],),) = live.execute(f"SELECT count(*) FROM {table}").fetchall()
            insert = f"INSERT INTO {table} VALUES ({', '.join('?' * len(schema.columns(table)))})"
            with tqdm(total=rows[table], desc=f"writing {table}", unit=" rows", disable=disable) as bar:
                for batch in live.sql(f"FROM {table}").to_arrow_reader(ROWS_AT_ONCE):
                    con.executemany(insert, zip(*(column.to_pylist() for column in batch.columns)))
                    bar.update(len(batch))
        for table in schema.TABLES_WITH_IDS:
            con.execute("DELETE FROM sqlite_sequence WHERE name = ?", [table])
            if last := database.last_id(live, table):
                con.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", [table, last])
        con.execute("COMMIT")
        ((problem,),) = con.execute("PRAGMA quick_check(1)").fetchall()
    if problem != "ok":
        raise ExportError(f"the file was not written well: {problem}")
    return rows


def _fsync(path: pathlib.Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
