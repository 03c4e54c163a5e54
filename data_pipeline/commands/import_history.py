"""`gex-bridge import FILE… --ticker T --endpoint E`: history files into the lake."""

import argparse
import contextlib
import json
import os
import pathlib
import sys
from typing import TYPE_CHECKING, Any

from data_pipeline import config

if TYPE_CHECKING:
    from data_pipeline.lake.history_file import ImportResult

HELP = "import history files into the lake"

LOWEST_PRIORITY = 19  # niceness; requests and the writer come first


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        type=pathlib.Path,
        help="a file, or a folder of .json, .jsonl, .ndjson files, gzipped or not",
    )
    parser.add_argument("--ticker", help="ticker of the chains, e.g. SPX; default: as the file's name says")
    parser.add_argument("--endpoint", help="endpoint they are kept under, e.g. gex_zero; default likewise")
    parser.add_argument("--again", action="store_true", help="import also what was imported before")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output, no progress")
    parser.add_argument("--background", action="store_true", help="let everything else on the machine go first")
    config.add_flags(parser, only=("DATA_DIR",))


def _stand_back() -> None:
    """Lowest priority, and one core: with threads on all of them, a request would wait even for idle work to stop."""
    os.nice(LOWEST_PRIORITY)
    with contextlib.suppress(OSError):  # where a sandbox forbids it, the priority has to do
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    """Do it; returns the exit code.  Raises BridgeError."""
    if args.background:
        _stand_back()
    import duckdb
    import pyarrow

    # Gives pages back less eagerly: a tenth less CPU.
    with contextlib.suppress(NotImplementedError):  # of the platform
        pyarrow.set_memory_pool(pyarrow.jemalloc_memory_pool())
    from data_pipeline.commands.progress import Progress
    from data_pipeline.history.download import named_in
    from data_pipeline.lake import LakeDamaged, LakeNameError
    from data_pipeline.lake.history_file import ImportFailed, import_file
    from data_pipeline.lake.views import refresh
    from data_pipeline.repository.database import first_line

    said: list[dict[str, Any]] = []
    failed = False
    for file in _files(args.files):
        progress = Progress(file.name, quiet=args.json)
        try:
            ticker, endpoint = named_in(file.name)
            ticker, endpoint = args.ticker or ticker, args.endpoint or endpoint
            if not ticker or not endpoint:
                raise ImportFailed("its name does not say ticker and endpoint; give --ticker and --endpoint")
            result = import_file(
                file, ticker, endpoint, settings.data_dir, progress, args.again, settings.history_max_bytes
            )
        except (ImportFailed, LakeDamaged, LakeNameError, OSError) as problem:
            failed = True
            said.append({"file": file.name, "error": str(problem)})
            print(f"gex-bridge: {ascii(file.name)}: {problem}", file=sys.stderr)
        else:
            said.append({**result.as_json(), "trouble": result.trouble})
            if not args.json:
                print(_line(result))
        finally:
            progress.close()
    if any(not one.get("error") and not one["known"] for one in said):
        try:
            refresh(settings.database, settings.folder.lake)
        except duckdb.Error as problem:
            # A file of another day is damaged.  What was imported is in the lake; the views are made again with the
            # writer's next session.
            print(f"gex-bridge: the views could not be made: {first_line(problem)}", file=sys.stderr)
    if args.json:
        print(json.dumps({"files": said}))
    elif not said:
        print("gex-bridge: no history files there", file=sys.stderr)
    return 1 if failed or not said else 0


def _files(given: list[pathlib.Path]) -> list[pathlib.Path]:
    """The files, and those of a folder and all below it that look like history, in order."""
    endings = tuple(kind + packed for kind in (".json", ".jsonl", ".ndjson") for packed in ("", ".gz"))
    found = []
    for path in given:
        if path.is_dir():
            below = sorted(path.rglob("*"))
            found += [p for p in below if p.is_file() and p.name.lower().endswith(endings) and p.name[0] != "."]
        else:
            found.append(path)
    return found


def _line(result: "ImportResult") -> str:
    if result.known:
        return f"{result.file}: imported before"
    days = result.days[0] if len(result.days) == 1 else f"{len(result.days)} days"
    trouble = f"; {result.trouble}" if result.trouble else ""
    rows = f"{result.snapshots:,} snapshots, {result.strikes:,} strikes"
    return f"{result.file}: {rows}, {days}, {result.seconds:.1f} s{trouble}"
