"""What a journal record means: one acknowledged request, complete in itself.

A payload is one line of JSON (ASCII), a newline, and then parts of UTF-8 text
one behind the other, whose lengths the line gives.  Bodies are kept as they
came in, byte for byte; nothing is serialised again while a client waits.

A gamma-exposure record carries its ticker's whole state after the payload
(the last body of each kind), so that its row can be made from it alone:
nothing that happens to another record, or to the process, changes it.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from data_pipeline.payloads.store import KINDS, Part, TickerSnapshot, TickerState

# Stands for the strikes while the rest of a payload is written; no client can know it.
_STRIKES = secrets.token_hex(16)

Made = TypeVar("Made")


class lazy(Generic[Made]):
    """An attribute made at first use.  Unlike functools.cached_property before Python 3.12 it has no lock, which
    all records would share; made twice by two threads, it is the same."""

    def __init__(self, make: Callable[[Any], Made]) -> None:
        self.make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, record: Any, owner: type) -> Made:
        value = self.make(record)
        record.__dict__[self.name] = value
        return value


class RecordError(Exception):
    """The payload is no record of ours."""


def _encode(line: dict[str, Any], *parts: bytes) -> bytes:
    return b"\n".join((json.dumps(line, separators=(",", ":")).encode("ascii"), b"".join(parts)))


@dataclass(frozen=True)
class Webhook:
    """A row of `universal_webhooks`, or an array of several payloads.  at: receive time, ISO, UTC, no offset."""

    at: str
    client: str
    agent: str
    raw: bytes

    def encode(self) -> bytes:
        """The record's payload, which `decode` takes."""
        return _encode({"type": "uw", "at": self.at, "client": self.client, "agent": self.agent}, self.raw)

    @lazy
    def payloads(self) -> list[dict[str, Any]]:
        """One, or those of the array."""
        payload = json.loads(self.raw)
        return payload if isinstance(payload, list) else [payload]


@dataclass(frozen=True)
class Link:
    """A row of `gex_history_queue`."""

    at: str
    id: int
    url: str
    ticker: str
    endpoint: str

    def encode(self) -> bytes:
        """The record's payload, which `decode` takes."""
        return _encode({"type": "link", **self.__dict__})


@dataclass(frozen=True)
class Gex:
    """A gamma-exposure payload, from `/gex` or (with `webhook`) from `/uw`.

    state: the ticker after it, with a Part (or None) for each kind; the
    payload's own kind holds its own body.  endpoint: the request's own.
    replaces: the ticker that has left the store for this one.
    """

    at: str
    endpoint: str | None
    state: TickerState
    webhook: tuple[str, str] | None = None
    replaces: str | None = None

    @property
    def ticker(self) -> str:
        """As it is known everywhere."""
        return self.state.ticker

    @property
    def kind(self) -> str:
        """The payload's, one of KINDS."""
        return self.state.last_payload_kind or ""

    @property
    def series(self) -> str:
        """Its endpoint, else the ticker's last one, else `unknown`: what a row, a level file and the board go by."""
        return self.endpoint or self.state.last_endpoint or "unknown"

    def encode(self) -> bytes:
        """The record's payload, which `decode` takes."""
        state = self.state
        parts = [(kind, part) for kind in KINDS if (part := getattr(state, kind))]
        line = {
            "type": "gex",
            "at": self.at,
            "ticker": state.ticker,
            "kind": state.last_payload_kind,
            "endpoint": self.endpoint,
            "updated_at": state.updated_at,
            "received_at": state.received_at,
            "last_endpoint": state.last_endpoint,
            "webhook": self.webhook,
            **({"replaces": self.replaces} if self.replaces else {}),
            "parts": [(kind, part.key, len(part.raw)) for kind, part in parts],
        }
        return _encode(line, *(part.raw for _, part in parts))

    @lazy
    def payload(self) -> dict[str, Any]:
        """The whole body."""
        whole: dict[str, Any] = json.loads(getattr(self.state, self.kind).raw)
        return whole

    @lazy
    def data(self) -> dict[str, Any]:
        """The payload's own data object."""
        key = getattr(self.state, self.kind).key
        own: dict[str, Any] = self.payload[key] if key else self.payload
        return own

    @lazy
    def loaded(self) -> TickerSnapshot:
        """The state with its data as objects."""
        return self._load(None)

    def share(self, before: "Gex | None") -> None:
        """Make `loaded`; what is as in an earlier record of the ticker is that one's object, and not parsed again."""
        self.__dict__["loaded"] = self._load(before)

    def _load(self, before: "Gex | None") -> TickerSnapshot:
        data = {}
        for kind in KINDS:
            part = getattr(self.state, kind)
            if part and kind == self.kind:
                data[kind] = self.data
            elif part and before is not None and getattr(before.state, kind) == part:
                data[kind] = getattr(before.loaded, kind)
            elif part:
                data[kind] = part.load()
        return TickerSnapshot.of(self.state, data)

    @lazy
    def strikes_json(self) -> str:
        """`json.dumps` of the strikes that the row takes, the snapshot's."""
        return json.dumps((self.loaded.snapshot or {}).get("strikes"))

    @lazy
    def data_json(self) -> str:
        """`json.dumps(data)`: needed for the depth file and, where it is ASCII, for the table."""
        if self.kind != "snapshot" or "strikes" not in self.data:
            return json.dumps(self.data)
        # Nearly all of it are the strikes, whose text is needed by itself as well.
        around = json.dumps({**self.data, "strikes": _STRIKES})
        return around.replace(f'"{_STRIKES}"', self.strikes_json)


AnyRecord = Webhook | Link | Gex


def decode(payload: bytes) -> AnyRecord:
    """A record's payload as the object it was made from.  Raises RecordError."""
    try:
        line, _, rest = payload.partition(b"\n")
        head = json.loads(line)
        kind = head.pop("type")
        if kind == "uw":
            return Webhook(raw=rest, **head)
        if kind == "link":
            return Link(**head)
        if kind == "gex":
            return _gex(head, rest)
    except (ValueError, TypeError, KeyError, AttributeError) as problem:
        raise RecordError(f"not a record: {problem}") from problem
    raise RecordError(f"not a record: type {kind!r}")


def _gex(head: dict[str, Any], rest: bytes) -> Gex:
    parts, at = {}, 0
    for kind, key, length in head["parts"]:
        parts[kind] = Part(rest[at : at + length], key)
        at += length
    state = TickerState(
        head["ticker"],
        **parts,
        updated_at=head["updated_at"],
        received_at=head["received_at"],
        last_endpoint=head["last_endpoint"],
        last_payload_kind=head["kind"],
    )
    webhook = tuple(head["webhook"]) if head["webhook"] else None
    return Gex(head["at"], head["endpoint"], state, webhook, head.get("replaces"))
