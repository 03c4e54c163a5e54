"""SQLite files as the original left them, and older ones, for the tests of moving over."""

import pathlib
import sqlite3

import duckdb

from data_pipeline.migration import export_sqlite
from data_pipeline.repository import database, schema

RECORDED = pathlib.Path(__file__).parents[1] / "recordings" / "legacy_gex_history.db"

# Snapshots keyed by ticker and timestamp only, endpoint nullable; strikes without endpoint; no types on some columns.
OLD_LAYOUT = """
CREATE TABLE gex_bridge_snapshots (
    ticker TEXT NOT NULL, timestamp INTEGER NOT NULL, endpoint TEXT, payload_kind TEXT, received_at TEXT, spot REAL,
    zero_gamma REAL, net_gex_vol REAL, net_gex_oi REAL, major_pos_vol REAL, major_neg_vol REAL, major_pos_oi REAL,
    major_neg_oi REAL, delta_risk_reversal REAL, strikes_count INTEGER, max_change_json TEXT, max_priors_json TEXT,
    raw_payload_json TEXT, updated_at TEXT, PRIMARY KEY (ticker, timestamp));
CREATE TABLE gex_bridge_strikes (
    ticker TEXT NOT NULL, timestamp INTEGER NOT NULL, strike REAL NOT NULL, gamma_now REAL, vanna REAL, gamma_1m REAL,
    gamma_5m REAL, gamma_10m REAL, gamma_15m REAL, gamma_30m REAL, history_json TEXT,
    PRIMARY KEY (ticker, timestamp, strike));
"""


def make(path: pathlib.Path, sql: str | None = None, rows: dict[str, list[dict]] | None = None) -> pathlib.Path:
    """An SQLite file with the original's tables, or those of `sql`, and rows: {table: [{column: value}]}."""
    con = sqlite3.connect(path)
    for statement in [sql] if sql else export_sqlite.statements():
        con.executescript(statement)
    for table, each in (rows or {}).items():
        for row in each:
            con.execute(_insertion(table, row), list(row.values()))
    con.commit()
    con.close()
    return path


def snapshot(ticker="SPX", timestamp=1_700_000_000, endpoint="gex_zero", **others) -> dict:
    return {"ticker": ticker, "timestamp": timestamp, "endpoint": endpoint, "payload_kind": "snapshot"} | others


def webhook(number: int, payload: str = "{}") -> dict:
    return {"id": number, "received_at": "2025-11-14 15:00:00", "payload_json": payload}


def sqlite_rows(path: pathlib.Path) -> dict[str, list[tuple]]:
    con = sqlite3.connect(path)
    found = {t: con.execute(_selection(t)).fetchall() for t in schema.TABLES}
    con.close()
    return found


def duckdb_rows(path: pathlib.Path) -> dict[str, list[tuple]]:
    with duckdb.connect(str(path), read_only=True) as con:
        return {t: con.execute(_selection(t)).fetchall() for t in schema.TABLES}


def insert(path: pathlib.Path, table: str, row: dict) -> None:
    """One row into the DuckDB file."""
    with database.Database(path).session(wait=10) as con:
        con.execute(_insertion(table, row), list(row.values()))


def _insertion(table: str, row: dict) -> str:
    return f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"


def _selection(table: str) -> str:
    return f"SELECT * FROM {table} ORDER BY {', '.join(schema.KEYS[table])}"
