"""The views `gex_snapshots_all` and `gex_strikes_all`: live tables and lake as one."""

import pathlib

from data_pipeline.config import DataFolder
from data_pipeline.lake.layout import FILES, KINDS, SECOND, partitions
from data_pipeline.repository import schema

# A key that is no time at all must not break the view for all others; BETWEEN takes any BIGINT, abs() does not.
TIME = (
    "CASE WHEN timestamp BETWEEN -100000000000 AND 100000000000 THEN make_timestamp(timestamp * 1000000)"
    " WHEN timestamp BETWEEN -100000000000000 AND 100000000000000 THEN make_timestamp(timestamp * 1000) END"
)

# DuckDB's setting temp_directory is, unless somebody sets it, the path of the file that was opened and `.tmp`: the one
# thing in a view by which a path can follow the file it is in.
_DATABASE = DataFolder.DATABASE
_OPENED = "current_setting('temp_directory')"
_IS_OPENED = f"ends_with({_OPENED}, '{_DATABASE}.tmp')"
_BESIDE = f"coalesce(nullif({_OPENED}[:-{len(_DATABASE) + 5}], ''), '.') || '/../..'"

VIEWS = {"snapshots": "gex_snapshots_all", "strikes": "gex_strikes_all"}


def view_statements(lake_root: pathlib.Path) -> list[str]:
    """The SQL that makes both views as the lake is now: cheap, to be run in every session that may write.

    DuckDB refuses a file pattern without files, so a lake that is empty or
    absent is left out, and the views must be made again when that changes.
    `read_parquet` with nothing but options that DuckDB 1.5 knows: they work in
    any shell, from any working directory.  Whoever opens the database file
    reads the lake of the data folder that the file is in, also when that was
    moved or copied.  Under ATTACH, or a temp_directory of the reader's own,
    the path is the one of now; there a database that is elsewhere is an error,
    never another folder's rows.

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
    here = _quoted(str(root.parent))
    where = f"regexp_replace(CASE WHEN {_IS_OPENED} THEN {_BESIDE} ELSE {here} END, '([*?\\[])', '[\\1]', 'g')"
    lake = _read_parquet(f"{where} || '/lake/{kind}{FILES}'")
    database = DataFolder(root.parent).database
    ours = ", ".join({_quoted(str(database)), _quoted(str(database.resolve()))})
    return (
        f"{live} UNION ALL SELECT {columns}, {ts} FROM {lake} AS lake WHERE NOT EXISTS"
        f" (SELECT 1 FROM (SELECT ticker, endpoint, {SECOND} AS second FROM {table}) AS live"
        f" WHERE live.ticker = lake.ticker AND live.second = {SECOND.replace('timestamp', 'lake.timestamp')}"
        f" AND live.endpoint = lake.endpoint)"
        f" AND CASE WHEN {_IS_OPENED} OR EXISTS (SELECT 1 FROM duckdb_databases() WHERE path IN ({ours})) THEN true"
        " ELSE error('this data folder was moved or copied: open the database file itself, without ATTACH') END"
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def file(path: pathlib.Path) -> str:
    """DuckDB's read_parquet of one file of the lake."""
    # A path is a pattern to DuckDB, in which [x] stands for x.
    return _read_parquet(_quoted("".join(f"[{c}]" if c in "*?[" else c for c in str(path))))


def _read_parquet(path: str) -> str:
    """path: an SQL expression.  Ticker and endpoint are always text."""
    types = "{'ticker': VARCHAR, 'endpoint': VARCHAR, 'date': DATE}"
    return f"read_parquet({path}, hive_partitioning = true, hive_types = {types})"


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
