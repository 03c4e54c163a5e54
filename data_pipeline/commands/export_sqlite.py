"""gex-bridge export-sqlite: see data_pipeline.migration.export_sqlite."""

import argparse
import json
import pathlib

from data_pipeline import config

HELP = "write the database as an SQLite file that the original could carry on with"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("new", metavar="NEW.db", type=pathlib.Path, help="the file to make; one that exists is refused")
    parser.add_argument("--json", action="store_true", help="the result as one JSON object")
    config.add_flags(parser, only=("DATA_DIR",))


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    """Write the file; returns the exit code.  Raises ExportError, DatabaseBusy, DatabaseDamaged, NotADatabase."""
    # Imported here: they are heavy, and only this command needs them.
    import sqlite3

    import duckdb

    from data_pipeline.migration import export_sqlite
    from data_pipeline.repository import database

    try:
        rows = export_sqlite.export(settings.database, args.new)
    except (duckdb.Error, sqlite3.Error, OSError) as problem:
        raise export_sqlite.ExportError(f"{args.new} was not written: {database.first_line(problem)}") from problem
    if args.json:
        print(json.dumps({"database": str(settings.database), "file": str(args.new), "rows": rows}, indent=2))
    else:
        print("\n".join(f"{table:<22}{n:>12} rows" for table, n in rows.items()))
    return 0
