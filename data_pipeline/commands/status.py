"""gex-bridge status: what a running server says of itself, or what the files say when none runs."""

import argparse
import json
import pathlib
import sys
from contextlib import suppress
from typing import Any

from data_pipeline import BridgeError, config
from data_pipeline.operations import local_http

HELP = "show how the running server is, or what the files say when none runs"

MOST_TICKERS = 20  # lines, without --json
FILES = ("files", "depth")  # the readers that note how far they are
DATABASE_WAIT = 5.0  # s for which a database that is in use is tried


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("--url", help="the server's address (default: http:// HOST : PORT)")
    parser.add_argument("--json", action="store_true", help="all of it as one JSON object")
    config.add_flags(parser, only=("host", "port", "DATA_DIR"))


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    """Do it; returns the exit code.  Raises BridgeError."""
    if args.url and not args.url.startswith(("http://", "https://")):
        raise config.ConfigError("--url must begin with http:// or https://")
    url = args.url or local_http.base_url(settings.host, settings.port)
    try:
        found = _of_server(url)
    except (OSError, ValueError) as problem:
        said = f"no bridge answers at {url}: {problem}"
        if args.url:
            raise BridgeError(said) from problem
        print(f"gex-bridge: {said}", file=sys.stderr)
        return _show_files(args, settings)
    print(json.dumps(found, indent=2) if args.json else _server_text(url, found))
    return 0 if found["ready"] else 1


def _of_server(url: str) -> dict[str, Any]:
    """Raises OSError and ValueError where there is none, or something else."""
    status, _, body = local_http.get(url, "/status")
    if status == 421:
        raise ValueError("it refuses that name; use its IP address, or put the name into ALLOWED_HOSTS")
    if status != 200:
        raise ValueError(f"HTTP {status}")
    found = json.loads(body)
    if not isinstance(found, dict) or not {"version", "ready", "journal"} <= found.keys():
        raise ValueError("its answer is not a bridge's")
    return found


def _show_files(args: argparse.Namespace, settings: config.Settings) -> int:
    from data_pipeline.operations.holders import bridge_running

    if not settings.data_dir.is_dir():
        raise BridgeError(f"there is no folder {settings.data_dir}")
    running = bridge_running(settings.data_dir)
    if running:
        print(f"gex-bridge: but one runs on {settings.data_dir}: try --port or --url", file=sys.stderr)
    found = {"data_dir": str(settings.data_dir), "running": running, **_of_files(settings)}
    print(json.dumps(found, indent=2) if args.json else _text(found))
    return 0


def _of_files(settings: config.Settings) -> dict[str, Any]:
    from data_pipeline.repository import journal, segments

    folder = settings.folder.journal
    found = segments.list_segments(folder)
    journal_id, end, _ = journal.find_end(folder)
    latest = None
    with suppress(OSError, ValueError, AttributeError):
        latest = len(json.loads(settings.folder.latest.read_bytes()).keys())
    aside = settings.folder.set_aside
    return {
        "journal": {"position": end, "segments": len(found), "bytes": sum(path.stat().st_size for path in found)},
        "files": {name: _noted(journal.read_notes(folder).get(f"{name}.position"), journal_id) for name in FILES},
        "latest": {"tickers": latest},
        "tables": _tables(settings.database, journal_id),
        "set_aside": aside.read_bytes().count(b"\n") if aside.exists() else 0,
    }


def _noted(note: tuple[str, int] | None, journal_id: str) -> int | None:
    """How far a reader of the journal is; None where its note does not say."""
    return None if note is None else note[1] if note[0] == journal_id else 0


def _tables(path: pathlib.Path, journal_id: str) -> dict[str, Any]:
    """Rows by table and the last record that is in them, or why they cannot be read."""
    if not path.exists():
        return {}
    # Imported here: it is heavy.
    import duckdb

    from data_pipeline.repository import database, foreign_file, schema

    try:
        with database.Database(path).reading(DATABASE_WAIT) as con:
            rows = {t: con.execute(f"SELECT count(*) FROM {t}").fetchall()[0][0] for t in schema.TABLES}
            return {"position": database.position(con, journal_id), **rows}
    except (duckdb.Error, database.DatabaseBusy, database.DatabaseDamaged, foreign_file.NotADatabase) as problem:
        return {"unreadable": database.first_line(problem)}


def _server_text(url: str, found: dict[str, Any]) -> str:
    head = f"gex-bridge {found['version']} at {url}, up {_time(found['uptime_seconds'])}: "
    head += "ready" if found["ready"] else "NOT READY"
    problems = [f"problem   {ascii(problem)[1:-1]}" for problem in found["problems"]]
    parts = {k: v for k, v in found.items() if k not in ("version", "uptime_seconds", "ready", "problems", "tickers")}
    tickers = [
        f"ticker    {ascii(name)[1:-1]:<12} {t['kind']:<10} {ascii(t['endpoint'] or '')[1:-1]:<16}"
        + ("before the last start" if t["age_seconds"] is None else f"{_time(t['age_seconds'])} ago")
        for name, t in list(found["tickers"].items())[:MOST_TICKERS]
    ]
    return "\n".join([head, *problems, _text(parts), *tickers])


def _text(parts: dict[str, Any]) -> str:
    lines = []
    for name, value in parts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {_value(one)}" for key, one in value.items())
        lines.append(f"{name:<9} {_value(value)}".rstrip())
    return "\n".join(lines)


def _value(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}: {_value(one)}" for key, one in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}"
    return ascii(value)[1:-1] if isinstance(value, str) else "-" if value is None else str(value)


def _time(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
