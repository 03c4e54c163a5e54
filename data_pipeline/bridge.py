"""What an accepted payload causes: the one place where store, journal and background parts meet."""

import json
import logging
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from data_pipeline.board import Board
from data_pipeline.files.views import read_latest
from data_pipeline.payloads import records, times, validation
from data_pipeline.payloads.store import Part, SnapshotStore, TickerState
from data_pipeline.payloads.trades import TOPIC as TRADES_TOPIC
from data_pipeline.payloads.trades import option_trade

log = logging.getLogger("webhook")

EVENT_KEYS = ("eventType", "event_type", "event")

MOST_FRAMES = 1000  # in one request
SILENT = 86400.0  # s, after which a ticker may give its place to a new one
RECEIVED = {"status": "received", "message": "Universal webhook processed"}
ACKNOWLEDGED = {"status": "ignored", "reason": "heartbeat phoenix phx_reply"}


def _first_truthy(payload: dict[str, Any], keys: tuple[str, ...]) -> object:
    return next((payload[key] for key in keys if payload.get(key)), None)


# A record, and the function that takes back what was done for it, should it not become durable.
Built = tuple[bytes, Callable[[], None] | None]


class Records(Protocol):
    """Where records go, and come from at the start: `repository.Repository`.  What appends raises NotDurable."""

    def append(self, build: Callable[[], Built]) -> int:
        """Append what `build` makes; returns its number once it is durable."""

    def append_link(self, make: Callable[[int], bytes]) -> int:
        """Append what `make` makes of the id that the link gets; returns that id."""

    def replay(self) -> Iterable[object]:
        """The records that the files may not show yet, in order, decoded."""


class Links(Protocol):
    """`integrations.Dashboard`."""

    def offer(self, url: object, ticker: object, endpoint: object) -> bool:
        """Whether it takes the link."""


class Downloads(Protocol):
    """`history.DownloadRunner`."""

    def submit(self, job_id: int, url: str, ticker: str, endpoint: str) -> bool:
        """Run the command for a queued link; whether there was room."""


class Messages(Protocol):
    """`integrations.Discord`."""

    def send(self, payload: dict[str, Any]) -> None:
        """Say something about a payload; never blocks, never raises."""


class Bridge:
    """Takes payloads from the handler; returns what the client is told, once it is durable.

    repository: where records go; the background parts are optional.
    uw_frames: whether `/uw` takes a socket's frames; max_tickers: of the store.
    """

    def __init__(
        self,
        repository: Records,
        dashboard: Links | None = None,
        downloads: Downloads | None = None,
        discord: Messages | None = None,
        uw_frames: bool = False,
        max_tickers: int = 2000,
    ):
        self.repository = repository
        self.store = SnapshotStore(TickerState)
        self.board = Board()
        self.dashboard = dashboard
        self.downloads = downloads
        self.discord = discord
        self.uw_frames = uw_frames
        self.max_tickers = max_tickers
        self._hinted = False
        self._began = time.monotonic()
        # ticker -> time.monotonic() of its last payload since the start
        self.heard: dict[str, float] = {}

    def restore(self, root: pathlib.Path) -> None:
        """Bring the store back: from latest.json, and from the records that it had not seen."""
        for snapshot in read_latest(root):
            self.store.put(snapshot.state())
        for record in self.repository.replay():
            if isinstance(record, records.Gex):
                if record.replaces:
                    self.store.drop(record.replaces)
                self.store.put(record.state)

    def gex(self, raw: bytes, payload: dict[str, Any]) -> dict[str, Any]:
        """A `/gex` payload.  Raises ValidationError, NotDurable."""
        gex = validation.gex_payload(payload)
        self._append_gex(gex, Part(raw, "data"))
        return {"status": "ok", "ticker": gex.ticker}

    def history_link(self, payload: dict[str, Any]) -> dict[str, Any]:
        """A `/gex_history_url` payload: to the dashboard, else into the queue.  Raises ValidationError, NotDurable."""
        link = validation.history_link(payload)
        if self.dashboard is not None and self.dashboard.offer(link.url, link.ticker, link.endpoint):
            return {"status": "queued", "via": "dashboard"}
        at = times.utc_now_text()
        url, ticker, endpoint = str(link.url), str(link.ticker).upper(), str(link.endpoint)
        number = self.repository.append_link(lambda id_: records.Link(at, id_, url, ticker, endpoint).encode())
        if self.downloads is not None:
            self.downloads.submit(number, url, ticker, endpoint)
        return {"status": "queued", "id": number, "via": "local"}

    def takes_frames(self, payload: object) -> bool:
        """Whether what is no object is for `universal` all the same: a frame, or several, and UW_FRAMES is set."""
        if not isinstance(payload, list) or frames(payload) is None:
            return False
        if not self.uw_frames and not self._hinted:
            self._hinted = True
            log.info("a socket's frame was refused on /uw; UW_FRAMES=1 takes them")
        return self.uw_frames

    def universal(self, raw: bytes, payload: dict[str, Any] | list[Any], client: str, agent: str) -> dict[str, Any]:
        """A `/uw` payload: an object, or frames.  Raises ValidationError, NotDurable."""
        if isinstance(payload, list):
            return self._frames(frames(payload) or [], client, agent)
        if (ignored := _ignored(payload)) is not None:
            return ignored
        if payload.get("topic") == "gex":
            gex = validation.gex_payload(payload, "payload", "snapshot", "gex_zero")
            self._append_gex(gex, Part(raw, "payload"), (client, agent))
        else:
            self._append_webhook(raw, [payload], client, agent)
        return RECEIVED

    def _frames(self, found: list[dict[str, Any]], client: str, agent: str) -> dict[str, Any]:
        """Those that count become one record, so that all are durable together or none is."""
        ignored = [ACKNOWLEDGED if _is_acknowledgement(p["payload"]) else _ignored(p) for p in found]
        kept = [payload for payload, reason in zip(found, ignored) if reason is None]
        for payload in kept:
            if payload["topic"] == "gex":  # it names no ticker beside its payload
                validation.gex_payload(payload, "payload", "snapshot", "gex_zero")
        if not kept:
            return ignored[0] or RECEIVED
        self._append_webhook(json.dumps(kept if len(kept) > 1 else kept[0]).encode("ascii"), kept, client, agent)
        return RECEIVED

    def _append_webhook(self, raw: bytes, payloads: list[dict[str, Any]], client: str, agent: str) -> None:
        webhook = records.Webhook(times.utc_now_text(), client, agent, raw)
        self.repository.append(lambda: (webhook.encode(), None))
        for payload in payloads:
            self.board.add_flow(payload)
            if payload.get("topic") == TRADES_TOPIC and self.discord is not None:
                trade = option_trade(payload)
                if trade is not None and trade["symbol"]:
                    self.discord.send(payload)

    def _append_gex(self, gex: validation.GexPayload, part: Part, webhook: tuple[str, str] | None = None) -> None:
        """State, record and their order are made together, under the journal's lock."""
        at = times.utc_now_text()
        series: list[str] = []

        def build() -> Built:
            gone = self._make_room(gex.ticker)
            state = self.store.get(gex.ticker).merged(gex.kind, part, gex.endpoint, gex.received_at)
            record = records.Gex(at, gex.endpoint, state, webhook, gone)
            series.append(record.series)
            undos = [self.store.put(state)] + ([self.store.drop(gone)] if gone else [])

            def undo() -> None:
                for each in undos:
                    each()

            return record.encode(), undo

        self.repository.append(build)
        self.heard[gex.ticker] = time.monotonic()
        # Only now: what the board shows is on disk.
        self.board.add(gex.ticker, series[-1], gex.kind, gex.data)

    def _make_room(self, ticker: str) -> str | None:
        """The ticker that has to leave for a new one, if any.  Raises ValidationError where none may."""
        if len(self.store) < self.max_tickers or ticker in self.store:
            return None
        oldest = min(self.store, key=lambda known: self.heard.get(known, self._began))
        if time.monotonic() - self.heard.get(oldest, self._began) < SILENT:
            raise validation.ValidationError(
                f"Validation error: ticker: there are {self.max_tickers} already, and none was silent for a day"
            )
        return oldest


def _ignored(payload: dict[str, Any]) -> dict[str, Any] | None:
    """What a client is told of a payload that only keeps its connection alive; None for all others."""
    if _first_truthy(payload, (*EVENT_KEYS, "type")) == "heartbeat":
        return {"status": "ignored", "reason": "heartbeat"}
    inner = payload.get("payload")
    if payload.get("topic") == "phoenix" and _first_truthy(payload, EVENT_KEYS) == "phx_reply":
        if isinstance(inner, dict) and inner.get("status") == "ok":
            return ACKNOWLEDGED
    return None


def _is_acknowledgement(inner: dict[str, Any]) -> bool:
    """Of a frame, whatever its topic."""
    return inner.keys() == {"status", "response"} and inner["status"] == "ok" and isinstance(inner["response"], dict)


def frames(value: list[Any]) -> list[dict[str, Any]] | None:
    """The objects that a socket's frame, or an array of up to MOST_FRAMES such, stands for; None where it is none."""
    found = [_frame(value)] if _frame(value) else [_frame(each) for each in value[: MOST_FRAMES + 1]]
    whole = [each for each in found if each is not None]
    return whole if len(whole) == len(found) and 1 <= len(whole) <= MOST_FRAMES else None


def _frame(value: object) -> dict[str, Any] | None:
    """`[join_ref, ref, topic, event, payload]` or `[channel, payload]` as an object."""
    match value:
        case [str() | None, str() | None, str() as topic, str() as event, dict() as payload]:
            return {"topic": topic, "event": event, "payload": payload}
        case [str() as channel, dict() as payload]:
            return {"topic": channel, "payload": payload}
    return None
