"""The GEXBot API: its client, the poller, and the refresher of status files.

Paths and shapes: https://github.com/nfa-llc/gexbot-openapi for
https://api.gex.bot/v2; the older https://api.gexbot.com differs in the name of
the category only.
"""

import itertools
import json
import logging
import pathlib
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from data_pipeline import BridgeError, __version__
from data_pipeline.background import Background
from data_pipeline.files import atomic, names
from data_pipeline.integrations import outgoing
from data_pipeline.payloads import times
from data_pipeline.payloads.store import WINDOWS

if TYPE_CHECKING:
    import requests

SYMBOLS = ("NQ_NDX", "ES_SPX", "SPY", "QQQ", "SPX", "NDX")
TIME_LIMIT = 10.0  # seconds, of each try of a request
LONGEST_PAUSE = 900.0  # seconds; pauses that grow after failures end here
LONG_AGO = datetime.min.replace(tzinfo=UTC)

# field of a payload -> the names the API has for it, in the order they are looked for
FIELDS = {
    "spot": ("spot",),
    "zero_gamma": ("zero_gamma",),
    "net_gex_oi": ("sum_gex_oi", "net_gex_oi"),
    "net_gex_vol": ("sum_gex_vol", "net_gex_vol"),
    "major_pos_oi": ("major_pos_oi", "mpos_oi"),
    "major_neg_oi": ("major_neg_oi", "mneg_oi"),
    "major_pos_vol": ("major_pos_vol", "mpos_vol"),
    "major_neg_vol": ("major_neg_vol", "mneg_vol"),
}
# fields that a chain has besides, kept where the whole chain is wanted
WHOLE = ("strikes", "max_priors", "delta_risk_reversal", "min_dte", "sec_min_dte")

log = logging.getLogger("webhook")


class GexBotError(Exception):
    """No usable reply; the text never holds the key.  retry_after: seconds the API asks to be left alone, or 0."""

    def __init__(self, text: str, retry_after: float = 0.0):
        super().__init__(text)
        self.retry_after = retry_after


class GexBotClient:
    """GET requests with the key, one session for all of them.

    api_url: https://api.gexbot.com, https://api.gex.bot/v2, or one that
    behaves as the former.  A connection that cannot be made or breaks is
    tried once more, 500, 502, 503 and 504 twice.  Every method that asks the
    API raises GexBotError.
    """

    def __init__(self, api_key: str, api_url: str = "https://api.gexbot.com", time_limit: float = TIME_LIMIT):
        self.api_key = api_key
        self._api_url, self._time_limit = api_url.rstrip("/"), time_limit
        # The second host knows only the long names and refuses all others.
        self._prefix = "gex_" if urlsplit(api_url).hostname == "api.gex.bot" else ""
        self._session: requests.Session | None = None
        self._making = threading.Lock()  # guards the making of the session

    def chain(self, symbol: str, category: str = "zero", whole: bool = False) -> dict[str, Any]:
        """Spot, zero gamma, sums and majors: {ticker, *FIELDS, timestamp}, timestamp as UTC ISO text.

        category: zero, one or full; whole: with what the reply has of WHOLE.
        """
        return summary(symbol, self.latest(symbol, category=category), whole)

    def maxchange(self, symbol: str, category: str = "zero") -> dict[str, Any]:
        """The six WINDOWS, each [strike, change of net GEX]; [0, 0] where the reply has none."""
        found = self.latest(symbol, "/maxchange", category)
        return {window: found[window] if found.get(window) is not None else [0, 0] for window in WINDOWS}

    def latest(self, symbol: str, what: str = "", category: str = "zero") -> dict[str, Any]:
        """The reply's object, or the latest by time where it is a list or {"data": [...]}."""
        url = self.address(symbol, what, category)
        try:
            reply = outgoing.call(self._opened(), "GET", url, self._time_limit, params={"key": self.api_key})
            if reply.status != 200:
                wait = reply.retry_after(0.0) if reply.status in (429, 503) else 0.0
                raise GexBotError(f"HTTP {reply.status}", wait)
            return latest(reply.json())
        except outgoing.WebError as problem:
            raise GexBotError(str(problem)) from None

    def address(self, symbol: str, what: str = "", category: str = "zero") -> str:
        """The URL, without the key."""
        return f"{self._api_url}/{quote(symbol, safe='')}/classic/{self._prefix}{category}{what}"

    def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            self._session.close()

    def _opened(self) -> "requests.Session":
        from urllib3.util.retry import Retry

        with self._making:
            if self._session is None:
                # A pause that the API names is waited for by the poller, which can be stopped, not by urllib3.
                retries = Retry(
                    total=2,
                    connect=1,
                    read=1,
                    backoff_factor=0.2,
                    status_forcelist=(500, 502, 503, 504),
                    raise_on_status=False,
                    respect_retry_after_header=False,
                )
                headers = {"User-Agent": f"gex-bridge/{__version__}", "Accept": "application/json"}
                self._session = outgoing.session(f"Bearer {self.api_key}", headers, retries)
            return self._session


def latest(reply: object) -> dict[str, Any]:
    """The one object that counts in a reply of any shape; raises GexBotError where there is none."""
    if isinstance(reply, dict) and isinstance(reply.get("data"), (list, dict)):
        reply = reply["data"]
    if isinstance(reply, list):
        objects = [one for one in reply if isinstance(one, dict)]
        # Of two with the same time the later in the list, so the list is read from its end.
        reply = max(reversed(objects), key=lambda one: moment(one.get("timestamp")) or LONG_AGO, default=None)
    if not isinstance(reply, dict):
        raise GexBotError("the reply holds no object")
    if reply.get("error"):
        raise GexBotError("the reply is an error")
    return reply


def summary(symbol: str, reply: dict[str, Any], whole: bool = False) -> dict[str, Any]:
    """A chain reply as the payload of a snapshot, `whole` with what it has of WHOLE.

    Raises GexBotError where all its fields are missing.
    """
    found = {
        field: next((reply[n] for n in names if reply.get(n) is not None), None) for field, names in FIELDS.items()
    }
    if all(value is None for value in found.values()):
        raise GexBotError("the reply has none of the fields of a chain")
    at = moment(reply.get("timestamp")) or datetime.now(UTC)
    more = {name: reply[name] for name in WHOLE if name in reply} if whole else {}
    return {"ticker": symbol, **found, "timestamp": at.isoformat(), **more}


def in_regular_hours(moment: datetime) -> bool:
    """Whether New York's exchanges are open by clock and weekday, 09:30 to 16:00; their holidays are not known here."""
    there = moment.astimezone(times.NEW_YORK)
    return there.weekday() < 5 and (9, 30) <= (there.hour, there.minute) < (16, 0)


def moment(value: object) -> datetime | None:
    """A time in UTC, from seconds, milliseconds, either as text, or ISO text; None where it is none of them."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return times.from_number(float(value))
    except OverflowError:
        return None
    except ValueError:  # of text only
        at = times.parse_iso(str(value).strip())
    try:
        return at and at.astimezone(UTC)
    except OverflowError:  # the first or last day there is, elsewhere
        return None


def _utc_now() -> str:
    return datetime.now(UTC).isoformat()


class _Rounds(Background):
    """Jobs that one thread does again and again.

    Each job has a pause of its own: after a failure it doubles, up to
    LONGEST_PAUSE, after a success it is what it was.  So one that fails costs
    the others nothing but its time limit.  A 429 that names a pause holds all.
    A request that hangs may outlast `stop`, but what it brings is thrown away.
    Where what was fetched cannot be stored, the API has not failed: the pause
    stays, and the trouble is one line, however long it lasts.
    """

    def __init__(self, name: str, client: GexBotClient):
        super().__init__(name)
        self._name, self._client = name, client
        self._jobs: dict[str, Callable[[], None]] = {}  # by what each is called in the log
        self._counts = {"done": 0, "failed": 0, "not_stored": 0}  # changed by the thread only
        self._trouble = ""  # why the last one was not stored
        self._failures: dict[str, int] = {}  # job -> failures in a row; likewise

    def stats(self) -> dict[str, Any]:
        """done, failed: jobs so far; not_stored: those done in vain; failing: jobs whose last try failed."""
        return {**self._counts, "failing": sum(1 for n in list(self._failures.values()) if n)}

    def _pause(self) -> float:
        raise NotImplementedError

    def _run(self) -> None:
        due = dict.fromkeys(self._jobs, time.monotonic())
        self._failures = dict.fromkeys(self._jobs, 0)
        while due:
            job = min(due, key=due.__getitem__)
            if self._stopping.wait(max(0.0, due[job] - time.monotonic())):
                return
            retry_after = self._do(job)
            now = time.monotonic()
            due[job] = now + self._pause_after(job)
            due = {other: max(when, now + retry_after) for other, when in due.items()}

    def _do(self, job: str) -> float:
        """Do it and count; returns the seconds for which the API asks to be left alone."""
        retry_after = 0.0
        try:
            self._jobs[job]()
        except GexBotError as problem:
            retry_after, reason = problem.retry_after, str(problem)
        except Exception as problem:
            log.exception("%s: %s", self._name, job)
            reason = type(problem).__name__
        else:
            self._counts["done"] += 1
            if self._failures[job]:
                log.info("%s: %s is back after %d failures", self._name, job, self._failures[job])
            self._failures[job] = 0
            return 0.0
        self._counts["failed"] += 1
        self._failures[job] += 1
        log.warning(
            "%s: %s failed (%s); next try in %.3g s", self._name, job, reason, max(retry_after, self._pause_after(job))
        )
        return retry_after

    def _store(self, job: str, store: Callable[[], None]) -> None:
        try:
            store()
            self._trouble = ""
        except Exception as problem:
            self._counts["not_stored"] += 1
            # The name of a temporary file is another one each time.
            trouble = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
            if trouble != self._trouble:
                unforeseen = not isinstance(problem, (OSError, BridgeError))
                log.error("%s: %s cannot be stored: %a", self._name, job, trouble, exc_info=unforeseen)
            self._trouble = trouble

    def _pause_after(self, job: str) -> float:
        usual = self._pause()
        grown = usual * 2.0 ** min(self._failures[job], 20)
        return max(usual, min(grown, LONGEST_PAUSE))


class Poller(_Rounds):
    """Every `interval` seconds, chain and maxchange of each symbol as `/uw` payloads.

    deliver: takes the payload {topic, ticker, endpoint, kind, received_at,
    payload}; called on the poller's thread, and not after `stop`; whole:
    chains keep their strikes; rth: only `in_regular_hours`; now: returns the
    time, with its zone.
    """

    def __init__(
        self,
        client: GexBotClient,
        interval: float,
        deliver: Callable[[dict[str, Any]], None],
        symbols: Iterable[str] = SYMBOLS,
        categories: Iterable[str] = ("zero",),
        whole: bool = False,
        rth: bool = False,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ):
        super().__init__("GEXBotPoller", client)
        self._interval, self._deliver, self._rth, self._now = interval, deliver, rth, now
        for symbol, category in itertools.product(symbols, categories):
            # The original's names, of the one category that it knew.
            chain, changes = f"gex_{category}", "gex_maxchange" if category == "zero" else f"gex_{category}_maxchange"
            name = symbol if category == "zero" else f"{symbol} {category}"
            self._add(f"{name} chain", symbol, chain, "snapshot", partial(client.chain, symbol, category, whole))
            self._add(f"{name} maxchange", symbol, changes, "maxchange", partial(client.maxchange, symbol, category))

    def start(self) -> None:
        """Without a key nothing starts; the log says so."""
        if self._client.api_key:
            super().start()
        else:
            log.warning("GEXBOT_API_KEY not set; GEX polling disabled")

    def _pause(self) -> float:
        return self._interval

    def _do(self, job: str) -> float:
        return 0.0 if self._rth and not in_regular_hours(self._now()) else super()._do(job)

    def _add(self, job: str, symbol: str, endpoint: str, kind: str, fetch: Callable[[], dict[str, Any]]) -> None:
        def take() -> None:
            payload = fetch()
            if not self._stopping.is_set():
                envelope = {"topic": "gex", "ticker": symbol, "endpoint": endpoint, "kind": kind}
                made = {**envelope, "received_at": _utc_now(), "payload": payload}
                self._store(job, lambda: self._deliver(made))

        self._jobs[job] = take


class StatusRefresher(_Rounds):
    """`SYMBOL_gex_status.json` (lower case) in `folder`: the chain reply, with `timestamp` the time it was fetched.

    folder: the folder `gex` of DATA_DIR; now: returns the local time, with
    its zone.
    """

    def __init__(
        self,
        client: GexBotClient,
        symbols: Iterable[str],
        folder: pathlib.Path,
        now: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ):
        super().__init__("GEXStatusRefresher", client)
        self._folder, self._now = folder, now
        for symbol in symbols:
            self._jobs[f"{symbol} status"] = partial(self._refresh, symbol)

    def _pause(self) -> float:
        return status_pause(self._now())

    def _refresh(self, symbol: str) -> None:
        reply = self._client.latest(symbol)
        if not self._stopping.is_set():
            status = {**reply, "timestamp": self._now().astimezone(UTC).isoformat()}
            path = self._folder / names.folder_name(f"{symbol.lower()}_gex_status.json")
            # Made anew within a minute, so it need not survive a power cut.
            content = json.dumps(status, indent=2).encode()
            self._store(f"{symbol} status", lambda: atomic.replace(path, content, durable=False))


def status_pause(moment: datetime) -> float:
    """Seconds between two refreshes at that local time, whatever the weekday; the minutes named are included."""
    minute = (moment.hour, moment.minute)
    if (18, 0) <= minute <= (20, 15):
        return 300.0
    return 1.0 if (9, 30) <= minute <= (15, 59) else 60.0
