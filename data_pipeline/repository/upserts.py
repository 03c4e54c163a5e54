"""Rows → tables: Arrow tables handed to DuckDB, one statement a table, never a row at a time."""

import duckdb
import pyarrow

from data_pipeline.repository import database, schema
from data_pipeline.repository.rows import Rows

_ARROW = {"VARCHAR": pyarrow.string(), "BIGINT": pyarrow.int64(), "DOUBLE": pyarrow.float64()}
_KEY = ("ticker", "timestamp", "endpoint")
# Not OR REPLACE: that is refused as soon as somebody has made a unique index of his own.
_LATER_WINS = "ON CONFLICT ({}) DO UPDATE SET {}".format(
    ", ".join(_KEY),
    ", ".join(f"{n} = excluded.{n}" for n in schema.columns("gex_bridge_snapshots") if n not in _KEY),
)


def apply(con: duckdb.DuckDBPyConnection, rows: Rows) -> None:
    """Put the rows into the tables; to be called in a transaction.

    Raises what DuckDB or Arrow raise for a value that does not fit.
    """
    if rows.snapshots:
        _insert(con, "gex_bridge_snapshots", list(zip(*rows.snapshots.values())), _LATER_WINS)
    if rows.strikes:
        _replace_strikes(con, rows.strikes)
    if rows.links:
        _insert_links(con, rows.links)
    for table, new in (("universal_webhooks", rows.webhooks), ("option_trades_events", rows.trades)):
        if new:
            first = database.last_id(con, table) + 1
            _insert(con, table, [range(first, first + len(new)), *zip(*new)])
            database.note_last_id(con, table, first + len(new) - 1)


def arrow_table(table: str, columns: list) -> pyarrow.Table:
    """Columns, in the table's order, as an Arrow table of its types; NaN becomes null."""
    arrays, names = [], []
    for (name, kind), values in zip(schema.TABLES[table], columns, strict=True):
        wanted = _ARROW[kind.split()[0]]
        if isinstance(values, range):
            values = list(values)
        arrays.append(pyarrow.array(values, type=wanted, from_pandas=True))
        names.append(name)
    return pyarrow.Table.from_arrays(arrays, names=names)


def _insert(con, table: str, columns: list, conflict: str = "") -> None:
    con.register("new_rows", arrow_table(table, columns))
    # By name: another program may have added columns of its own.
    names = ", ".join(schema.columns(table))
    con.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM new_rows {conflict}")
    con.unregister("new_rows")


def _replace_strikes(con, strikes: dict) -> None:
    """The strikes of a key go together: the old ones leave, whatever their strike was."""
    columns = [[] for _ in schema.TABLES["gex_bridge_strikes"]]
    for key, of_key in strikes.items():
        count = len(of_key[0])
        for column, value in zip(columns, key):
            column.extend([value] * count)
        for column, values in zip(columns[len(_KEY) :], of_key):
            column.extend(values)
    keys = pyarrow.table(dict(zip(_KEY, map(list, zip(*strikes)))))
    con.register("new_keys", keys)
    con.execute(f"DELETE FROM gex_bridge_strikes WHERE ({', '.join(_KEY)}) IN (SELECT {', '.join(_KEY)} FROM new_keys)")
    con.unregister("new_keys")
    _insert(con, "gex_bridge_strikes", columns)


def _insert_links(con, links: list[tuple]) -> None:
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
