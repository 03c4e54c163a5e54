"""`gex-bridge archive --keep-days N`: closed days of the live tables into the lake."""

import json
import sys

from data_pipeline import BridgeError, config

HELP = "move closed days from the live tables to the lake"


def add_arguments(parser) -> None:
    parser.add_argument(
        "--keep-days", type=int, required=True, metavar="N", help="UTC days before today that stay in the live tables"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, no progress")
    config.add_flags(parser, only=("DATA_DIR",))


def run(args, settings) -> int:
    import duckdb

    from data_pipeline.commands.progress import Progress
    from data_pipeline.lake.archive import archive
    from data_pipeline.repository.database import Database
    from data_pipeline.repository.foreign_file import refuse_foreign_file

    if args.keep_days < 0:
        print("gex-bridge: --keep-days must be 0 or more", file=sys.stderr)
        return 2
    if not settings.database.exists():
        print(f"gex-bridge: no database at {settings.database}", file=sys.stderr)
        return 1
    progress = Progress("archive", quiet=args.json)
    try:
        refuse_foreign_file(settings.database)
        result = archive(Database(settings.database), settings.data_dir, args.keep_days, progress=progress)
    except (duckdb.Error, OSError) as problem:
        raise BridgeError(str(problem).splitlines()[0]) from problem
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
