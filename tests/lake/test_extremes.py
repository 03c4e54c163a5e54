"""The extremes of every column, as all readers show them: live tables, views, scans, and the lake."""

import datetime
import math

import polars as pl
import pytest

from data_pipeline.lake import scan_snapshots, scan_strikes, view_statements
from data_pipeline.lake.archive import archive
from data_pipeline.repository import schema
from data_pipeline.repository.database import Database
from tests.helpers.history_files import DAY_START

TABLES = {"gex_bridge_snapshots": "gex_snapshots_all", "gex_bridge_strikes": "gex_strikes_all"}
SCANS = {"gex_bridge_snapshots": scan_snapshots, "gex_bridge_strikes": scan_strikes}
EXTREMES = {
    "BIGINT": [2**63 - 1, -(2**63), 0, None],
    "DOUBLE": [1.7976931348623157e308, -1.7976931348623157e308, 5e-324, -0.0, math.inf, -math.inf, math.nan, None],
    "VARCHAR": ["", "x" * (1 << 20), "\0 a\r\n\t\"'\\ \U0001f600 \x7f\ufeff", "null", "NaN", "-1e999", None],
}


@pytest.fixture
def database(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.lake.archive.LEAST_ROWS", 1)
    return Database(tmp_path / "raw" / "gex" / "gex_history.duckdb")


def rows_of(table):
    """A row for each extreme, which every column has that is no key; also strikes, many of one second."""
    made = []
    for i in range(max(map(len, EXTREMES.values()))):
        second = DAY_START + (i if table == "gex_bridge_snapshots" else i // 6)
        row = {"ticker": "SPX", "timestamp": second, "endpoint": "gex_zero"}
        for name, declared in schema.TABLES[table]:
            values = EXTREMES[declared.split()[0]]
            row.setdefault(name, values[i % len(values)])
        if "strike" in row and row["strike"] is None:
            row["strike"] = 2.2250738585072014e-308
        made.append(tuple(row[name] for name in schema.columns(table)))
    return made


def exact(rows):
    """Rows as they can be compared: NaN equals itself, and -0.0 is not 0.0."""
    return sorted(tuple(map(repr, row)) for row in rows)


def shown(database, data_dir, table):
    """What each reader shows of a table that live rows and lake make up together."""
    columns = schema.columns(table)
    with database.session(30) as con:
        view = con.execute(f"SELECT {', '.join(columns)} FROM {TABLES[table]}").fetchall()
    scan = SCANS[table](data_dir=data_dir).select(columns).collect()
    assert scan.schema["timestamp"] == pl.Int64
    filtered = SCANS[table]("spx", DAY_START, DAY_START + 60, data_dir).select(columns).collect()
    return {"view": exact(view), "scan": exact(scan.rows()), "scan of a minute": exact(filtered.rows())}


@pytest.mark.parametrize("table", TABLES)
def test_the_extremes_of_every_column_are_the_same_to_all_readers_before_and_after_the_archive(
    database, tmp_path, table
):
    rows = rows_of(table)
    with database.session() as con:
        con.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
        for statement in view_statements(tmp_path / "lake"):
            con.execute(statement)
    expected = dict.fromkeys(("view", "scan", "scan of a minute"), exact(rows))
    assert shown(database, tmp_path, table) == expected
    result = archive(database, tmp_path, 0, today=datetime.date(2025, 2, 1))
    assert (result.failed, result.left, len(result.days)) == ([], [], 1)
    with database.session(30) as con:
        assert con.execute(f"SELECT count(*) FROM {table}").fetchall() == [(0,)]
    assert shown(database, tmp_path, table) == expected


def test_archived_extremes_can_be_put_back_and_archived_again(database, tmp_path):
    rows = {table: rows_of(table) for table in TABLES}
    with database.session() as con:
        for table, some in rows.items():
            con.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(some[0]))})", some)
    archive(database, tmp_path, 0, today=datetime.date(2025, 2, 1))
    with database.session(30) as con:
        for table, view in TABLES.items():
            columns = ", ".join(schema.columns(table))
            con.execute(f"INSERT INTO {table} SELECT {columns} FROM {view}")
    result = archive(database, tmp_path, 0, today=datetime.date(2025, 2, 1))
    assert (result.failed, result.snapshots, result.strikes) == ([], 8, 8)
    for table, some in rows.items():
        assert set(map(str, shown(database, tmp_path, table).values())) == {str(exact(some))}
