"""gex-bridge doctor: is everything in place?  A line for each thing, and what to do where it is not.

No value of a secret setting is printed, nor any part of an address but host
and port.
"""

import argparse
import datetime
import json
import os
import pathlib
import socket
import sys
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlsplit

from data_pipeline import config
from data_pipeline.operations import holders, local_http

if TYPE_CHECKING:
    from data_pipeline.integrations.outgoing import Reply

HELP = "look at settings, port, disk, database, clock and services, and say what to do"

TIME_LIMIT = 5.0  # s, for each call to a service
SKEW = 60.0  # s that this clock may differ from a service's
BUILT = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)  # no clock that is right shows a time before


class Line(NamedTuple):
    """state: ok, note (works, but somebody may have wanted more) or FAIL; todo: what to do about it."""

    state: str
    about: str
    found: str
    todo: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("--json", action="store_true", help="the lines as JSON")
    config.add_flags(parser, only=("host", "port", "DATA_DIR"))


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    """Do it; returns the exit code.  Raises BridgeError."""
    replies: list[Reply] = []  # of services, for their clocks
    lines: list[Line] = []
    looks = (
        _settings,
        _download_command,
        _port,
        _data_folder,
        _disk,
        _database,
        lambda s: _gexbot(s, replies),
        lambda s: _discord(s, replies),
        _dashboard,
        lambda s: _clock(s, replies),
    )
    for look in looks:
        new = look(settings)
        lines += new
        if not args.json:
            print("\n".join(map(_text, new)), flush=True)
    failed = sum(line.state == "FAIL" for line in lines)
    if args.json:
        print(json.dumps({"well": not failed, "lines": [line._asdict() for line in lines]}, indent=2))
    if failed:
        print(f"gex-bridge doctor: {failed} of {len(lines)} need something to be done", file=sys.stderr)
    return 1 if failed else 0


def _text(line: Line) -> str:
    return f"{line.state:<5} {line.about:<10} {line.found}" + (f"\n{'':17}-> {line.todo}" if line.todo else "")


def _settings(settings: config.Settings) -> list[Line]:
    given = [s.name for s in config.SETTINGS if s.env and os.environ.get(s.name)]
    where = (
        ".env and environment"
        if (settings.root / ".env").is_file()
        else f"environment (there is no .env in {settings.root})"
    )
    return [Line("ok", "settings", f"from {where}: {', '.join(given) or 'none'}")]


def _download_command(settings: config.Settings) -> list[Line]:
    from data_pipeline.history.command import Template

    if not settings.history_download_command:
        return [Line("ok", "download", "HISTORY_DOWNLOAD_COMMAND is not set: the built-in importer does it")]
    try:
        Template.parse(settings.history_download_command)
    except config.ConfigError as problem:
        return [
            Line(
                "FAIL", "download", str(problem), "correct HISTORY_DOWNLOAD_COMMAND; the server does not start with it"
            )
        ]
    return [Line("ok", "download", "HISTORY_DOWNLOAD_COMMAND is a command in which no value can leave its place")]


def _port(settings: config.Settings) -> list[Line]:
    where = f"{settings.host}:{settings.port}"
    try:
        status, server, _ = local_http.get(local_http.base_url(settings.host, settings.port), "/health")
    except ConnectionRefusedError:
        return [_free_port(settings, where)]
    except OSError as problem:
        if not isinstance(problem, socket.gaierror) and _free_port(settings, where).state == "ok":
            return [Line("ok", "port", f"{where} is free")]
        return [
            Line(
                "FAIL",
                "port",
                f"{where}: {problem}",
                f"see who has it: ss -ltnp 'sport = {settings.port}'; or choose another --port",
            )
        ]
    if server.startswith("GEXBridge/") and status == 200:
        return [Line("ok", "port", f"a bridge answers on {where}: gex-bridge status shows how it is")]
    if server.startswith("GEXBridge/") and status == 404:
        return [Line("FAIL", "port", f"an older bridge answers on {where}", "stop it before this one starts")]
    if server.startswith("GEXBridge/"):
        found = f"a bridge answers on {where}, but with HTTP {status} to /health"
        return [Line("FAIL", "port", found, "see its log, or ask again")]
    return [
        Line(
            "FAIL",
            "port",
            f"another program answers on {where}",
            f"see which: ss -ltnp 'sport = {settings.port}'; or choose another --port",
        )
    ]


def _free_port(settings: config.Settings, where: str) -> Line:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((settings.host, settings.port))
    except OSError as problem:
        return Line("FAIL", "port", f"{where}: {problem.strerror or problem}", "choose another --host or --port")
    return Line("ok", "port", f"{where} is free")


def _data_folder(settings: config.Settings) -> list[Line]:
    folder: pathlib.Path = settings.data_dir
    at = next(p for p in (folder, *folder.parents) if p.exists())
    if not at.is_dir() or not os.access(at, os.W_OK | os.X_OK):
        return [
            Line(
                "FAIL",
                "data",
                f"{at} cannot be written by you",
                f"chown it, or run as its owner, {_owner(at)}; or set DATA_DIR",
            )
        ]
    if holders.bridge_running(folder):
        return [Line("ok", "data", f"{folder}, where a bridge runs")]
    return [Line("ok", "data", f"{folder}" + ("" if at == folder else ", which will be made"))]


def _owner(path: pathlib.Path) -> str:
    try:
        return path.owner()
    except KeyError:
        return str(path.stat().st_uid)


def _disk(settings: config.Settings) -> list[Line]:
    at = next(p for p in (settings.data_dir, *settings.data_dir.parents) if p.exists())
    found = os.statvfs(at)
    free = found.f_bavail * found.f_frsize
    text = f"{free / 1e9:.1f} GB free"
    if found.f_files and not found.f_favail:
        return [Line("FAIL", "disk", f"{text}, but no inodes", "remove small files on that file system")]
    if free < settings.min_free_bytes:
        return [
            Line(
                "FAIL",
                "disk",
                f"{text}, less than MIN_FREE_BYTES ({settings.min_free_bytes})",
                "make room, or move DATA_DIR",
            )
        ]
    return [Line("ok", "disk", text)]


def _database(settings: config.Settings) -> list[Line]:
    from data_pipeline.repository import foreign_file

    path = settings.database
    if not path.exists():
        return [Line("ok", "database", "not there yet; the first payload makes it")]
    try:
        foreign_file.refuse_foreign_file(path)
    except (foreign_file.NotADatabase, OSError) as problem:
        return [Line("FAIL", "database", str(problem), "the server does not start with it")]
    lines = []
    for pid in holders.holders(path):
        command = holders.command_of(pid)
        if "data_pipeline.writer" in command:
            lines.append(Line("ok", "database", f"the bridge's own writer has it at this moment (process {pid})"))
        else:
            todo = f"close it when the rows are wanted: until then they wait in the journal (kill {pid} if it hangs)"
            lines.append(Line("note", "database", f"process {pid} has it open: {command or 'of another user'}", todo))
    return lines or [Line("ok", "database", f"{path.stat().st_size / 1e6:.1f} MB, and nobody has it open")]


def _gexbot(settings: config.Settings, replies: "list[Reply]") -> list[Line]:
    from data_pipeline.integrations import outgoing
    from data_pipeline.integrations.gexbot import GexBotClient

    if not settings.gexbot_api_key:
        return [
            Line(
                "note", "key", "GEXBOT_API_KEY is not set: nothing is polled", "set it in .env if the bridge is to poll"
            )
        ]
    client = GexBotClient(settings.gexbot_api_key, settings.gexbot_api_url)
    session = outgoing.session(f"Bearer {settings.gexbot_api_key}", {})
    try:
        reply = outgoing.call(
            session, "GET", client.address("SPX"), TIME_LIMIT, params={"key": settings.gexbot_api_key}
        )
    except outgoing.WebError as problem:
        return [
            Line(
                "FAIL",
                "GEXBot",
                f"{_place(settings.gexbot_api_url)}: {problem}",
                "see to the network, or GEXBOT_API_URL",
            )
        ]
    finally:
        session.close()
    replies.append(reply)
    return [_judge("GEXBot", settings.gexbot_api_url, reply.status, "GEXBOT_API_KEY")]


def _discord(settings: config.Settings, replies: "list[Reply]") -> list[Line]:
    from data_pipeline.integrations import outgoing

    if not settings.discord_bot_token:
        return [
            Line(
                "note",
                "Discord",
                "DISCORD_BOT_TOKEN is not set: nothing is posted",
                "set it in .env if trades are to be posted",
            )
        ]
    channel = settings.alt_channel_option_trades or settings.discord_channel_id
    asked = [("/users/@me", "DISCORD_BOT_TOKEN")]
    if channel:
        name = "ALT_CHANNEL_OPTION_TRADES" if settings.alt_channel_option_trades else "DISCORD_CHANNEL_ID"
        asked.append((f"/channels/{quote(channel, safe='')}", name))
    session, lines = outgoing.session(f"Bot {settings.discord_bot_token}", {}), []
    try:
        for path, setting in asked:
            reply = outgoing.call(session, "GET", settings.discord_api_url + path, TIME_LIMIT, allow_redirects=False)
            replies.append(reply)
            lines.append(_judge("Discord", settings.discord_api_url, reply.status, setting))
    except outgoing.WebError as problem:
        lines.append(
            Line(
                "FAIL",
                "Discord",
                f"{_place(settings.discord_api_url)}: {problem}",
                "see to the network, or DISCORD_API_URL",
            )
        )
    finally:
        session.close()
    if not channel:
        lines.append(
            Line("FAIL", "Discord", "no channel is set", "set ALT_CHANNEL_OPTION_TRADES or DISCORD_CHANNEL_ID")
        )
    return lines


def _judge(about: str, url: str, status: int, setting: str) -> Line:
    """What an answer says of the service and of the setting that was tried on it."""
    if status == 200:
        return Line("ok", about, f"{_place(url)} answers and takes {setting}")
    if status in (401, 403, 404):
        return Line(
            "FAIL",
            about,
            f"{_place(url)} refuses {setting} (HTTP {status})",
            f"correct {setting}, or what it is allowed to do",
        )
    if status == 429:
        return Line(
            "note", about, f"{_place(url)} answers, but has been asked too often", "wait, or raise --poll-interval"
        )
    return Line(
        "FAIL", about, f"{_place(url)} answers with HTTP {status}", "try again later; what comes meanwhile is kept"
    )


def _dashboard(settings: config.Settings) -> list[Line]:
    parts = urlsplit(settings.dashboard_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), 2.0).close()
    except OSError as problem:
        found = f"{_place(settings.dashboard_url)}: {problem.strerror or problem}"
        return [
            Line(
                "note",
                "dashboard",
                found,
                "history links are queued here as long as it is not there; else see to DASHBOARD_URL",
            )
        ]
    return [Line("ok", "dashboard", f"something listens on {_place(settings.dashboard_url)}")]


def _place(url: str) -> str:
    """Host and port of an address, without the rest, in which a password may stand."""
    parts = urlsplit(url)
    return (parts.hostname or "") + (f":{parts.port}" if parts.port else "")


def _clock(settings: config.Settings, replies: "list[Reply]") -> list[Line]:
    todo = "set the clock, best by a time service (timedatectl set-ntp true): rows and files carry its time"
    now = datetime.datetime.now(datetime.UTC)
    if now < BUILT:
        return [Line("FAIL", "clock", f"shows {now:%Y-%m-%d}", todo)]
    latest = settings.folder.latest
    if latest.exists() and latest.stat().st_mtime > now.timestamp() + SKEW:
        return [Line("FAIL", "clock", f"shows {now:%Y-%m-%d %H:%M:%S} UTC, before the time of {latest.name}", todo)]
    for reply in replies:
        try:
            skew = (now - parsedate_to_datetime(reply.headers.get("Date") or "")).total_seconds()
        except (TypeError, ValueError):
            continue
        if abs(skew) > SKEW:
            return [
                Line("FAIL", "clock", f"{abs(skew):.0f} s {'after' if skew > 0 else 'behind'} that of a service", todo)
            ]
        return [Line("ok", "clock", f"{now:%Y-%m-%d %H:%M:%S} UTC, as the services have it")]
    return [Line("ok", "clock", f"{now:%Y-%m-%d %H:%M:%S} UTC; no service was there to compare")]
