"""Rows from elsewhere into the live tables, a batch at a time, and the proof that they are there.

A checksum of a column is the exclusive or over all rows of a 64-bit hash of
the row's key and the column's value: it does not depend on the order of the
rows, adds up over batches, and tells values that changed places.  (Rows that
cancelled each other out would have to have one key; the count tells those.)

What would break, for whoever changes something here:

* The key is hashed with each value.  Without it two rows that swapped their
  values would pass the proof.
* The sums that are expected are taken from the batch before it is inserted,
  and compared before the commit with what a query finds in the table.  Taken
  from what was inserted, or compared later, they would prove nothing: a row
  that was lost on the way would be missing on both sides, or be in for good.
* Every row of a batch stays in the table or gives way, never both: `found`
  and `gave_way` add up to the batch.  So the rows that stay are looked up by
  key alone, and the last of several rows with one key is the only one to stay.
* `_near` must hold every row of the table that has a key of the batch; with
  narrower bounds a row that is there would count as new, and the insert fail.
"""

from dataclasses import dataclass, field

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.repository import schema


class Different(Exception):
    """What is in the table is not what was put there; the text names table and columns."""


@dataclass
class Sums:
    """How many rows, and the checksum of each column (see above)."""

    rows: int = 0
    columns: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: "Sums") -> "Sums":
        names = {**self.columns, **other.columns}
        added = {n: self.columns.get(n, 0) ^ other.columns.get(n, 0) for n in names}
        return Sums(self.rows + other.rows, added)

    def differs_from(self, other: "Sums") -> list[str]:
        """Names of the columns that differ, and `rows`."""
        names = {**self.columns, **other.columns}
        differing = [n for n in names if self.columns.get(n, 0) != other.columns.get(n, 0)]
        return ["rows"] * (self.rows != other.rows) + differing


@dataclass
class Outcome:
    """What became of a batch: how many rows are new, were there already, and two tables of rows.

    lost: rows of the batch that gave way, with their `fate`; replaced: rows of
    the live table that did.  gave_way are the sums of the rows lost; found, of
    the table's rows that have the keys of the batch's others.
    """

    new: int
    same: int
    lost: pa.Table
    replaced: pa.Table
    gave_way: Sums
    found: Sums


def sums(con: duckdb.DuckDBPyConnection, relation: str, table: str, among: str | None = None) -> Sums:
    """Of the rows of `relation` (SQL that has the columns of `table`), or of those whose key is `among` others."""
    names = schema.columns(table)
    each = ", ".join(f"coalesce(bit_xor(hash(row_key, {n})), 0)" for n in names)
    row_key = f"hash({_keys(table)}) AS row_key"
    only = f" SEMI JOIN (SELECT {row_key} FROM {among}) USING (row_key)" if among else ""
    # fetchall: after fetchone DuckDB calls the result unfinished and refuses `register`.
    query = f"SELECT count(*), {each} FROM (SELECT *, {row_key} FROM {relation}){only}"
    ((rows, *totals),) = con.execute(query).fetchall()
    return Sums(rows, dict(zip(names, totals)))


def put_new(con: duckdb.DuckDBPyConnection, table: str, batch: pa.Table, expected: Sums) -> Outcome | None:
    """Begin a transaction and insert rows whose keys the table does not have; the caller commits.

    None, rolled back, where the table has one of them, or the batch has one
    twice.  expected: the batch's sums, as they were where it came from;
    raises Different, rolled back, if those of the rows that are now in the
    table are others.
    """
    con.register("batch", batch)
    con.begin()
    try:
        con.execute(f"INSERT INTO {table} ({_names(table)}) SELECT {_names(table)} FROM batch")
    except duckdb.ConstraintException:
        con.rollback()
        return None
    nothing = batch.slice(0, 0)
    outcome = Outcome(len(batch), 0, nothing, nothing, Sums(), Sums())
    return _proven(con, table, batch, expected, outcome, "batch")


def put_among_others(
    con: duckdb.DuckDBPyConnection, table: str, batch: pa.Table, expected: Sums, prefer: str
) -> Outcome:
    """As `put_new`, with rows that have a key of the batch in the table, or in the batch itself.

    prefer: which of two different rows with one key is kept, `old` (the
    batch's) or `new` (the table's).  Of rows of the batch the last is kept.
    """
    con.begin()
    con.register("fated", fates(con, table, batch))
    wins, loses = ("'new', 'differs'", "'again'") if prefer == "old" else ("'new'", "'again', 'differs'")
    chosen = "SELECT * EXCLUDE (fate) FROM fated WHERE fate IN"
    mine = con.sql(f"{chosen} ({wins})").to_arrow_table()
    lost = con.sql(f"SELECT * FROM fated WHERE fate IN ({loses})").to_arrow_table()
    replaced = con.sql(
        f"SELECT {_names(table, 'live.')} FROM {_near(table, batch)} live"
        f" SEMI JOIN (FROM fated WHERE fate = 'differs') f USING ({_keys(table)})" + " LIMIT 0" * (prefer == "new")
    ).to_arrow_table()
    con.register("mine", mine)
    # Not OR REPLACE: that is refused as soon as somebody has made a unique index of his own.
    sets = ", ".join(f"{n} = excluded.{n}" for n in schema.columns(table) if n not in schema.KEYS[table])
    con.execute(
        f"INSERT INTO {table} ({_names(table)}) SELECT {_names(table)} FROM mine"
        f" ON CONFLICT ({_keys(table)}) DO UPDATE SET {sets}"
    )
    con.register("staying", con.sql(f"{chosen} ({wins}, 'same')").to_arrow_table())
    con.register("lost", lost)
    counts = dict(con.execute("SELECT fate, count(*) FROM fated GROUP BY fate").fetchall())
    gave_way = sums(con, "lost", table)
    outcome = Outcome(counts.get("new", 0), counts.get("same", 0), lost, replaced, gave_way, Sums())
    return _proven(con, table, batch, expected, outcome, "staying")


def _proven(
    con: duckdb.DuckDBPyConnection, table: str, batch: pa.Table, expected: Sums, outcome: Outcome, staying: str
) -> Outcome:
    outcome.found = sums(con, _near(table, batch), table, among=staying)
    if differing := expected.differs_from(outcome.found + outcome.gave_way):
        con.rollback()
        raise Different(f"{table}: {', '.join(differing)}")
    return outcome


def fates(con: duckdb.DuckDBPyConnection, table: str, batch: pa.Table) -> pa.Table:
    """The batch with a column `fate`: new, same, differs (from the row in the table), or again (in the batch)."""
    con.register("numbered", batch.append_column("row_number", pa.array(range(len(batch)), pa.int64())))
    names, keys = schema.columns(table), schema.KEYS[table]
    same = " AND ".join(f"live.{n} IS NOT DISTINCT FROM b.{n}" for n in names)
    return con.sql(
        f"SELECT b.* EXCLUDE (row_number, is_again), CASE WHEN is_again THEN 'again'"
        f" WHEN live.{keys[0]} IS NULL THEN 'new' WHEN {same} THEN 'same' ELSE 'differs' END AS fate"
        f" FROM (SELECT *, row_number() OVER (PARTITION BY {_keys(table)} ORDER BY row_number DESC) > 1 AS is_again"
        f" FROM numbered) b LEFT JOIN {_near(table, batch)} live USING ({_keys(table)}) ORDER BY b.row_number"
    ).to_arrow_table()


def _names(table: str, prefix: str = "") -> str:
    """Our columns by name: other programs may have added some of their own."""
    return ", ".join(prefix + name for name in schema.columns(table))


def _keys(table: str) -> str:
    return ", ".join(schema.KEYS[table])


def _near(table: str, batch: pa.Table) -> str:
    """The table's rows between the batch's lowest and highest time or id: DuckDB skips the rest of a long table."""
    column = "id" if table in schema.TABLES_WITH_IDS else "timestamp"
    bounds = pc.min_max(batch.column(column)).as_py()
    return f"(SELECT * FROM {table} WHERE {column} BETWEEN {int(bounds['min'])} AND {int(bounds['max'])})"
