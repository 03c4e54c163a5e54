"""The original's SQLite file, read: untouched, in one consistent look, in batches of rows.

Rows whose every value already is what its column holds come in bulk
(`as_table`); for the others `fit` says, one at a time, what becomes of them.
Both old layouts are read: snapshots keyed by ticker and timestamp only, with
an endpoint that may be missing; strikes without an endpoint, which is then the
one of the snapshot of the same ticker and timestamp.  Where nothing tells the
endpoint it is `unknown`.

SQLite types: https://www.sqlite.org/datatype3.html; read-only files with a
write-ahead log: https://www.sqlite.org/wal.html#readonly.
"""

import contextlib
import pathlib
import re
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

import pyarrow as pa

from data_pipeline import BridgeError
from data_pipeline.repository import arrow, schema
from data_pipeline.repository.foreign_file import SQLITE

# What stands in for a missing value of a column that must have one; a row
# that lacks any other such value cannot be moved.
DEFAULTS: dict[str, str | int] = {
    "endpoint": "unknown",
    "status": "pending",
    "attempts": 0,
    "created_at": "",
    "updated_at": "",
    "received_at": "",
}

_NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)


class OldFileError(BridgeError):
    """The file cannot be read as the original's; the text is one line for the operator."""


@dataclass(frozen=True)
class Column:
    """One of our columns: its Arrow type name, and whether it must have a value."""

    name: str
    kind: str
    required: bool


def columns(table: str) -> list[Column]:
    """Our columns of a table; keys and ids must have a value."""
    return [
        Column(name, definition.split()[0], "NOT NULL" in definition or name in schema.KEYS[table])
        for name, definition in schema.TABLES[table]
    ]


class OldFile:
    """The file, open for reading; one read transaction for all that is asked.

    tables: our table -> {column in lower case: SQLite's name of it}; others:
    names of tables that are not the original's.
    """

    def __init__(self, con: sqlite3.Connection):
        self._con = con
        con.text_factory = _text_or_bytes
        con.execute("BEGIN")
        self.tables: dict[str, dict[str, str]] = {}
        self.others: list[str] = []
        names = [str(name) for (name,) in con.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for name in names:
            if name.lower() in schema.TABLES:
                found = [column for (column,) in con.execute("SELECT name FROM pragma_table_info(?)", [name])]
                self.tables[name.lower()] = {column.lower(): column for column in found}
            elif not name.startswith("sqlite_"):
                self.others.append(name)
        self._sequence = "sqlite_sequence" in names

    def count(self, table: str) -> int:
        """How many rows a table has."""
        ((rows,),) = self._con.execute(f"SELECT count(*) FROM {table}")
        return int(rows)

    def last_id(self, table: str) -> int:
        """The highest id that the original ever gave out in a table; 0 for none."""
        found: list[int | None] = []
        if self._has(table, "id"):
            found += self._con.execute(f"SELECT max(id) FROM {table} WHERE typeof(id) = 'integer'").fetchone()
        if self._sequence:
            noted = "SELECT max(seq) FROM sqlite_sequence WHERE name = ? AND typeof(seq) = 'integer'"
            found += self._con.execute(noted, [table]).fetchone()
        return max((last or 0 for last in found), default=0)

    def _has(self, table: str, column: str) -> bool:
        return column in self.tables.get(table, ())

    def unknown_columns(self, table: str) -> list[str]:
        """Columns that the original never had."""
        return [name for lower, name in self.tables[table].items() if lower not in schema.columns(table)]

    def rows(self, table: str, most: int, most_bytes: int) -> Iterator[list[tuple[object, ...]]]:
        """All rows in lists of at most `most` rows and about `most_bytes` bytes of text.

        A row is its rowid (or None), then a value for each of our columns,
        then the unknown ones; a value is str, int, float, None, or bytes for a
        blob or text that is no UTF-8.
        """
        picked = [self._rowid(table), *(self._expression(table, name) for name in schema.columns(table))]
        picked += [f"t.{_name(name)}" for name in self.unknown_columns(table)]
        held: list[tuple[object, ...]] = []
        size = 0
        for row in self._con.execute(f"SELECT {', '.join(picked)} FROM {table} t"):
            held.append(row)
            size += sum(len(value) for value in row if isinstance(value, (str, bytes)))
            if len(held) == most or size >= most_bytes:
                yield held
                held, size = [], 0
        if held:
            yield held

    def _expression(self, table: str, column: str) -> str:
        """SQL for our column in a row `t` of the file."""
        if column == "endpoint" and table in ("gex_bridge_snapshots", "gex_bridge_strikes"):
            tried = [f"t.{_name(self.tables[table]['endpoint'])}"] if self._has(table, "endpoint") else []
            if table == "gex_bridge_strikes" and self._has("gex_bridge_snapshots", "endpoint"):
                # Of several snapshots at that moment the one written last.
                tried.append(
                    "(SELECT p.endpoint FROM gex_bridge_snapshots p WHERE p.ticker = t.ticker"
                    " AND p.timestamp = t.timestamp AND p.endpoint IS NOT NULL ORDER BY p.rowid DESC LIMIT 1)"
                )
            # coalesce wants two values at least.
            return f"coalesce({', '.join([*tried, *[_literal(DEFAULTS['endpoint'])] * 2])})"
        if self._has(table, column):
            return f"t.{_name(self.tables[table][column])}"
        required = next(c.required for c in columns(table) if c.name == column)
        return _literal(DEFAULTS.get(column)) if required else "NULL"

    def _rowid(self, table: str) -> str:
        ((without,),) = self._con.execute("SELECT wr FROM pragma_table_list(?)", [table])
        return "NULL" if without or self._has(table, "rowid") else "t.rowid"


@contextlib.contextmanager
def open_file(path: pathlib.Path, scratch: pathlib.Path) -> Iterator[OldFile]:
    """Yield the file at `path`, which stays as it is to the byte, like all beside it.

    scratch: folder for a copy, made only where the original was killed in the
    middle of a write and SQLite would have to repair the file to read it.
    Raises OldFileError.
    """
    _check_magic(path)
    uri = f"file:{quote(str(path.resolve()))}?mode=ro&" + ("immutable=1" if _log_is_merged(path) else "readonly_shm=1")
    with contextlib.ExitStack() as stack:
        try:
            try:
                old = OldFile(_connect(uri, stack))
            except sqlite3.Error:
                copy = _copy(path, scratch)
                if copy is None:
                    raise
                old = OldFile(_connect(f"file:{quote(str(copy))}?mode=rw", stack))
            if not old.tables:
                raise OldFileError(f"{path} holds none of the original's tables")
            yield old
        except sqlite3.Error as problem:
            raise OldFileError(f"{path}: {str(problem).splitlines()[0]}") from problem


def _connect(uri: str, stack: contextlib.ExitStack) -> sqlite3.Connection:
    return stack.enter_context(contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)))


def _check_magic(path: pathlib.Path) -> None:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to read a pipe would wait for whoever writes to it
            raise OldFileError(f"{path} is not a plain file")
        with open(path, "rb") as file:
            head = file.read(20)
    except OSError as problem:
        raise OldFileError(f"{path}: {problem.strerror}") from problem
    if not head.startswith(SQLITE):
        raise OldFileError(f"{path} is not an SQLite file")


def _log_is_merged(path: pathlib.Path) -> bool:
    """A file in WAL mode without a log is whole; SQLite would make a log to read it unless told so."""
    with open(path, "rb") as file:
        return file.read(20)[18:20] == b"\2\2" and not path.with_name(path.name + "-wal").exists()


def _copy(path: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path | None:
    """A copy that SQLite may repair, if there is a log or journal to repair it from."""
    beside = [s for s in ("-wal", "-journal") if path.with_name(path.name + s).exists()]
    if not beside:
        return None
    scratch.mkdir(parents=True, exist_ok=True)
    for suffix in ["", *beside]:
        shutil.copyfile(path.with_name(path.name + suffix), scratch / f"copy.db{suffix}")
    return scratch / "copy.db"


def as_table(table: str, rows: list[tuple[object, ...]]) -> pa.Table | None:
    """Rows of `OldFile.rows` without unknown columns as our table takes them; None where one wants a closer look."""
    wanted = columns(table)
    try:
        arrays = [pa.array(values, arrow.TYPES[c.kind]) for c, values in zip(wanted, list(zip(*rows))[1:])]
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None
    if any(c.required and array.null_count for c, array in zip(wanted, arrays)):
        return None
    return pa.Table.from_arrays(arrays, schema=arrow.table_schema(table))


def fit(table: str, row: dict[str, object]) -> tuple[dict[str, object] | None, list[tuple[str, object, str]]]:
    """A row as our table takes it, or None; and (column, value, problem) of all that does not fit.

    A value that cannot be what its column holds becomes null; where the
    column must have a value, its default, and without one the row cannot be
    moved.
    """
    fitted: dict[str, object] = {}
    problems: list[tuple[str, object, str]] = []
    lost = False
    for c in columns(table):
        value = row[c.name]
        good: object = None if value is None else _CONVERT[c.kind](value)
        if value is not None and good is None:
            problems.append((c.name, value, f"is not {_WANTED[c.kind]}"))
        if good is None and c.required:
            if value is None:
                problems.append((c.name, value, "has no value"))
            good = DEFAULTS.get(c.name) if c.name not in schema.KEYS[table] else None
            lost = lost or good is None
        fitted[c.name] = good
    unknown = [name for name, value in row.items() if name not in fitted and value is not None]
    problems += [(name, row[name], "is in a column that is not the original's") for name in unknown]
    return None if lost else fitted, problems


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return str(value)


def _real(value: object) -> float | None:
    if isinstance(value, (int, float)):
        return float(value)
    text = _text(value)
    number = float(text) if text is not None and _NUMBER.fullmatch(text) else None
    return number if number is not None and abs(number) != float("inf") else None


def _whole(value: object) -> int | None:
    text = _text(value)
    if isinstance(value, (str, bytes)) and text is not None and re.fullmatch(r"\s*[+-]?\d{1,19}\s*", text, re.ASCII):
        value = int(text)
    elif not isinstance(value, int):
        number = _real(value)
        # From 2**53 on a float no longer tells every whole number.
        value = int(number) if number is not None and abs(number) < 2**53 and number.is_integer() else None
    return value if value is not None and -(2**63) <= value < 2**63 else None


_CONVERT = {"VARCHAR": _text, "BIGINT": _whole, "DOUBLE": _real}
_WANTED = {"VARCHAR": "text", "BIGINT": "a whole number", "DOUBLE": "a number"}


def _text_or_bytes(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _literal(value: str | int | None) -> str:
    return "NULL" if value is None else str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'
