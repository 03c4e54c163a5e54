"""The tables: the original's names, columns, order, keys, defaults and indexes.

SQLite's TEXT, INTEGER and REAL are VARCHAR, BIGINT and DOUBLE here; DuckDB's
own INTEGER and REAL have 4 bytes and would lose digits.  Ids are given by the
loader (or, for `gex_history_queue`, when the link is acknowledged): DuckDB
has no AUTOINCREMENT.
"""

NOW = "strftime(make_timestamp(epoch_us(now())), '%Y-%m-%d %H:%M:%S')"

# table -> ((column, type and constraints), ...)
TABLES = {
    "gex_bridge_snapshots": (
        ("ticker", "VARCHAR NOT NULL"),
        ("timestamp", "BIGINT NOT NULL"),
        ("endpoint", "VARCHAR NOT NULL"),
        ("payload_kind", "VARCHAR"),
        ("received_at", "VARCHAR"),
        ("spot", "DOUBLE"),
        ("zero_gamma", "DOUBLE"),
        ("net_gex_vol", "DOUBLE"),
        ("net_gex_oi", "DOUBLE"),
        ("major_pos_vol", "DOUBLE"),
        ("major_neg_vol", "DOUBLE"),
        ("major_pos_oi", "DOUBLE"),
        ("major_neg_oi", "DOUBLE"),
        ("delta_risk_reversal", "DOUBLE"),
        ("strikes_count", "BIGINT"),
        ("max_change_json", "VARCHAR"),
        ("max_priors_json", "VARCHAR"),
        ("raw_payload_json", "VARCHAR"),
        ("updated_at", "VARCHAR"),
    ),
    "gex_bridge_strikes": (
        ("ticker", "VARCHAR NOT NULL"),
        ("timestamp", "BIGINT NOT NULL"),
        ("endpoint", "VARCHAR NOT NULL"),
        ("strike", "DOUBLE NOT NULL"),
        ("gamma_now", "DOUBLE"),
        # What GEXBot calls GEX by open interest; the name is the original's.
        ("vanna", "DOUBLE"),
        ("gamma_1m", "DOUBLE"),
        ("gamma_5m", "DOUBLE"),
        ("gamma_10m", "DOUBLE"),
        ("gamma_15m", "DOUBLE"),
        ("gamma_30m", "DOUBLE"),
        ("history_json", "VARCHAR"),
    ),
    "gex_history_queue": (
        ("id", "BIGINT"),
        ("url", "VARCHAR NOT NULL"),
        ("ticker", "VARCHAR NOT NULL"),
        ("endpoint", "VARCHAR NOT NULL"),
        ("status", "VARCHAR NOT NULL DEFAULT 'pending'"),
        ("attempts", "BIGINT NOT NULL DEFAULT 0"),
        ("last_error", "VARCHAR"),
        ("created_at", f"VARCHAR NOT NULL DEFAULT {NOW}"),
        ("updated_at", f"VARCHAR NOT NULL DEFAULT {NOW}"),
    ),
    "universal_webhooks": (
        ("id", "BIGINT"),
        ("received_at", f"VARCHAR NOT NULL DEFAULT {NOW}"),
        ("payload_json", "VARCHAR NOT NULL"),
        ("source_ip", "VARCHAR"),
        ("user_agent", "VARCHAR"),
    ),
    "option_trades_events": (
        ("id", "BIGINT"),
        ("received_at", f"VARCHAR NOT NULL DEFAULT {NOW}"),
        ("topic", "VARCHAR"),
        ("symbol", "VARCHAR"),
        ("side", "VARCHAR"),
        ("quantity", "BIGINT"),
        ("price", "DOUBLE"),
        ("strike", "DOUBLE"),
        ("option_type", "VARCHAR"),
        ("expiration", "VARCHAR"),
        ("order_type", "VARCHAR"),
        ("execution_status", "VARCHAR"),
        ("broker", "VARCHAR"),
        ("execution_qty", "BIGINT"),
        ("execution_price", "DOUBLE"),
        ("raw_payload_json", "VARCHAR"),
    ),
}

# Ours, beside the original's; webhook_id is the row of universal_webhooks that holds it whole.
OURS = {
    "option_flow": (
        ("id", "BIGINT"),
        ("webhook_id", "BIGINT NOT NULL"),
        ("received_at", f"VARCHAR NOT NULL DEFAULT {NOW}"),
        ("executed_at", "VARCHAR"),
        ("topic", "VARCHAR"),
        ("symbol", "VARCHAR"),
        ("option_symbol", "VARCHAR"),
        ("option_type", "VARCHAR"),
        ("strike", "DOUBLE"),
        ("expiration", "VARCHAR"),
        ("side", "VARCHAR"),
        ("sentiment", "VARCHAR"),
        ("size", "BIGINT"),
        ("price", "DOUBLE"),
        ("premium", "DOUBLE"),
        ("volume", "BIGINT"),
        ("open_interest", "BIGINT"),
        ("underlying_price", "DOUBLE"),
        ("implied_volatility", "DOUBLE"),
        ("delta", "DOUBLE"),
        ("gamma", "DOUBLE"),
        ("theta", "DOUBLE"),
        ("vega", "DOUBLE"),
        ("rule", "VARCHAR"),
        ("has_sweep", "BIGINT"),
        ("has_floor", "BIGINT"),
        ("has_multileg", "BIGINT"),
        ("tags_json", "VARCHAR"),
    ),
}

KEYS = {
    "gex_bridge_snapshots": ("ticker", "timestamp", "endpoint"),
    "gex_bridge_strikes": ("ticker", "timestamp", "endpoint", "strike"),
    "gex_history_queue": ("id",),
    "universal_webhooks": ("id",),
    "option_trades_events": ("id",),
    "option_flow": ("id",),
}

# index -> (table, columns)
INDEXES = {
    "idx_bridge_snapshots_ts": ("gex_bridge_snapshots", ("timestamp", "endpoint")),
    "idx_bridge_strikes_ts": ("gex_bridge_strikes", ("timestamp", "endpoint")),
    "idx_history_queue_status": ("gex_history_queue", ("status", "created_at")),
}

# Ours, beside the original's: how far the journal named `journal` is in the
# tables (every record up to `position` is), and the highest id ever given
# out in each table that has ids.
BOOKKEEPING = (
    "CREATE TABLE IF NOT EXISTS bridge_journal (journal VARCHAR PRIMARY KEY, position BIGINT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS bridge_ids (table_name VARCHAR PRIMARY KEY, last_id BIGINT NOT NULL)",
)

# Whole payloads stay as they are: to compress the last row group again at each
# checkpoint took three times as long as all else in it, for a fifth of the file.
UNCOMPRESSED = {
    ("gex_bridge_snapshots", "raw_payload_json"),
    ("universal_webhooks", "payload_json"),
    ("option_trades_events", "raw_payload_json"),
}

TABLES_WITH_IDS = ("gex_history_queue", "universal_webhooks", "option_trades_events")


def columns(table: str) -> list[str]:
    """The table's column names, in order."""
    return [name for name, _ in definition(table)]


def definition(table: str) -> tuple[tuple[str, str], ...]:
    """Each column's name, and its type and constraints."""
    return TABLES.get(table) or OURS[table]


def statements() -> list[str]:
    """The SQL that makes what is missing; harmless where all is there."""
    made = []
    for table, cols in (TABLES | OURS).items():
        body = ", ".join(
            f"{name} {kind}{' USING COMPRESSION uncompressed' if (table, name) in UNCOMPRESSED else ''}"
            for name, kind in cols
        )
        made.append(f"CREATE TABLE IF NOT EXISTS {table} ({body}, PRIMARY KEY ({', '.join(KEYS[table])}))")
    for index, (table, names) in INDEXES.items():
        made.append(f"CREATE INDEX IF NOT EXISTS {index} ON {table} ({', '.join(names)})")
    return made + list(BOOKKEEPING)
