"""Records → rows of the tables, value by value as the original's SQLite kept them."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.payloads import reading, times
from data_pipeline.payloads.flow import option_flow
from data_pipeline.payloads.records import Gex, Link, Webhook
from data_pipeline.payloads.trades import TOPIC, option_trade
from data_pipeline.payloads.values import json_text, number, text
from data_pipeline.repository import schema

SNAPSHOT_NUMBERS = tuple(reading.NAMES)
Columns = tuple[Sequence[Any], ...]  # of the same length
Key = tuple[str | None, int, str | None]  # ticker, timestamp, endpoint
# why a payload has no row, or no strikes -> what the log says of the first of a ticker
LEFT_OUT = {
    "without_time": "names no time and makes no row",
    "unreadable_time": "names a time that cannot be read and makes no row",
    "without_strikes": "is a snapshot of which no strike can be read",
}
_PLAIN = {int, float}
_FLOW = schema.columns("option_flow")[3:]
_INNERMOST = re.compile(r"\[[^\[\]]*\]")  # in the text of uniform strikes: their histories


def strikes(entries: object, written: str) -> Columns:
    """The strikes of a snapshot as nine columns: strike, gamma_now, vanna, 1m, 5m, 10m, 15m, 30m, history_json.

    Each list of ≥ 2 is one: strike, gamma, vanna (third), the first five of
    the fourth.  One whose strike is no number is left out; of the same strike
    twice the last one counts.  written: `json.dumps(entries)`.
    """
    if not isinstance(entries, list) or not entries:
        return ([],) * 9
    return _uniform_strikes(entries, written) or _any_strikes(entries)


def _uniform_strikes(entries: list[Any], written: str) -> Columns | None:
    """The same, ten times as fast, for what GEXBot sends: four values each, five numbers in the fourth."""
    try:
        if set(map(type, entries)) != {list} or set(map(len, entries)) != {4}:
            return None
        columns: list[Any] = list(zip(*entries))
        histories = columns.pop()
        if set(map(type, histories)) != {list} or set(map(len, histories)) != {5}:
            return None
        columns += zip(*histories)
        if not all(set(map(type, column)) <= _PLAIN for column in columns):
            return None
        columns = [list(map(float, column)) for column in columns]
    except OverflowError:
        return None
    total = sum(map(sum, columns))
    if total != total or len(set(columns[0])) != len(entries):
        return None
    return (*columns, _INNERMOST.findall(written))


def _any_strikes(entries: list[Any]) -> Columns:
    kept = {}
    for entry in entries:
        if not isinstance(entry, list) or len(entry) < 2 or (strike := number(entry[0])) is None:
            continue
        history = entry[3] if len(entry) > 3 and isinstance(entry[3], list) else []
        minutes = [number(value) for value in (history + [None] * 5)[:5]]
        vanna = number(entry[2]) if len(entry) > 2 else None
        kept[strike] = (strike, number(entry[1]), vanna, *minutes, json.dumps(history) if history else None)
    return tuple(map(list, zip(*kept.values()))) if kept else ([],) * 9


@dataclass
class Rows:
    """What a batch of records puts into the tables: rows as tuples, in the tables' column order.

    snapshots and strikes: by key (ticker, timestamp, endpoint), the last
    record of a key wins; strikes has only keys that bring any.  Webhooks,
    trades and flow get their ids when they are written; the first value of a
    flow row is the place in `webhooks` of the one it came from.  own: how a
    row is combined, see TickerSnapshot.  left_out: what a record did not
    bring, one of LEFT_OUT, and its ticker.
    """

    own: bool = False

    snapshots: dict[Key, tuple[Any, ...]] = field(default_factory=dict)
    strikes: dict[Key, Columns] = field(default_factory=dict)
    links: list[tuple[Any, ...]] = field(default_factory=list)
    webhooks: list[tuple[Any, ...]] = field(default_factory=list)
    trades: list[tuple[Any, ...]] = field(default_factory=list)
    flow: list[tuple[Any, ...]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def add(self, record: Gex | Link | Webhook) -> None:
        """Add one record's rows; where it raises, nothing of it is added."""
        if isinstance(record, Gex):
            self._add_gex(record)
        elif isinstance(record, Link):
            at = times.row_time(record.at)
            self.links.append(
                (record.id, text(record.url), text(record.ticker), text(record.endpoint), "pending", 0, None, at, at)
            )
        else:
            self._add_webhook(record)

    def _add_gex(self, record: Gex) -> None:
        view = record.loaded.row(self.own)
        webhook = None
        if record.webhook:
            webhook = _webhook_row(record.at, json.dumps(record.payload), *record.webhook)
        timestamp = times.seconds(view["timestamp"])
        if timestamp is not None:
            self._add_snapshot(record, view, timestamp)
        else:
            named = view["timestamp"] is not None or record.data.get("timestamp") is not None
            self.left_out.append(("unreadable_time" if named else "without_time", record.ticker))
        if webhook:
            self.webhooks.append(webhook)

    def _add_snapshot(self, record: Gex, view: dict[str, Any], timestamp: int) -> None:
        state = record.loaded
        key = (text(record.ticker), timestamp, text(record.series))
        columns = strikes((state.snapshot or {}).get("strikes"), record.strikes_json)
        max_priors = view["max_priors"]
        raw = (
            record.data_json
            if record.data_json.isascii() and not _escapes(record.data_json)
            else json_text(record.data)
        )
        self.snapshots[key] = (
            *key,
            record.kind,
            text(state.received_at),
            *(number(view[name]) for name in SNAPSHOT_NUMBERS),
            len(columns[0]),
            json_text(view["max_change"]),
            "[]" if max_priors is None else json_text(max_priors),
            raw,
            text(state.updated_at),
        )
        if columns[0]:
            self.strikes[key] = columns
        elif record.kind == "snapshot" and (record.webhook is None or record.data.get("strikes")):
            self.left_out.append(("without_strikes", record.ticker))

    def _add_webhook(self, record: Webhook) -> None:
        at, first = times.row_time(record.at), len(self.webhooks)
        webhooks, trades, flow = [], [], []
        for place, payload in enumerate(record.payloads, first):
            payload_json = json.dumps(payload)
            if payload.get("topic") == TOPIC and (trade := option_trade(payload)) is not None:
                names = schema.columns("option_trades_events")[2:-1]
                trades.append((at, *(trade[name] for name in names), payload_json))
            flow += [(place, at, *(row[name] for name in _FLOW)) for row in option_flow(payload)]
            webhooks.append(_webhook_row(record.at, payload_json, record.client, record.agent))
        self.webhooks += webhooks
        self.trades += trades
        self.flow += flow


def _webhook_row(at: str, payload_json: str, client: str, agent: str) -> tuple[Any, ...]:
    return times.row_time(at), payload_json, client, text(agent)


def _escapes(written: str) -> bool:
    """Whether ASCII JSON has \\u escapes, which ensure_ascii=False would have written out."""
    return "\\u" in written
