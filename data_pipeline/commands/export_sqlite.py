"""gex-bridge export-sqlite: see data_pipeline.migration.export_sqlite."""

import json
import pathlib
import sys

from data_pipeline import config

HELP = "write the database as an SQLite file that the original could carry on with"


def add_arguments(parser) -> None:
    parser.add_argument("new", metavar="NEW.db", type=pathlib.Path, help="the file to make; one that exists is refused")
    parser.add_argument("--json", action="store_true", help="the result as one JSON object")
    config.add_flags(parser, only=("DATA_DIR",))


def run(args, settings) -> int:
    # Imported here: they are heavy, and only this command needs them.
    import sqlite3

    import duckdb

    from data_pipeline.migration import export_sqlite
    from data_pipeline.repository import database, foreign_file

    problems = (
        export_sqlite.ExportError,
        foreign_file.NotADatabase,
        database.DatabaseBusy,
        database.DatabaseDamaged,
        duckdb.Error,
        sqlite3.Error,
        OSError,
    )
    try:
        rows = export_sqlite.export(settings.database, args.new)
    except problems as problem:
        print(f"gex-bridge export-sqlite: {problem}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({"database": str(settings.database), "file": str(args.new), "rows": rows}, indent=2))
    else:
        print("\n".join(f"{table:<22}{n:>12} rows" for table, n in rows.items()))
    return 0
