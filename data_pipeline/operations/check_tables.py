"""What `gex-bridge check` asks the database: is every table as it should be, and every block readable?"""

import json
import pathlib
from collections.abc import Callable, Iterable

import duckdb

from data_pipeline.repository import database, schema

Say = Callable[[str | pathlib.Path, str], None]  # a table or a file, and what is to be said of it
Columns = list[tuple[str, str, bool]]

# table -> columns that hold JSON text
JSON_COLUMNS = {
    "gex_bridge_snapshots": ("max_change_json", "max_priors_json", "raw_payload_json"),
    "gex_bridge_strikes": ("history_json",),
    "universal_webhooks": ("payload_json",),
    "option_trades_events": ("raw_payload_json",),
}
DOUBTS = 1000  # values a column, of those DuckDB takes for no JSON, that are looked at one by one

KEY = "ticker, timestamp, endpoint"
STRIKES_OF_KEY = f"SELECT {KEY}, count(*) AS n FROM gex_bridge_strikes GROUP BY ALL"


def check(con: duckdb.DuckDBPyConnection, broken: Say, note: Say) -> dict[str, int]:
    """Read every row; tell what is wrong by `broken(table, problem)` or `note`; returns the rows of each table.

    Every block is read, and DuckDB verifies the checksum of each.  Raises
    duckdb.Error where it cannot go on.
    """
    con.execute("RESET threads")
    found = _columns(con)
    rows = {}
    for table in schema.TABLES:
        if table not in found:
            broken(table, "the table is missing")
            continue
        if not _is_ours(con, table, found[table], broken, note):
            continue
        rows[table] = _read(con, table)
        _check_keys(con, table, rows[table], broken)
        _check_json(con, table, broken)
    for index in schema.INDEXES.keys() - {
        name for (name,) in con.execute("SELECT index_name FROM duckdb_indexes()").fetchall()
    }:
        broken(schema.INDEXES[index][0], f"the index {index} is missing")
    if {"gex_bridge_snapshots", "gex_bridge_strikes"} <= rows.keys():
        _check_strikes(con, broken, note)
    _check_ids(con, rows, broken)
    return rows


def check_indexes(file: database.Database, tables: Iterable[str], wait: float, broken: Say, note: Say) -> None:
    """Compare the indexes of the tables with their rows.  Raises DatabaseBusy after `wait` seconds, DatabaseDamaged."""
    try:
        misfits = file.misfits(tables, wait)
    except OSError as problem:  # no hard links there, or no room for the log
        note(file.path, f"its indexes could not be compared with the tables: {problem}")
        return
    for table in misfits:
        broken(table, "an index lacks rows of it; it is built anew as soon as one of them is replaced")


def _columns(con: duckdb.DuckDBPyConnection) -> dict[str, Columns]:
    """table -> (column, type, may be null), in order."""
    found: dict[str, Columns] = {}
    for table, *column in con.execute(
        "SELECT table_name, column_name, data_type, is_nullable FROM duckdb_columns()"
        " WHERE NOT internal ORDER BY table_name, column_index"
    ).fetchall():
        found.setdefault(table, []).append(tuple(column))
    return found


def _is_ours(con: duckdb.DuckDBPyConnection, table: str, columns: Columns, broken: Say, note: Say) -> bool:
    keys = schema.KEYS[table]
    wanted = [
        (name, kind.split()[0], "NOT NULL" not in kind and name not in keys) for name, kind in schema.TABLES[table]
    ]
    theirs = [name for name, *_ in columns if name not in schema.columns(table)]
    if theirs:
        note(table, f"has columns that are not ours, which are left alone: {', '.join(map(ascii, theirs))}")
    columns = [column for column in columns if column[0] not in theirs]
    if columns != wanted:
        odd = [c[0] for c in columns if c not in wanted] + [w[0] for w in wanted if w not in columns]
        broken(table, f"its columns are not ours: {', '.join(map(ascii, dict.fromkeys(odd))) or 'another order'}")
        return False
    primary = con.execute(
        "SELECT constraint_column_names FROM duckdb_constraints()"
        " WHERE table_name = ? AND constraint_type = 'PRIMARY KEY'",
        [table],
    ).fetchall()
    if [tuple(names) for (names,) in primary] != [keys]:
        broken(table, f"its primary key is not ({', '.join(keys)})")
    return True


def _read(con: duckdb.DuckDBPyConnection, table: str) -> int:
    """The number of rows, having read every value of them."""
    rows: int
    ((rows, _),) = con.execute(
        f"SELECT count(*), bit_xor(hash({', '.join(schema.columns(table))})) FROM {table}"
    ).fetchall()
    return rows


def _check_keys(con: duckdb.DuckDBPyConnection, table: str, rows: int, broken: Say) -> None:
    """The index should see to it; a damaged one may not."""
    keys = ", ".join(schema.KEYS[table])
    ((different,),) = con.execute(f"SELECT count(*) FROM (SELECT DISTINCT {keys} FROM {table})").fetchall()
    if different != rows:
        broken(table, f"{rows - different} rows have the key of another one")


def _check_json(con: duckdb.DuckDBPyConnection, table: str, broken: Say) -> None:
    for column in JSON_COLUMNS.get(table, ()):
        # Lone surrogates, which Python reads and writes, are no JSON for DuckDB: doubts are looked at again.
        doubts = con.execute(
            f"SELECT {column} FROM {table} WHERE {column} IS NOT NULL AND NOT json_valid({column}) LIMIT {DOUBTS}"
        ).fetchall()
        bad = sum(not _is_json(text) for (text,) in doubts)
        if bad:
            broken(table, f"{column} is no JSON in {bad}{' or more' if len(doubts) == DOUBTS else ''} rows")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _check_strikes(con: duckdb.DuckDBPyConnection, broken: Say, note: Say) -> None:
    ((differ, orphans),) = con.execute(
        f"SELECT count(*) FILTER (WHERE s.strikes_count > 0 AND s.strikes_count <> coalesce(k.n, 0)),"
        f" count(*) FILTER (WHERE s.ticker IS NULL)"
        f" FROM gex_bridge_snapshots s FULL JOIN ({STRIKES_OF_KEY}) k USING ({KEY})"
    ).fetchall()
    if differ:
        broken("gex_bridge_strikes", f"{differ} snapshots have another number of strikes than their strikes_count")
    if orphans:
        note("gex_bridge_strikes", f"the strikes of {orphans} keys have no snapshot (imported, most likely)")


def _check_ids(con: duckdb.DuckDBPyConnection, rows: dict[str, int], broken: Say) -> None:
    for table in schema.TABLES_WITH_IDS:
        if table not in rows:
            continue
        try:
            last = database.last_id(con, table)
        except duckdb.CatalogException:
            broken("bridge_ids", "the table is missing")
            return
        ((highest,),) = con.execute(f"SELECT coalesce(max(id), 0) FROM {table}").fetchall()
        noted = con.execute("SELECT last_id FROM bridge_ids WHERE table_name = ?", [table]).fetchall()
        if highest and noted and noted[0][0] < highest:
            broken(
                table, f"ids go up to {highest}, but only {noted[0][0]} is noted as given out; {last + 1} comes next"
            )
