"""The last payload of each kind for each ticker, and the view that combines them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Generic, Self, TypeVar

from data_pipeline.payloads import times

KINDS = ("majors", "maxchange", "snapshot")

# Keys of the combined view, in order; all start null.
COMBINED = (
    "spot",
    "zero_gamma",
    "net_gex_vol",
    "net_gex_oi",
    "major_pos_vol",
    "major_neg_vol",
    "major_pos_oi",
    "major_neg_oi",
    "timestamp",
    "delta_risk_reversal",
    "strikes",
    "max_priors",
)

# (key of a payload, key of the view), applied in this order: a later alias wins.
NUMBERS = (
    ("spot", "spot"),
    ("zero_gamma", "zero_gamma"),
    ("net_gex", "net_gex_vol"),
    ("net_gex_vol", "net_gex_vol"),
    ("sum_gex_vol", "net_gex_vol"),
    ("net_gex_oi", "net_gex_oi"),
    ("sum_gex_oi", "net_gex_oi"),
    ("major_pos_vol", "major_pos_vol"),
    ("major_neg_vol", "major_neg_vol"),
    ("major_pos_oi", "major_pos_oi"),
    ("major_neg_oi", "major_neg_oi"),
)

# Names that only `own` reads; the full names are applied after them.
OWN_NUMBERS = (
    ("mpos_vol", "major_pos_vol"),
    ("mneg_vol", "major_neg_vol"),
    ("mpos_oi", "major_pos_oi"),
    ("mneg_oi", "major_neg_oi"),
    *NUMBERS,
)

# Majors so much older than the snapshot (s, by the payloads' own times) no longer cover it.
MAJORS_LAST = 600

# Key of a max-change payload -> name of the window in the view.
WINDOWS = {
    "current": "Now",
    "one": "1 min",
    "five": "5 min",
    "ten": "10 min",
    "fifteen": "15 min",
    "thirty": "30 min",
}


def normalise(ticker: str) -> str:
    """The ticker as it is known everywhere: upper case, no aliases."""
    return ticker.upper()


@dataclass(frozen=True, slots=True)
class Part:
    """JSON text that holds an object: under `key`, or as a whole where `key` is empty."""

    raw: bytes
    key: str = ""

    @classmethod
    def of(cls, data: dict[str, Any]) -> "Part":
        """An object as text."""
        return cls(json.dumps(data).encode("ascii"))

    def load(self) -> dict[str, Any]:
        """The object.  Raises ValueError, KeyError where there is none."""
        value: dict[str, Any] = json.loads(self.raw)
        return value[self.key] if self.key else value


Data = TypeVar("Data")


@dataclass(frozen=True)
class _Ticker(Generic[Data]):
    """The last `data` of each kind, or None, and what came with it.  It never changes: a payload makes a new one."""

    ticker: str
    majors: Data | None = None
    maxchange: Data | None = None
    snapshot: Data | None = None
    updated_at: str | None = None
    received_at: str | None = None
    last_endpoint: str | None = None
    last_payload_kind: str | None = None

    def merged(self, kind: str, data: Data, endpoint: str | None, received_at: str | None) -> Self:
        """This one after a payload; an empty endpoint or time leaves the last one."""
        changes: dict[str, Any] = {kind: data}
        return replace(
            self,
            **changes,
            updated_at=received_at or self.updated_at,
            received_at=received_at or self.received_at,
            last_endpoint=endpoint or self.last_endpoint,
            last_payload_kind=kind,
        )


@dataclass(frozen=True)
class TickerState(_Ticker[Part]):
    """A ticker as the server and the journal carry it: bodies as they came in, not parsed."""


@dataclass(frozen=True)
class TickerSnapshot(_Ticker[dict[str, Any]]):
    """What is known of one ticker, as objects.

    `own` chooses how it is combined: False as the original does it, True with each
    payload's own time and numbers first.
    """

    @classmethod
    def of(cls, state: TickerState, data: dict[str, dict[str, Any]]) -> "TickerSnapshot":
        """The state with its bodies as objects: `data` has one for each kind that it has."""
        return cls(**{**state.__dict__, **data})

    def combined(self, own: bool = False) -> dict[str, Any]:
        """One payload over the other, and the max-change windows.

        The majors lie over the snapshot, unless they are MAJORS_LAST older; with `own` the newer one lies over.
        """
        return self._view(self._snapshot_on_top(own), own)

    def row(self, own: bool = False) -> dict[str, Any]:
        """The view that the last payload's row is made of: with `own` it lies over the other kind itself."""
        if not own:
            return self.combined()
        if self.last_payload_kind != "maxchange":
            return self._view(self.last_payload_kind == "snapshot", own)
        view = self.combined(own)
        if times.seconds((self.maxchange or {}).get("timestamp")) is not None:
            view["timestamp"] = (self.maxchange or {})["timestamp"]
        return view

    def _snapshot_on_top(self, own: bool) -> bool:
        majors, snapshot = (times.unix((data or {}).get("timestamp")) for data in (self.majors, self.snapshot))
        if majors is None or snapshot is None or own and majors == snapshot:
            return own and self.last_payload_kind == "snapshot"
        return snapshot - majors > (0 if own else MAJORS_LAST)

    def _view(self, snapshot_on_top: bool, own: bool) -> dict[str, Any]:
        view: dict[str, Any] = dict.fromkeys(COMBINED)
        for data in (self.majors, self.snapshot) if snapshot_on_top else (self.snapshot, self.majors):
            if data is not None:
                _apply(view, data, own)
        view["max_change"] = _max_change(self.maxchange)
        if self.last_endpoint:
            view["source_endpoint"] = self.last_endpoint
        view["has_snapshot"] = self.snapshot is not None
        return view

    def document(self, own: bool = False) -> dict[str, Any]:
        """This ticker's entry of `latest.json`."""
        return {
            "ticker": self.ticker,
            "updated_at": self.updated_at,
            **{kind: getattr(self, kind) for kind in KINDS},
            "combined": self.combined(own),
            "metadata": {
                "last_endpoint": self.last_endpoint,
                "last_payload_kind": self.last_payload_kind,
                "received_at": self.received_at,
            },
        }

    @classmethod
    def from_document(cls, ticker: str, document: dict[str, Any]) -> "TickerSnapshot":
        """Back from an entry of `latest.json`.  Raises ValueError where it is none."""
        if not isinstance(document, dict) or not isinstance(document.get("metadata", {}), dict):
            raise ValueError(f"no entry of a ticker: {ticker!r}")
        data = {kind: document.get(kind) for kind in KINDS}
        if any(value is not None and not isinstance(value, dict) for value in data.values()):
            raise ValueError(f"a payload of {ticker!r} is not an object")
        metadata = document.get("metadata", {})
        return cls(
            ticker,
            **data,
            updated_at=document.get("updated_at"),
            **{key: metadata.get(key) for key in ("received_at", "last_endpoint", "last_payload_kind")},
        )

    def state(self) -> TickerState:
        """As the server carries it."""
        parts = {kind: Part.of(data) for kind in KINDS if (data := getattr(self, kind)) is not None}
        return TickerState(**{**self.__dict__, **parts})


def _apply(view: dict[str, Any], data: dict[str, Any], own: bool) -> None:
    for key, target in OWN_NUMBERS if own else NUMBERS:
        if data.get(key) is not None:
            view[target] = data[key]
    if isinstance(data.get("timestamp"), (int, float, str)):
        view["timestamp"] = data["timestamp"]
    for key in ("delta_risk_reversal", "strikes", "max_priors"):
        if key in data and not (own and data[key] is None):
            view[key] = data[key]


def _max_change(maxchange: dict[str, Any] | None) -> dict[str, Any]:
    windows = {}
    for key, name in WINDOWS.items():
        pair = (maxchange or {}).get(key)
        if isinstance(pair, list) and len(pair) >= 2:
            windows[name] = {"strike": pair[0], "net_gex": pair[1]}
    return windows


Held = TypeVar("Held", bound=_Ticker[Any])


class SnapshotStore(Generic[Held]):
    """Ticker → what is known of it.  Whoever changes it must hold the order of the journal.

    make: TickerState or TickerSnapshot, for a ticker that is not known yet.
    """

    def __init__(self, make: Callable[[str], Held]) -> None:
        self._make = make
        self._tickers: dict[str, Held] = {}

    def get(self, ticker: str) -> Held:
        """What is known of a ticker; an empty one where it is new."""
        return self._tickers.get(ticker) or self._make(ticker)

    def __len__(self) -> int:
        return len(self._tickers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tickers)

    def __contains__(self, ticker: object) -> bool:
        return ticker in self._tickers

    def drop(self, ticker: str) -> Callable[[], None]:
        """Forget a ticker; returns the function that takes it back."""
        before = self._tickers.pop(ticker, None)
        return lambda: None if before is None else self._tickers.__setitem__(ticker, before)

    def put(self, snapshot: Held) -> Callable[[], None]:
        """Take the new state of a ticker; returns the function that takes it back."""
        before = self._tickers.get(snapshot.ticker)
        self._tickers[snapshot.ticker] = snapshot

        def undo() -> None:
            if before is None:
                self._tickers.pop(snapshot.ticker, None)
            else:
                self._tickers[snapshot.ticker] = before

        return undo

    def tickers(self) -> list[Held]:
        """All of them, at this moment."""
        return list(self._tickers.values())
