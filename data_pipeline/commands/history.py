"""`gex-bridge history`: the queue of history links; retry a job, run one now."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from data_pipeline import BridgeError, config

if TYPE_CHECKING:
    from data_pipeline.history.queue import HistoryQueue

HELP = "show the queue of history links, retry a job or run it now"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--retry", type=int, metavar="ID", help="make a job pending again, with all its attempts")
    what.add_argument("--run", type=int, metavar="ID", help="download and import a job here and now")
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    config.add_flags(parser, only=("DATA_DIR",))


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    """Do it; returns the exit code.  Raises BridgeError."""
    from data_pipeline.history.queue import HistoryQueue
    from data_pipeline.operations.one_line import one_line
    from data_pipeline.repository.foreign_file import refuse_foreign_file

    if not settings.database.exists():
        return _print(args, [], "no queue yet")
    refuse_foreign_file(settings.database)
    queue = HistoryQueue(settings.database)
    asked = args.retry if args.retry is not None else args.run
    with one_line():
        if asked is not None and not (queue.retry(asked) if args.run is None else _run_now(queue, asked, settings)):
            raise BridgeError(f"no job {asked} in the queue")
        rows = queue.rows()
    rows = [row for row in rows if asked is None or row["id"] == asked]
    code = _print(args, rows, "the queue is empty")
    given = [str(row["id"]) for row in rows if row["status"] == "started"]
    if settings.history_download_command and given:
        said = "the download command was given, and never asked again"
        print(f"gex-bridge: started: {said}: {', '.join(given)}; --retry ID makes one pending", file=sys.stderr)
    return 1 if args.run is not None and rows[0]["status"] != "completed" else code


def _run_now(queue: "HistoryQueue", job_id: int, settings: config.Settings) -> bool:
    from data_pipeline.history.importer import HistoryImporter

    job = queue.start(job_id)
    if job is None:
        return False
    HistoryImporter(
        queue,
        settings.data_dir,
        settings.history_allowed_hosts,
        settings.history_max_bytes,
        api_key=settings.gexbot_api_key,
    ).work(job)
    return True


def _print(args: argparse.Namespace, rows: list[dict[str, Any]], nothing: str) -> int:
    rows = [{**row, "url": _without_query(row["url"])} for row in rows]
    if args.json:
        print(json.dumps(rows))
        return 0
    if not rows:
        print(f"gex-bridge: {nothing}", file=sys.stderr)
    for row in rows:
        error = f"  {ascii(row['last_error'])}" if row["last_error"] else ""
        print(
            f"{row['id']:>6}  {row['status']:<9}  {row['attempts']}  {row['updated_at']}"
            f"  {ascii(row['ticker'])[1:-1]} {ascii(row['endpoint'])[1:-1]}  {ascii(row['url'])[1:-1]}{error}"
        )
    return 0


def _without_query(url: str) -> str:
    """An address as it may be shown: what follows the `?` may be a signature."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return "(not an address)"
    port = f":{parts.netloc.rsplit(':', 1)[1]}" if parts.netloc.rpartition("@")[2].count(":") == 1 else ""
    return f"{parts.scheme}://{host}{port}{parts.path}" + ("?…" if parts.query else "") if host else url.split("?")[0]
