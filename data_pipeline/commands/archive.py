"""`gex-bridge archive --keep-days N`: closed days of the live tables into the lake."""

import argparse
import json
import sys

from data_pipeline import BridgeError, config

HELP = "move closed days from the live tables to the lake"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument(
        "--keep-days", type=int, required=True, metavar="N", help="UTC days before today that stay in the live tables"
    )
    parser.add_argument(
        "--least-rows", type=int, metavar="N", help="a day with fewer rows waits in the live tables (default: 1000)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, no progress")
    config.add_flags(parser, only=("DATA_DIR",))


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    """Do it; returns the exit code.  Raises BridgeError."""
    from data_pipeline.commands.progress import Progress
    from data_pipeline.lake.archive import archive
    from data_pipeline.operations.one_line import one_line
    from data_pipeline.repository.database import Database
    from data_pipeline.repository.foreign_file import refuse_foreign_file

    if args.keep_days < 0:
        raise config.ConfigError("--keep-days must be 0 or more")
    if not settings.database.exists():
        raise BridgeError(f"no database at {settings.database}")
    progress = Progress("archive", quiet=args.json)
    try:
        refuse_foreign_file(settings.database)
        with one_line():
            database, least = Database(settings.database), args.least_rows
            result = archive(database, settings.data_dir, args.keep_days, progress=progress, least_rows=least)
    finally:
        progress.close()
    for failed in result.failed:
        print(f"gex-bridge: {failed}", file=sys.stderr)
    if args.json:
        print(json.dumps(result.as_json()))
    else:
        rows = f"{result.snapshots:,} snapshots, {result.strikes:,} strikes moved"
        print(f"{rows}, {len(result.days)} days, {result.seconds:.1f} s")
        for left in result.left:
            print(f"left: {left}")
        if result.waiting:
            print(f"waiting: {result.waiting} days with few rows stay in the live tables")
    return 1 if result.failed else 0
