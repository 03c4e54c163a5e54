"""Settings: one table, from which flags, environment, --help and the README come.

A setting comes from its flag, else from the process environment, else from
`.env` in the project root, else it has its default.  A value that does not
fit is refused with one line that names it (`ConfigError`); an empty
environment variable counts as absent.
"""

import argparse
import difflib
import os
import pathlib
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from dotenv import dotenv_values, load_dotenv

from data_pipeline import BridgeError


class ConfigError(BridgeError):
    """A setting that cannot be used; the text is one line for the operator."""

    exit_code = 2


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    name: the environment variable, or the flag without dashes where `env` is
    False; kind: one of the keys of `PARSERS`; unit and why are for readers;
    low and high bound a number; secret values are never shown.
    """

    name: str
    kind: str
    default: object
    unit: str
    why: str
    env: bool = True
    flag: bool = False
    low: float | None = None
    high: float | None = None
    secret: bool = False

    @property
    def attribute(self) -> str:
        return self.name.lower().replace("-", "_")

    @property
    def option(self) -> str:
        return "--" + self.attribute.replace("_", "-")


SETTINGS = (
    Setting("host", "text", "127.0.0.1", "", "address to listen on", env=False, flag=True),
    Setting("port", "int", 8877, "", "port to listen on; 0 takes a free one", env=False, flag=True, low=0, high=65535),
    Setting("debug", "bool", False, "", "log at DEBUG, payloads included", env=False, flag=True),
    Setting(
        "poll-interval",
        "number",
        60,
        "s",
        "pause between two rounds of the GEXBot poller",
        env=False,
        flag=True,
        low=0.05,
    ),
    Setting("DATA_DIR", "path", "data", "", "where everything is kept; relative to the project root", flag=True),
    Setting("GEXBOT_API_KEY", "text", "", "", "key of the GEXBot API; without it nothing is polled", secret=True),
    Setting("GEXBOT_API_URL", "url", "https://api.gexbot.com", "", "GEXBot API, or https://api.gex.bot/v2"),
    Setting(
        "GEX_STATUS_SYMBOLS",
        "list",
        "",
        "",
        "symbols whose status file is refreshed, comma-separated; needs the API key",
    ),
    Setting(
        "GEXBOT_SYMBOLS", "symbols", "NQ_NDX,ES_SPX,SPY,QQQ,SPX,NDX", "", "symbols that are polled, comma-separated"
    ),
    Setting("GEXBOT_CATEGORIES", "categories", "zero", "", "which of the chains zero, one and full are polled"),
    Setting("POLL_HOURS", "hours", "always", "", "poll always, or in the regular trading hours of New York only: rth"),
    Setting(
        "VALUES",
        "values",
        "original",
        "",
        "rows and views combine payloads as the original, or have each payload's own time and values: own",
    ),
    Setting("UW_FRAMES", "bool", False, "", "POST /uw also takes a socket's frames, which are JSON arrays"),
    Setting("MAX_TICKERS", "int", 2000, "", "tickers held at once; over it one silent for a day goes, or 400", low=1),
    Setting("DASHBOARD_URL", "url", "http://127.0.0.1:5801", "", "dashboard that is offered each history link first"),
    Setting(
        "HISTORY_DOWNLOAD_COMMAND",
        "text",
        "",
        "",
        "shell command run for each queued link, with {id} {url} {ticker} {endpoint}; unset: the built-in importer",
    ),
    Setting(
        "HISTORY_ALLOWED_HOSTS",
        "list",
        "hist.gex.bot,hist.gexbot.com",
        "",
        "hosts, with their subdomains, that history may be fetched from; * allows all public ones",
    ),
    Setting("HISTORY_MAX_BYTES", "int", 4 << 30, "bytes", "largest history file that is fetched", low=1),
    Setting(
        "ARCHIVE_AFTER_DAYS",
        "int",
        0,
        "days",
        "move days older than this from the live tables to the lake each night; 0 is off",
        low=0,
        high=36500,
    ),
    Setting(
        "DISCORD_BOT_TOKEN", "text", "", "", "token of the Discord bot; else the one in discord-bot/.env", secret=True
    ),
    Setting("DISCORD_CHANNEL_ID", "text", "", "", "default Discord channel"),
    Setting("ALT_CHANNEL_OPTION_TRADES", "text", "", "", "Discord channel for option trades, before the default one"),
    Setting("DISCORD_DM_USER_ID", "text", "", "", "Discord user who gets a short direct message as well"),
    Setting("DISCORD_API_URL", "url", "https://discord.com/api/v10", "", "Discord API"),
    Setting(
        "LOAD_INTERVAL",
        "number",
        0.5,
        "s",
        "least time between two loads of the journal into the database",
        low=0.01,
        high=3600,
    ),
    Setting("HTTP_WORKERS", "int", 32, "threads", "requests that are worked on at once", low=1, high=1024),
    Setting(
        "MAX_CONNECTIONS",
        "int",
        1000,
        "",
        "unfinished connections held at once; over it the oldest goes",
        low=1,
        high=100000,
    ),
    Setting("MAX_BODY_BYTES", "int", 32 << 20, "bytes", "largest request body; over it 413", low=1),
    Setting("HEAD_TIMEOUT", "number", 10, "s", "time for a whole request head; over it 408", low=0.01),
    Setting("BODY_TIMEOUT", "number", 30, "s", "time for a whole request body; over it 408", low=0.01),
    Setting(
        "STOP_TIMEOUT", "number", 4, "s", "time to flush everything at exit; what is left stays in the journal", low=0.1
    ),
    Setting(
        "ALLOWED_HOSTS", "list", "", "", "names, besides IP addresses and localhost, that GET requests may use as Host"
    ),
    Setting("MIN_FREE_BYTES", "int", 512 << 20, "bytes", "free space under which GET /ready says 503", low=0),
    Setting(
        "MAX_LAG",
        "number",
        300,
        "s",
        "age of the oldest record not yet in the database over which GET /ready says 503",
        low=0.1,
    ),
    Setting("LOG_JSON", "bool", False, "", "one JSON object a log line", flag=True),
)


def _number(text: str) -> float | int:
    value = float(text)
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError
    return int(value) if value.is_integer() else value


def _bool(text: str) -> bool:
    return {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}[
        text.lower()
    ]


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError
    parts.port  # raises ValueError for a port that is none
    return text.rstrip("/")


def _one_of(*known: str):
    """A parser of one of these words, and what it takes."""
    return f"one of {', '.join(known)}", lambda text: {word: word for word in known}[text]


def _some_of(*known: str):
    """A parser of one or more of these words, comma-separated, and what it takes."""

    def parse(text: str) -> tuple[str, ...]:
        words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
        if not words or not set(words) <= set(known):
            raise ValueError
        return words

    return f"one or more of {', '.join(known)}", parse


def _symbols(text: str) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words or not all(re.fullmatch(r"[A-Z][A-Z0-9_.]{0,15}", word) for word in words):
        raise ValueError
    return words


# kind -> (what a value must be, text -> value)
PARSERS = {
    "values": _one_of("original", "own"),
    "hours": _one_of("always", "rth"),
    "categories": _some_of("zero", "one", "full"),
    "symbols": ("symbols as the GEXBot API spells them, comma-separated", _symbols),
    "text": ("text", str),
    "int": ("a whole number", int),
    "number": ("a number", _number),
    "bool": ("one of 1, 0, true, false, yes, no, on, off", _bool),
    "path": ("a path", str),
    "url": ("an http:// or https:// address without a query", _url),
    "list": ("a comma-separated list", lambda text: tuple(p.strip() for p in text.split(",") if p.strip())),
}


def _value(setting: Setting, text: str, shown_as: str):
    must, parse = PARSERS[setting.kind]
    try:
        value = parse(text)
        if setting.low is not None and value < setting.low or setting.high is not None and value > setting.high:
            raise ValueError
    except (ValueError, KeyError):
        low = "" if setting.low is None else f", at least {setting.low:g}"
        high = "" if setting.high is None else f", at most {setting.high:g}"
        shown = "the value given" if setting.secret else repr(text)
        raise ConfigError(f"{shown_as} must be {must}{low}{high}, not {shown}") from None
    return value


class Settings(argparse.Namespace):
    """Every setting of the table as an attribute (lower case), and `root`, the project root."""

    root: pathlib.Path

    @property
    def database(self) -> pathlib.Path:
        return self.data_dir / "raw" / "gex" / "gex_history.duckdb"


def project_root() -> pathlib.Path:
    """The folder of `run_server.py` in a checkout, else the working directory."""
    beside = pathlib.Path(__file__).resolve().parent.parent
    return beside if (beside / "run_server.py").is_file() else pathlib.Path.cwd()


def add_flags(parser: argparse.ArgumentParser, only: tuple[str, ...] = ()) -> None:
    """Add a flag for each setting that has one, or for the named ones; values stay text until `load`."""
    for setting in SETTINGS:
        if not setting.flag or only and setting.name not in only:
            continue
        shown = (
            f" (default: {setting.default}{setting.unit and ' ' + setting.unit})"
            if setting.default not in ("", False)
            else ""
        )
        kwargs = {"dest": setting.attribute, "help": setting.why + shown, "default": None}
        if setting.kind == "bool":
            parser.add_argument(setting.option, action="store_const", const="1", **kwargs)
        else:
            parser.add_argument(setting.option, metavar=setting.kind.upper(), **kwargs)


def environment_help() -> str:
    """The table as text, for --help."""
    lines = ["environment (also read from .env in the project root):"]
    for s in SETTINGS:
        if s.env:
            default = "" if s.default in ("", False) else f" [{s.default}{s.unit and ' ' + s.unit}]"
            lines.append(f"  {s.name:<26} {s.why}{default}")
    return "\n".join(lines)


def load(flags: argparse.Namespace | None = None, root: pathlib.Path | None = None, environ=os.environ) -> Settings:
    """Read every setting; `.env` is loaded into the process environment first.

    Raises ConfigError with one line that names the setting.
    """
    root = root or project_root()
    env_file = root / ".env"
    _refuse_misspelt(env_file)
    if environ is os.environ:
        load_dotenv(env_file, override=False)
    settings = Settings(root=root)
    for s in SETTINGS:
        text, shown_as = getattr(flags, s.attribute, None) if s.flag else None, s.option
        if text is None and s.env:
            text, shown_as = environ.get(s.name) or None, s.name
        if text is None:
            text = str(s.default)
        setattr(settings, s.attribute, _value(s, text, shown_as))
    settings.data_dir = (root / os.path.expanduser(settings.data_dir)).resolve()
    if settings.gex_status_symbols and not settings.gexbot_api_key:
        raise ConfigError("GEX_STATUS_SYMBOLS needs GEXBOT_API_KEY")
    if not settings.discord_bot_token:
        settings.discord_bot_token = dotenv_values(root / "discord-bot" / ".env").get("DISCORD_BOT_TOKEN") or ""
    return settings


def _refuse_misspelt(env_file: pathlib.Path) -> None:
    """A name in `.env` that is nearly a setting would silently do nothing."""
    names = [s.name for s in SETTINGS if s.env]
    for name in dotenv_values(env_file):
        near = difflib.get_close_matches(name, names, 1, 0.92)
        if near and name not in names:
            raise ConfigError(f"{env_file.name}: unknown setting {name!r}; did you mean {near[0]}?")
