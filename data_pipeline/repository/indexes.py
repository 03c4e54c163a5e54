"""Indexes that no longer fit their tables: found, and built anew.

Clients of DuckDB 1.5 open a file for writing unless they are told otherwise.
When they close it they take the write-ahead log into the file, and its rows
into no index but the primary keys.  Who deletes or replaces such a row later
ends with a FATAL error at the commit, again after each restart.  (DuckDB 2.0
keeps the indexes; so does 1.5 where no log was left, but to end each session
with a checkpoint would write eight times as much.)
"""

import duckdb

from data_pipeline.repository import schema

_ROWS = 1 << 20  # deleted at once


def is_fault(problem: BaseException) -> bool:
    """Whether DuckDB says that an index does not fit its table."""
    return isinstance(problem, duckdb.FatalException) and "index" in str(problem)


def _secondary(con: duckdb.DuckDBPyConnection, table: str = "%") -> list[tuple[str, str, str]]:
    """(schema, name, SQL) of the indexes that are no constraint's, other programs' own among them."""
    return con.execute(
        "SELECT schema_name, index_name, sql FROM duckdb_indexes()"
        " WHERE database_name = current_database() AND sql IS NOT NULL AND table_name LIKE ?",
        [table],
    ).fetchall()


def rebuild(con: duckdb.DuckDBPyConnection) -> None:
    """Build every secondary index anew, in one transaction.  Raises duckdb.Error.

    21 million strikes take 7 s.
    """
    con.execute("BEGIN")
    _make_again(con, _drop(con, _secondary(con)))
    con.execute("COMMIT")


def rebuild_tables(con: duckdb.DuckDBPyConnection) -> None:
    """Write every table with a primary key anew, in one transaction: what is left where that index is the broken one.

    Of two rows with the same key one stays.  Raises duckdb.Error.
    """
    con.execute("BEGIN")
    for table in schema.TABLES:
        ((sql,),) = con.execute(
            "SELECT sql FROM duckdb_tables() WHERE database_name = current_database() AND table_name = ?", [table]
        ).fetchall()
        indexes = _drop(con, _secondary(con, table))
        con.execute(sql.replace(table, f"{table}_again", 1))
        con.execute(f"INSERT OR REPLACE INTO {table}_again SELECT * FROM {table}")
        con.execute(f"DROP TABLE {table}")
        con.execute(f"ALTER TABLE {table}_again RENAME TO {table}")
        _make_again(con, indexes)
    con.execute("COMMIT")


def _drop(con: duckdb.DuckDBPyConnection, found: list[tuple[str, str, str]]) -> list[str]:
    for place, name, _ in found:
        con.execute("DROP INDEX " + ".".join('"' + part.replace('"', '""') + '"' for part in (place, name)))
    return [sql for *_, sql in found]


def _make_again(con: duckdb.DuckDBPyConnection, statements: list[str]) -> None:
    for statement in statements:
        con.execute(statement)


def fits(con: duckdb.DuckDBPyConnection, table: str) -> bool:
    """Whether every row of the table is in its indexes, primary key and others: they are all deleted to see.

    `con` is on something that is thrown away after.  Raises duckdb.Error.
    """
    ((end,),) = con.execute(f"SELECT coalesce(max(rowid) + 1, 0) FROM {table}").fetchall()
    try:
        for first in range(0, end, _ROWS):
            con.execute(f"DELETE FROM {table} WHERE rowid BETWEEN {first} AND {first + _ROWS - 1}")
    except duckdb.Error as problem:
        if is_fault(problem):
            return False
        raise
    return True
