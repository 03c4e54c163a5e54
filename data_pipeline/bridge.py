"""What an accepted payload causes: the one place where store, journal and background parts meet."""

import logging
import time

from data_pipeline.files.views import read_latest
from data_pipeline.payloads import records, times, validation
from data_pipeline.payloads.store import SnapshotStore, TickerState
from data_pipeline.payloads.trades import TOPIC as TRADES_TOPIC
from data_pipeline.payloads.trades import option_trade

log = logging.getLogger("webhook")

EVENT_KEYS = ("eventType", "event_type", "event")


def _first_truthy(payload: dict, keys: tuple[str, ...]) -> object:
    return next((payload[key] for key in keys if payload.get(key)), None)


class Bridge:
    """Takes payloads from the handler; returns what the client is told, once it is durable.

    repository: where records go.  The background parts are optional: dashboard
    has `offer(url, ticker, endpoint) -> bool`, downloads has
    `submit(id, url, ticker, endpoint)`, discord has `send(payload)`.
    """

    def __init__(self, repository, dashboard=None, downloads=None, discord=None):
        self.repository = repository
        self.store = SnapshotStore(TickerState)
        self.dashboard = dashboard
        self.downloads = downloads
        self.discord = discord
        # ticker -> time.monotonic() of its last payload since the start
        self.heard: dict[str, float] = {}

    def restore(self, root) -> None:
        """Bring the store back: from latest.json, and from the records that it had not seen."""
        for snapshot in read_latest(root):
            self.store.put(snapshot.state())
        for record in self.repository.replay():
            if isinstance(record, records.Gex):
                self.store.put(record.state)

    def gex(self, raw: bytes, payload: dict) -> dict:
        """A `/gex` payload.  Raises ValidationError, NotDurable."""
        gex = validation.gex_payload(payload)
        self._append_gex(gex, records.Part(raw, "data"))
        return {"status": "ok", "ticker": gex.ticker}

    def history_link(self, payload: dict) -> dict:
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

    def universal(self, raw: bytes, payload: dict, client: str, agent: str) -> dict:
        """A `/uw` payload.  Raises ValidationError, NotDurable."""
        if _first_truthy(payload, (*EVENT_KEYS, "type")) == "heartbeat":
            return {"status": "ignored", "reason": "heartbeat"}
        topic = payload.get("topic")
        if topic == "gex":
            gex = validation.gex_payload(payload, "payload", "snapshot", "gex_zero")
            self._append_gex(gex, records.Part(raw, "payload"), (client, agent))
        elif topic == "phoenix" and _is_acknowledgement(payload):
            return {"status": "ignored", "reason": "heartbeat phoenix phx_reply"}
        else:
            webhook = records.Webhook(times.utc_now_text(), client, agent, raw)
            self.repository.append(lambda: (webhook.encode(), None))
            if topic == TRADES_TOPIC and self.discord is not None and option_trade(payload) is not None:
                self.discord.send(payload)
        return {"status": "received", "message": "Universal webhook processed"}

    def _append_gex(self, gex: validation.GexPayload, part: records.Part, webhook=None) -> None:
        """State, record and their order are made together, under the journal's lock."""
        at = times.utc_now_text()

        def build():
            state = self.store.get(gex.ticker).merged(gex.kind, part, gex.endpoint, gex.received_at)
            return records.Gex(at, gex.endpoint, state, webhook).encode(), self.store.put(state)

        self.repository.append(build)
        self.heard[gex.ticker] = time.monotonic()


def _is_acknowledgement(payload: dict) -> bool:
    inner = payload.get("payload")
    return _first_truthy(payload, EVENT_KEYS) == "phx_reply" and isinstance(inner, dict) and inner.get("status") == "ok"
