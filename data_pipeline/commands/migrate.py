"""gex-bridge migrate: see data_pipeline.migration.migrate."""

import argparse
import json
import pathlib
import time
from typing import TYPE_CHECKING, Any

from data_pipeline import config

if TYPE_CHECKING:
    from data_pipeline.migration.migrate import Migration, TableResult

HELP = "move the original's SQLite file into the database, proven, also while the server runs"

# rows: in OLD.db; new, same: now and already in the database; replaced: rows of the database that gave way;
# lost: rows that gave way to the database's; unfit: what could not be converted.
COUNTS = ("rows", "new", "same", "replaced", "lost", "unfit_rows", "unfit_values")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("old", metavar="OLD.db", type=pathlib.Path, help="the original's file; it is only read")
    parser.add_argument("--merge", action="store_true", help="the database may have rows already")
    parser.add_argument(
        "--prefer",
        choices=("old", "new"),
        default="new",
        help="which of two different rows with one key is kept: OLD.db's or the database's (default: new)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only read and compare; --report FILE is written")
    parser.add_argument(
        "--report",
        metavar="FILE",
        type=pathlib.Path,
        help="where what did not fit is written (default: beside the database)",
    )
    parser.add_argument("--json", action="store_true", help="the result as one JSON object")
    config.add_flags(parser, only=("DATA_DIR",))


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    """Move, or look; returns the exit code.  Raises MigrationError, OldFileError, DatabaseBusy, NotADatabase."""
    # Imported here: it is heavy, and only this command needs it.
    import duckdb

    from data_pipeline.migration import migrate
    from data_pipeline.repository import database

    migration = migrate.Migration(args.old, settings.database, args.merge, args.prefer, args.report)
    if args.dry_run and not args.report:
        migration.report.path = None
    started = time.monotonic()
    try:
        migration.look() if args.dry_run else migration.run()
    except (duckdb.Error, OSError) as problem:
        said = database.first_line(problem) if isinstance(problem, duckdb.Error) else str(problem)
        raise migrate.MigrationError(f"{said}; what was moved stays, run the same command again") from problem
    except KeyboardInterrupt:
        raise migrate.MigrationError("interrupted; what was moved stays, run the same command again") from None
    result = _result(migration, args.dry_run, time.monotonic() - started)
    print(json.dumps(result, indent=2) if args.json else _text(result))
    return 0


def _result(migration: "Migration", dry_run: bool, seconds: float) -> dict[str, Any]:
    report = migration.report
    return {
        "source": str(migration.old),
        "database": str(migration.target),
        "dry_run": dry_run,
        "seconds": round(seconds, 3),
        "report": str(report.path) if report.lines and report.path else None,
        "report_lines": report.lines,
        "not_moved_tables": migration.not_ours,
        "tables": {table: _table(r, dry_run) for table, r in migration.results.items()},
    }


def _table(r: "TableResult", dry_run: bool) -> dict[str, Any]:
    counts: dict[str, Any] = {name: getattr(r, name) for name in COUNTS}
    if not dry_run:
        # Rows that lost are in the report, not in the database: their sums count on its side.
        both = r.moved + r.gave_way
        counts["proof"] = {
            "rows": [r.source.rows, both.rows],
            "checksums": {c: [f"{s:016x}", f"{both.columns.get(c, 0):016x}"] for c, s in r.source.columns.items()},
            "equal": r.is_proven,
        }
    return counts


def _text(result: dict[str, Any]) -> str:
    lines = [f"{'table':<22}" + "".join(f"{name.replace('_', ' '):>13}" for name in COUNTS)]
    for table, r in result["tables"].items():
        lines.append(f"{table:<22}" + "".join(f"{r[name]:>13}" for name in COUNTS))
    for table, r in result["tables"].items():
        if proof := r.get("proof"):
            lines += ["", f"{table}: {proof['rows'][0]} rows here, {proof['rows'][1]} there"]
            for column, (here, there) in proof["checksums"].items():
                lines.append(f"  {column:<22}{here}  {there}  {'equal' if here == there else 'DIFFERENT'}")
    lines.append("")
    if result["not_moved_tables"]:
        lines.append(f"tables that are not the bridge's stay where they are: {', '.join(result['not_moved_tables'])!r}")
    if result["report_lines"]:
        where = result["report"] or "(--report FILE writes it)"
        lines.append(f"{result['report_lines']} rows or values are in the report {where}")
    lines.append("dry run: nothing was written" if result["dry_run"] else f"done in {result['seconds']} s")
    return "\n".join(lines)
