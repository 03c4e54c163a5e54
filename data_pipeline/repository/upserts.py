"""Rows → tables: Arrow tables handed to DuckDB, one statement a table, never a row at a time."""

from collections.abc import Iterable, Sequence
from typing import Any

import duckdb
import pyarrow

from data_pipeline.repository import arrow, database, schema
from data_pipeline.repository.rows import Columns, Key, Rows

_KEY = ("ticker", "timestamp", "endpoint")
# Not OR REPLACE: that is refused as soon as somebody has made a unique index of his own.
_LATER_WINS = "ON CONFLICT ({}) DO UPDATE SET {}".format(
    ", ".join(_KEY),
    ", ".join(f"{name} = excluded.{name}" for name in schema.columns("gex_bridge_snapshots") if name not in _KEY),
)


def apply(con: duckdb.DuckDBPyConnection, rows: Rows) -> None:
    """Put the rows into the tables; to be called in a transaction.

    Raises what DuckDB or Arrow raise for a value that does not fit.
    """
    if rows.snapshots:
        _insert(con, "gex_bridge_snapshots", zip(*rows.snapshots.values()), _LATER_WINS)
    if rows.strikes:
        _replace_strikes(con, rows.strikes)
    if rows.links:
        _insert_links(con, rows.links)
    first_webhook = _insert_new(con, "universal_webhooks", rows.webhooks)
    _insert_new(con, "option_trades_events", rows.trades)
    _insert_new(con, "option_flow", [(first_webhook + webhook, *row) for webhook, *row in rows.flow])


def _insert(
    con: duckdb.DuckDBPyConnection,
    table: str,
    columns: Iterable[Sequence[object] | pyarrow.Array],
    conflict: str = "",
) -> None:
    """columns: in the table's order; NaN becomes null."""
    arrays = [
        values
        if isinstance(values, pyarrow.Array)
        else pyarrow.array(list(values) if isinstance(values, range) else values, type=field.type, from_pandas=True)
        for field, values in zip(arrow.table_schema(table), columns, strict=True)
    ]
    # By name: another program may have added columns of its own.
    names = ", ".join(schema.columns(table))
    con.register("new_rows", pyarrow.Table.from_arrays(arrays, names=schema.columns(table)))
    con.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM new_rows {conflict}")
    con.unregister("new_rows")


def _insert_new(con: duckdb.DuckDBPyConnection, table: str, new: list[tuple[Any, ...]]) -> int:
    """Insert rows that have no id yet; returns the first one's."""
    first = database.last_id(con, table) + 1 if new else 0
    if new:
        _insert(con, table, [range(first, first + len(new)), *zip(*new)])
        database.note_last_id(con, table, first + len(new) - 1)
    return first


def _replace_strikes(con: duckdb.DuckDBPyConnection, strikes: dict[Key, Columns]) -> None:
    """The strikes of a key go together: the old ones leave, whatever their strike was."""
    keys = [pyarrow.array(values) for values in zip(*strikes)]
    con.register("new_keys", pyarrow.table(keys, names=list(_KEY)))
    con.execute(f"DELETE FROM gex_bridge_strikes WHERE ({', '.join(_KEY)}) IN (SELECT {', '.join(_KEY)} FROM new_keys)")
    con.unregister("new_keys")
    # A key is there once for all its strikes: spelled out with each, 20,000 times, a long one is gigabytes.
    whose = pyarrow.array(
        [number for number, columns in enumerate(strikes.values()) for _ in columns[0]], pyarrow.int32()
    )
    _insert(
        con,
        "gex_bridge_strikes",
        [
            *(pyarrow.DictionaryArray.from_arrays(whose, values) for values in keys),
            *([value for column in same for value in column] for same in zip(*strikes.values())),
        ],
    )


def _insert_links(con: duckdb.DuckDBPyConnection, links: list[tuple[Any, ...]]) -> None:
    """Queue rows keep the id they were acknowledged with.

    Where a row that was put there by hand has it, that row moves to a new id.
    """
    columns = list(zip(*links))
    taken = con.execute(
        "SELECT id FROM gex_history_queue WHERE id IN (SELECT unnest(?))", [list(columns[0])]
    ).fetchall()
    highest = max(database.last_id(con, "gex_history_queue"), *columns[0])
    for (id_,) in taken:
        highest += 1
        con.execute("UPDATE gex_history_queue SET id = ? WHERE id = ?", [highest, id_])
    _insert(con, "gex_history_queue", columns)
    database.note_last_id(con, "gex_history_queue", highest)
