"""Settings: one table, from which flags, environment, --help and the README come; and where things lie in DATA_DIR.

A setting comes from its flag, else from the process environment, else from
`.env` in the project root, else it has its default.  A value that does not
fit is refused with one line that names it (`ConfigError`); an empty
environment variable counts as absent.
"""

import argparse
import dataclasses
import difflib
import json
import logging
import os
import pathlib
import re
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from dotenv import dotenv_values, load_dotenv

from data_pipeline import BridgeError

log = logging.getLogger("webhook")

Parse = Callable[[str], Any]


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
        """The field of `Settings`."""
        return self.name.lower().replace("-", "_")

    @property
    def option(self) -> str:
        """The flag, with its dashes."""
        return "--" + self.attribute.replace("_", "-")


def _setting(default: object, unit: str, why: str, **more: Any) -> Any:
    """A field of `Settings` that is a row of the table; its name is the field's, its kind the type's, or given."""
    return dataclasses.field(metadata={"row": {"default": default, "unit": unit, "why": why, **more}})


@dataclass(frozen=True)
class DataFolder:
    """Where everything lies below DATA_DIR; `root` is DATA_DIR itself."""

    # Relative to it, as the growing files are named in their notes.
    SPOT_SERIES = "raw/gex/spot_series.jsonl"
    DEPTH = "depth"
    DEAD_LETTERS = "depth/dead-letter.jsonl"
    LEVELS = "levels"

    DATABASE = "gex_history.duckdb"  # its name

    root: pathlib.Path

    @property
    def raw(self) -> pathlib.Path:
        """The database, latest.json and the spot series."""
        return self.root / "raw" / "gex"

    @property
    def database(self) -> pathlib.Path:
        """The DuckDB file."""
        return self.raw / self.DATABASE

    @property
    def latest(self) -> pathlib.Path:
        """The whole store as one file."""
        return self.raw / "latest.json"

    @property
    def spot_series(self) -> pathlib.Path:
        """A line for each `/gex` payload that has a spot and a time."""
        return self.root / self.SPOT_SERIES

    @property
    def views(self) -> pathlib.Path:
        """A folder a ticker, and the status files."""
        return self.root / "gex"

    @property
    def depth(self) -> pathlib.Path:
        """A folder a ticker: a line for each `/gex` payload, by day."""
        return self.root / self.DEPTH

    @property
    def dead_letters(self) -> pathlib.Path:
        """Depth lines that could not be written where they belong."""
        return self.root / self.DEAD_LETTERS

    @property
    def levels(self) -> pathlib.Path:
        """A folder a ticker and endpoint: numbers and strikes by day of New York."""
        return self.root / self.LEVELS

    @property
    def journal(self) -> pathlib.Path:
        """The journal's segments, and how far its readers are."""
        return self.root / "journal"

    @property
    def set_aside(self) -> pathlib.Path:
        """Records that could not be used, whole, each with the reason."""
        return self.journal / "set-aside.jsonl"

    @property
    def lake(self) -> pathlib.Path:
        """Days as Parquet files."""
        return self.root / "lake"

    @property
    def source(self) -> pathlib.Path:
        """History files as they were fetched."""
        return self.root / "source" / "gexbot"


@dataclass(frozen=True)
class Settings:
    """Every setting, one field each; what stands in a field's `_setting` is its row of the table.

    root: the project root, in which `.env` lies.
    """

    root: pathlib.Path
    host: str = _setting("127.0.0.1", "", "address to listen on", env=False, flag=True)
    port: int = _setting(8877, "", "port to listen on; 0 takes a free one", env=False, flag=True, low=0, high=65535)
    debug: bool = _setting(False, "", "log at DEBUG, payloads included", env=False, flag=True)
    poll_interval: float = _setting(
        60, "s", "pause between two rounds of the GEXBot poller", env=False, flag=True, low=0.05
    )
    data_dir: pathlib.Path = _setting("data", "", "where everything is kept; relative to the project root", flag=True)
    gexbot_api_key: str = _setting("", "", "key of the GEXBot API; without it nothing is polled", secret=True)
    gexbot_api_url: str = _setting("https://api.gexbot.com", "", "GEXBot API, or https://api.gex.bot/v2", kind="url")
    gex_status_symbols: tuple[str, ...] = _setting(
        "", "", "symbols whose status file is refreshed, comma-separated; needs the API key"
    )
    gexbot_symbols: tuple[str, ...] = _setting(
        "NQ_NDX,ES_SPX,SPY,QQQ,SPX,NDX", "", "symbols that are polled, comma-separated", kind="symbols"
    )
    gexbot_categories: tuple[str, ...] = _setting(
        "zero", "", "which of the chains zero, one and full are polled", kind="categories"
    )
    poll_hours: str = _setting(
        "always", "", "poll always, or in the regular trading hours of New York only: rth", kind="hours"
    )
    values: str = _setting(
        "original",
        "",
        "rows and views combine payloads as the original, or have each payload's own time and values: own",
        kind="values",
    )
    uw_frames: bool = _setting(False, "", "POST /uw also takes a socket's frames, which are JSON arrays")
    max_tickers: int = _setting(2000, "", "tickers held at once; over it one silent for a day goes, or 400", low=1)
    dashboard_url: str = _setting(
        "http://127.0.0.1:5801", "", "dashboard that is offered each history link first", kind="url"
    )
    history_download_command: str = _setting(
        "",
        "",
        "shell command run for each queued link, with {id} {url} {ticker} {endpoint}; unset: the built-in importer",
    )
    history_allowed_hosts: tuple[str, ...] = _setting(
        "hist.gex.bot,hist.gexbot.com,api.gex.bot,api.gexbot.com,nfagexbotresearch.blob.core.windows.net",
        "",
        "hosts, with their subdomains, that history may be fetched from; * allows all public ones",
    )
    history_max_bytes: int = _setting(4 << 30, "bytes", "largest history file that is fetched", low=1)
    archive_after_days: int = _setting(
        0, "days", "move days older than this from the live tables to the lake each night; 0 is off", low=0, high=36500
    )
    discord_bot_token: str = _setting("", "", "token of the Discord bot; else the one in discord-bot/.env", secret=True)
    discord_channel_id: str = _setting("", "", "default Discord channel")
    alt_channel_option_trades: str = _setting("", "", "Discord channel for option trades, before the default one")
    discord_dm_user_id: str = _setting("", "", "Discord user who gets a short direct message as well")
    discord_api_url: str = _setting("https://discord.com/api/v10", "", "Discord API", kind="url")
    load_interval: float = _setting(
        0.5, "s", "least time between two loads of the journal into the database", low=0.01, high=3600
    )
    http_workers: int = _setting(32, "threads", "requests that are worked on at once", low=1, high=1024)
    max_connections: int = _setting(
        1000, "", "unfinished connections held at once; over it the oldest goes", low=1, high=100000
    )
    max_body_bytes: int = _setting(4 << 20, "bytes", "largest request body; over it 413", low=1)
    head_timeout: float = _setting(10, "s", "time for a whole request head; over it 408", low=0.01)
    body_timeout: float = _setting(30, "s", "time for a whole request body; over it 408", low=0.01)
    stop_timeout: float = _setting(
        4, "s", "time to flush everything at exit; what is left stays in the journal", low=0.1
    )
    allowed_hosts: tuple[str, ...] = _setting(
        "", "", "names, besides IP addresses and localhost, that GET requests may use as Host"
    )
    api_token: str = _setting(
        "",
        "",
        "what opens the page and the API where --host is not this machine alone; without it they stay shut",
        secret=True,
    )
    allowed_origins: tuple[str, ...] = _setting(
        "*",
        "",
        "origins of web pages, such as https://www.gexbot.com, whose POST is taken; others get 403; * is all",
    )
    min_free_bytes: int = _setting(512 << 20, "bytes", "free space under which GET /ready says 503", low=0)
    max_lag: float = _setting(
        300, "s", "age of the oldest record not yet in database and files over which GET /ready says 503", low=0.1
    )
    log_json: bool = _setting(False, "", "one JSON object a log line", flag=True)
    log_level: str = _setting(
        "INFO", "", "least level of a line in the log: DEBUG, INFO, WARNING or ERROR; --debug wins", kind="level"
    )

    @property
    def folder(self) -> DataFolder:
        """Where everything lies in DATA_DIR."""
        return DataFolder(self.data_dir)

    @property
    def database(self) -> pathlib.Path:
        """The DuckDB file."""
        return self.folder.database

    @property
    def level(self) -> str:
        """The level of the log."""
        return "DEBUG" if self.debug else self.log_level

    def to_json(self) -> str:
        """One line that holds everything, secrets too: for a pipe to a child, never for a command line or a log."""
        return json.dumps(dataclasses.asdict(self), default=str)

    @classmethod
    def from_json(cls, line: str | bytes) -> "Settings":
        """What `to_json` of another process made."""
        values = json.loads(line)
        for field in dataclasses.fields(cls):
            if field.type is pathlib.Path:
                values[field.name] = pathlib.Path(values[field.name])
            elif field.type == tuple[str, ...]:
                values[field.name] = tuple(values[field.name])
        return cls(**values)


def _row(field: "dataclasses.Field[Any]") -> Setting:
    row = dict(field.metadata["row"])
    name = field.name.upper() if row.get("env", True) else field.name.replace("_", "-")
    kind = row.pop("kind", None) or KINDS[field.type]
    return Setting(name, kind, **row)


KINDS: dict[Any, str] = {
    str: "text",
    int: "int",
    float: "number",
    bool: "bool",
    pathlib.Path: "path",
    tuple[str, ...]: "list",
}
SETTINGS = tuple(_row(field) for field in dataclasses.fields(Settings) if "row" in field.metadata)


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
    _ = parts.port  # raises ValueError for a port that is none
    return text.rstrip("/")


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _words(text: str) -> tuple[str, ...]:
    """At least one, and none twice."""
    words = tuple(dict.fromkeys(_list(text)))
    if not words:
        raise ValueError
    return words


def _one_of(*known: str) -> tuple[str, Parse]:
    """A parser of one of these words, and what it takes."""
    return f"one of {', '.join(known)}", lambda text: {word: word for word in known}[text]


def _some_of(*known: str) -> tuple[str, Parse]:
    """A parser of one or more of these words, comma-separated, and what it takes."""
    by_word = {word: word for word in known}
    return f"one or more of {', '.join(known)}", lambda text: tuple(by_word[word] for word in _words(text))


def _symbols(text: str) -> tuple[str, ...]:
    words = _words(text)
    if not all(re.fullmatch(r"[A-Z][A-Z0-9_.]{0,15}", word) for word in words):
        raise ValueError
    return words


# kind -> (what a value must be, text -> value)
PARSERS: dict[str, tuple[str, Parse]] = {
    "text": ("text", str),
    "int": ("a whole number", int),
    "number": ("a number", _number),
    "bool": ("one of 1, 0, true, false, yes, no, on, off", _bool),
    "path": ("a path", pathlib.Path),
    "url": ("an http:// or https:// address without a query", _url),
    "list": ("a comma-separated list", _list),
    "level": _one_of("DEBUG", "INFO", "WARNING", "ERROR"),
    "values": _one_of("original", "own"),
    "hours": _one_of("always", "rth"),
    "categories": _some_of("zero", "one", "full"),
    "symbols": ("symbols as the GEXBot API spells them, comma-separated", _symbols),
}


def _value(setting: Setting, text: str, shown_as: str) -> Any:
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


def project_root() -> pathlib.Path:
    """The folder of `run_server.py` in a checkout, else the working directory."""
    beside = pathlib.Path(__file__).resolve().parent.parent
    return beside if (beside / "run_server.py").is_file() else pathlib.Path.cwd()


def _shown_default(setting: Setting) -> str:
    """With its unit; empty where there is nothing to show."""
    return "" if setting.default in ("", False) else f"{setting.default}{setting.unit and ' ' + setting.unit}"


def add_flags(parser: argparse.ArgumentParser, only: tuple[str, ...] = ()) -> None:
    """Add a flag for each setting that has one, or for the named ones; values stay text until `load`."""
    for setting in SETTINGS:
        if not setting.flag or only and setting.name not in only:
            continue
        default = _shown_default(setting)
        about = setting.why + (f" (default: {default})" if default else "")
        if setting.kind == "bool":
            parser.add_argument(setting.option, dest=setting.attribute, help=about, action="store_const", const="1")
        else:
            parser.add_argument(setting.option, dest=setting.attribute, help=about, metavar=setting.kind.upper())


def environment_help() -> str:
    """The table as text, for --help."""
    lines = ["environment (also read from .env in the project root):"]
    for s in SETTINGS:
        if s.env:
            default = _shown_default(s)
            lines.append(f"  {s.name:<26} {s.why}{default and f' [{default}]'}")
    return "\n".join(lines)


def load(
    flags: argparse.Namespace | None = None,
    root: pathlib.Path | None = None,
    environ: MutableMapping[str, str] = os.environ,
) -> Settings:
    """Read every setting; `.env` is loaded into the process environment first.

    Raises ConfigError with one line that names the setting.
    """
    root = root or project_root()
    _look_for_misspelt(_env_file(root / ".env", into_process=environ is os.environ))
    values: dict[str, Any] = {}
    for s in SETTINGS:
        text, shown_as = getattr(flags, s.attribute, None) if s.flag else None, s.option
        if text is None and s.env:
            text, shown_as = environ.get(s.name) or None, s.name
        values[s.attribute] = _value(s, str(s.default) if text is None else text, shown_as)
    values["data_dir"] = (root / values["data_dir"].expanduser()).resolve()
    if "?" in str(values["data_dir"]):
        # DuckDB takes what follows it for parameters, and opens another file.
        raise ConfigError(f"DATA_DIR must not hold a question mark: {str(values['data_dir'])!r}")
    if values["gex_status_symbols"] and not values["gexbot_api_key"]:
        raise ConfigError("GEX_STATUS_SYMBOLS needs GEXBOT_API_KEY")
    if not values["discord_bot_token"]:
        values["discord_bot_token"] = _env_file(root / "discord-bot" / ".env").get("DISCORD_BOT_TOKEN") or ""
    return Settings(root=root, **values)


def _env_file(path: pathlib.Path, into_process: bool = False) -> dict[str, str | None]:
    """What an environment file says; nothing where there is none.  Raises ConfigError where it is no UTF-8 text."""
    try:
        found = dotenv_values(path, encoding="utf-8-sig")
        if any("\0" in name for name in found):
            raise ValueError
        if into_process:
            load_dotenv(path, override=False, encoding="utf-8-sig")
    except ValueError:
        raise ConfigError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except OSError as problem:
        raise ConfigError(f"{path} cannot be read: {problem.strerror or problem}") from None
    return found


def _look_for_misspelt(names: dict[str, str | None]) -> None:
    """A name in `.env` that is nearly a setting would silently do nothing: it is refused.

    One that only extends a setting's name by _SOMETHING, such as
    DISCORD_CHANNEL_ID_2, is more likely another program's: a line says that
    it does nothing here.
    """
    known = [s.name for s in SETTINGS if s.env]
    for name in names:
        near = next(iter(difflib.get_close_matches(name, known, 1, 0.92)), "")
        if not near or name in known:
            continue
        if not name.startswith(f"{near}_"):
            raise ConfigError(f".env: unknown setting {name!r}; did you mean {near}?")
        log.warning(".env: %a is no setting of the bridge and does nothing here; %s is one", name, near)
