"""The original's SQLite file, read: untouched, in one consistent look, in Arrow batches.

Rows whose every value already has its column's type come in bulk (`clean`).
The others come one at a time with what each value is (`loose`), and `fit`
says what becomes of them.  Both old layouts are read: snapshots keyed by
ticker and timestamp only, with an endpoint that may be missing; strikes
without an endpoint, which is then the one of the snapshot of the same ticker
and timestamp.  Where nothing tells the endpoint it is `unknown`.

SQLite types: https://www.sqlite.org/datatype3.html; read-only files with a
write-ahead log: https://www.sqlite.org/wal.html#readonly.
"""

import contextlib
import pathlib
import re
import shutil
from dataclasses import dataclass
from urllib.parse import quote

import pyarrow as pa
from adbc_driver_sqlite import dbapi

from data_pipeline import BridgeError
from data_pipeline.repository import arrow, schema
from data_pipeline.repository.foreign_file import SQLITE

SQLITE_TYPES = {"VARCHAR": "text", "BIGINT": "integer", "DOUBLE": "real"}

# What stands in for a missing value of a column that must have one; a row
# that lacks any other such value cannot be moved.
DEFAULTS = {"endpoint": "unknown", "status": "pending", "attempts": 0} | dict.fromkeys(
    ("created_at", "updated_at", "received_at"), ""
)

# Rows a batch that SQLite hands over: few where a row may be megabytes of JSON.
STRIKES_AT_ONCE, PAYLOADS_AT_ONCE = 122_880, 32

_NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)


class LegacyError(BridgeError):
    """The file cannot be read as the original's; the text is one line for the operator."""


class NotPlain(Exception):
    """The table has rows that want a closer look."""


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


def arrow_schema(table: str) -> pa.Schema:
    return pa.schema([(c.name, arrow.TYPES[c.kind]) for c in columns(table)])


class Legacy:
    """The file, open for reading from `open` on; one read transaction for all that is asked.

    tables: our table -> its name for SQLite and {column in lower case: SQLite's name of it};
    others: names of tables that are not the original's.
    """

    def __init__(self, con):
        self._con = con
        self.tables: dict[str, dict[str, str]] = {}
        self.others: list[str] = []
        names = [r["name"] for r in self.query("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for name in names:
            if name.lower() in schema.TABLES:
                found = self.query(f"SELECT name FROM pragma_table_info('{name.lower()}')")
                self.tables[name.lower()] = {r["name"].lower(): r["name"] for r in found}
            elif not name.startswith("sqlite_"):
                self.others.append(name)
        self._sequence = "sqlite_sequence" in names

    def query(self, sql: str) -> list[dict]:
        return [row for batch in self._batches(sql, PAYLOADS_AT_ONCE) for row in batch.to_pylist()]

    def _batches(self, sql: str, at_once: int):
        with self._con.cursor(adbc_stmt_kwargs={"adbc.sqlite.query.batch_rows": at_once}) as cursor:
            cursor.execute(sql)
            yield from cursor.fetch_record_batch()

    def count(self, table: str) -> int:
        return self.query(f"SELECT count(*) AS n FROM {table}")[0]["n"]

    def last_id(self, table: str) -> int:
        """The highest id that the original ever gave out in a table; 0 for none."""
        found = []
        if self._has(table, "id"):
            found += self.query(f"SELECT max(id) AS n FROM {table} WHERE typeof(id) = 'integer'")
        if self._sequence:
            noted = f"SELECT seq AS n FROM sqlite_sequence WHERE name = '{table}' AND typeof(seq) = 'integer'"
            found += self.query(noted)
        return max((row["n"] or 0 for row in found), default=0)

    def _has(self, table: str, column: str) -> bool:
        return column in self.tables.get(table, ())

    def unknown_columns(self, table: str) -> list[str]:
        """Columns that the original never had."""
        return [name for lower, name in self.tables[table].items() if lower not in schema.columns(table)]

    def plain(self, table: str):
        """Batches of all rows, with our columns and types; raises NotPlain at a row that is not as our table wants it.

        Faster than `clean`, which has SQLite look at every value's type: here
        the driver refuses a type that is not the column's, or converts it
        as `fit` would.
        """
        if self.unknown_columns(table):
            raise NotPlain(table)
        wanted = arrow_schema(table)
        required = [c.name for c in columns(table) if c.required]
        try:
            for batch in self._rows(table, "true"):
                batch.validate(full=True)
                if batch.schema != wanted or any(batch.column(name).null_count for name in required):
                    raise NotPlain(table)
                yield batch
        except (OSError, pa.ArrowInvalid) as problem:
            raise NotPlain(table) from problem

    def clean(self, table: str):
        """Batches of the rows that are as our table wants them, with its columns and types.

        Text may still be no UTF-8: see `split_by_utf8`.
        """
        return self._rows(table, self._is_clean(table))

    def _rows(self, table: str, condition: str):
        """The driver guesses types from what comes first: let that be a row with a value of each column's type."""
        cols = columns(table)
        picked = ", ".join(f"{self._expression(table, c.name)} AS {c.name}" for c in cols)
        rows = f"SELECT {picked} FROM {table} t WHERE {condition}"
        typed = " AND ".join(f"typeof({c.name}) = '{SQLITE_TYPES[c.kind]}'" for c in cols)
        ours = 0
        if not self.query(f"SELECT 1 AS n FROM (SELECT * FROM ({rows}) LIMIT 1) WHERE {typed}"):
            rows, ours = f"SELECT {', '.join(_typed(c.kind) + ' AS ' + c.name for c in cols)} UNION ALL {rows}", 1
        for batch in self._batches(rows, STRIKES_AT_ONCE if table == "gex_bridge_strikes" else PAYLOADS_AT_ONCE):
            yield batch.slice(ours)
            ours = 0

    def loose(self, table: str):
        """The other rows as (rowid or None, {column: value}): str, int, float, bytes or None.

        Columns that are not ours come too, under SQLite's name.  Text that is no UTF-8 comes as bytes.
        """
        sources = {c.name: self._expression(table, c.name) for c in columns(table)}
        sources |= {name: f"t.{_name(name)}" for name in self.unknown_columns(table)}
        first, picked = ["0 AS n"], [self._rowid(table)]
        for i, value in enumerate(sources.values()):
            first += [f"'x' AS t{i}", f"x'00' AS b{i}", f"0.0 AS r{i}"]
            picked += [f"typeof({value})", f"CAST(CASE WHEN typeof({value}) <> 'real' THEN {value} END AS BLOB)"]
            picked += [f"CASE WHEN typeof({value}) = 'real' THEN {value} END"]
        rows = f"SELECT {', '.join(picked)} FROM {table} t WHERE NOT ({self._is_clean(table)})"
        sql = f"SELECT {', '.join(first)} UNION ALL {rows}"
        for number, batch in enumerate(self._batches(sql, PAYLOADS_AT_ONCE)):
            for row in (batch if number else batch.slice(1)).to_pylist():
                yield (
                    row["n"],
                    {name: _value(row[f"t{i}"], row[f"b{i}"], row[f"r{i}"]) for i, name in enumerate(sources)},
                )

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
            return f"coalesce({', '.join(tried + [_literal(DEFAULTS['endpoint'])] * 2)})"
        if self._has(table, column):
            return f"t.{_name(self.tables[table][column])}"
        required = next(c.required for c in columns(table) if c.name == column)
        return _literal(DEFAULTS.get(column)) if required else "NULL"

    def _is_clean(self, table: str) -> str:
        """SQL that is true for a row that needs no second look, and never NULL."""
        tests = []
        for c in columns(table):
            allowed = f"'{SQLITE_TYPES[c.kind]}'" + ("" if c.required else ", 'null'")
            tests.append(f"typeof({self._expression(table, c.name)}) IN ({allowed})")
        tests += [f"t.{_name(name)} IS NULL" for name in self.unknown_columns(table)]
        return " AND ".join(tests)

    def _rowid(self, table: str) -> str:
        without = self.query(f"SELECT wr FROM pragma_table_list('{table}')")[0]["wr"]
        return "NULL" if without or self._has(table, "rowid") else "t.rowid"


@contextlib.contextmanager
def open_file(path: pathlib.Path, scratch: pathlib.Path):
    """Yield a `Legacy` of the file at `path`, which stays as it is to the byte, like all beside it.

    scratch: folder for a copy, made only where the original was killed in the
    middle of a write and SQLite would have to repair the file to read it.
    Raises LegacyError.
    """
    _check_magic(path)
    uri = f"file:{quote(str(path.resolve()))}?mode=ro&" + ("immutable=1" if _log_is_merged(path) else "readonly_shm=1")
    con = dbapi.connect(uri)
    try:
        try:
            legacy = Legacy(con)
        except dbapi.Error:
            copy = _copy(path, scratch)
            if copy is None:
                raise
            con.close()
            con = dbapi.connect(f"file:{quote(str(copy))}?mode=rw")
            legacy = Legacy(con)
        if not legacy.tables:
            raise LegacyError(f"{path} holds none of the original's tables")
        yield legacy
    except dbapi.Error as problem:
        raise LegacyError(f"{path}: {str(problem).splitlines()[0]}") from problem
    finally:
        con.close()


def fingerprint(path: pathlib.Path) -> str:
    """Tells whether the file, or a log beside it, was changed or replaced."""
    parts = [str(path.resolve())]
    for suffix in ("", "-wal", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            status = path.with_name(path.name + suffix).stat()
            parts += [suffix, status.st_ino, status.st_size, status.st_mtime_ns]
    return " ".join(map(str, parts))


def _check_magic(path: pathlib.Path) -> None:
    try:
        with open(path, "rb") as file:
            head = file.read(20)
    except OSError as problem:
        raise LegacyError(f"{path}: {problem.strerror}") from problem
    if not head.startswith(SQLITE):
        raise LegacyError(f"{path} is not an SQLite file")


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


def split_by_utf8(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[dict]]:
    """The rows of a clean batch whose text is UTF-8, and the others (that text as bytes)."""
    try:
        batch.validate(full=True)
        return batch, []
    except pa.ArrowInvalid:
        raw = pa.RecordBatch.from_arrays(
            [c.cast(pa.binary()) if pa.types.is_string(c.type) else c for c in batch.columns], names=batch.schema.names
        )
    text = {f.name for f in batch.schema if pa.types.is_string(f.type)}
    good, bad = [], []
    for row in raw.to_pylist():
        row = {k: _value("text", v, None) if k in text and v is not None else v for k, v in row.items()}
        (bad if any(isinstance(v, bytes) for v in row.values()) else good).append(row)
    return pa.RecordBatch.from_pylist(good, batch.schema), bad


def fit(table: str, row: dict) -> tuple[dict | None, list[tuple[str, object, str]]]:
    """A loose row as our table takes it, or None; and (column, value, problem) of all that does not fit.

    A value that cannot be what its column holds becomes null; where the
    column must have a value, its default, and without one the row cannot be
    moved.
    """
    fitted, problems, lost = {}, [], False
    for c in columns(table):
        value = row[c.name]
        good = None if value is None else _CONVERT[c.kind](value)
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


def _text(value) -> str | None:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return str(value)


def _real(value) -> float | None:
    if isinstance(value, (int, float)):
        return float(value)
    text = _text(value)
    number = float(text) if text is not None and _NUMBER.fullmatch(text) else None
    return number if number is not None and abs(number) != float("inf") else None


def _whole(value) -> int | None:
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


def _value(kind: str, raw: bytes | None, real: float | None):
    """What SQLite holds: raw is the value's text or bytes, real its number if that is its type."""
    if kind == "real":
        return real
    if kind == "integer":
        return int(raw)
    if kind == "text":
        raw = raw or b""
        return raw if _text(raw) is None else _text(raw)
    return raw


def _typed(kind: str) -> str:
    return {"VARCHAR": "''", "BIGINT": "0", "DOUBLE": "0.0"}[kind]


def _literal(value) -> str:
    return "NULL" if value is None else str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'
