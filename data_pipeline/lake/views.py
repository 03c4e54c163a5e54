"""The views `gex_snapshots_all` and `gex_strikes_all`: live tables and lake as one."""

import pathlib

from data_pipeline.lake.layout import FILES, KINDS, partitions
from data_pipeline.repository import schema

# A key above 1e11 was sent in milliseconds; one that is no time at all must not break the view for all others.
TIME = (
    "CASE WHEN abs(timestamp) <= 100000000000 THEN make_timestamp(timestamp * 1000000)"
    " WHEN abs(timestamp) <= 100000000000000 THEN make_timestamp(timestamp * 1000) END"
)

VIEWS = {"snapshots": "gex_snapshots_all", "strikes": "gex_strikes_all"}


def view_statements(lake_root: pathlib.Path) -> list[str]:
    """The SQL that makes both views as the lake is now: cheap, to be run in every session that may write.

    DuckDB refuses a file pattern without files, so a lake that is empty or
    absent is left out, and the views must be made again when that changes.
    `read_parquet` with nothing but options that DuckDB 1.5 knows, an absolute
    path: they work in any shell, from any working directory.

    The columns are the table's, and `ts`, TIMESTAMP in UTC (the files have it
    with time zone; without it a literal means UTC whatever zone the shell is
    in).  Where live table and lake have the same key, the live row is shown.
    """
    root = pathlib.Path(lake_root).absolute()
    return [f"CREATE OR REPLACE VIEW {VIEWS[kind]} AS {_select(kind, root)}" for kind in KINDS]


def _select(kind: str, root: pathlib.Path) -> str:
    table = KINDS[kind]
    columns = ", ".join(schema.columns(table))
    ts = f"{TIME} AS ts"
    live = f"SELECT {columns}, {ts} FROM {table}"
    if next(partitions(root, kind), None) is None:
        return live
    # A strike of the lake gives way to *any* strike of the same snapshot in
    # the live table: strikes of two versions of a snapshot are never mixed.
    lake = files(root / kind, FILES)
    return (
        f"{live} UNION ALL SELECT {columns}, {ts} FROM {lake} AS lake WHERE NOT EXISTS"
        f" (SELECT 1 FROM {table} AS live WHERE live.ticker = lake.ticker"
        f" AND live.timestamp = lake.timestamp AND live.endpoint = lake.endpoint)"
    )


def files(path: pathlib.Path, pattern: str = "") -> str:
    """DuckDB's read_parquet of a file, or of a pattern below a folder; ticker and endpoint are always text."""
    # A path is a pattern to DuckDB, in which [x] stands for x.
    plain = "".join(f"[{c}]" if c in "*?[" else c for c in str(path)).replace("'", "''")
    types = "{'ticker': VARCHAR, 'endpoint': VARCHAR, 'date': DATE}"
    return f"read_parquet('{plain}{pattern}', hive_partitioning = true, hive_types = {types})"


def refresh(database: pathlib.Path, lake_root: pathlib.Path, wait: float = 10.0) -> bool:
    """Make the views of an existing database as the lake is now; False if it stayed busy (its owner then does it)."""
    from data_pipeline.repository.database import Database, DatabaseBusy

    if not database.exists():
        return True
    try:
        with Database(database).session(wait) as con:
            for statement in view_statements(lake_root):
                con.execute(statement)
    except DatabaseBusy:
        return False
    return True
