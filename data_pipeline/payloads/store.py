"""The last payload of each kind for each ticker, and the view that combines them."""

from dataclasses import dataclass, replace

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

# (key of a max-change payload, name of the window in the view).
WINDOWS = (
    ("current", "Now"),
    ("one", "1 min"),
    ("five", "5 min"),
    ("ten", "10 min"),
    ("fifteen", "15 min"),
    ("thirty", "30 min"),
)


def normalise(ticker: str) -> str:
    """The ticker as it is known everywhere: upper case, no aliases."""
    return ticker.upper()


@dataclass(frozen=True)
class TickerSnapshot:
    """What is known of one ticker.  It never changes: a payload makes a new one.

    `majors`, `maxchange` and `snapshot` are the last `data` of each kind, or
    None; where only their bytes are carried along they may be anything, and
    then `combined` and `document` are not to be called.
    """

    ticker: str
    majors: object = None
    maxchange: object = None
    snapshot: object = None
    updated_at: str | None = None
    received_at: str | None = None
    last_endpoint: str | None = None
    last_payload_kind: str | None = None

    def merged(self, kind: str, data: object, endpoint: str | None, received_at: str | None) -> "TickerSnapshot":
        """This one after a payload; an empty endpoint or time leaves the last one."""
        return replace(
            self,
            **{kind: data},
            updated_at=received_at or self.updated_at,
            received_at=received_at or self.received_at,
            last_endpoint=endpoint or self.last_endpoint,
            last_payload_kind=kind,
        )

    def combined(self) -> dict:
        """The snapshot with the majors over it, and the max-change windows."""
        view = dict.fromkeys(COMBINED)
        for data in (self.snapshot, self.majors):
            if data is not None:
                _apply(view, data)
        view["max_change"] = _max_change(self.maxchange)
        if self.last_endpoint:
            view["source_endpoint"] = self.last_endpoint
        view["has_snapshot"] = self.snapshot is not None
        return view

    def document(self) -> dict:
        """This ticker's entry of `latest.json`."""
        return {
            "ticker": self.ticker,
            "updated_at": self.updated_at,
            "majors": self.majors,
            "maxchange": self.maxchange,
            "snapshot": self.snapshot,
            "combined": self.combined(),
            "metadata": {
                "last_endpoint": self.last_endpoint,
                "last_payload_kind": self.last_payload_kind,
                "received_at": self.received_at,
            },
        }

    @classmethod
    def from_document(cls, ticker: str, document: dict) -> "TickerSnapshot":
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


def _apply(view: dict, data: dict) -> None:
    for key, target in NUMBERS:
        if data.get(key) is not None:
            view[target] = data[key]
    if isinstance(data.get("timestamp"), (int, float, str)):
        view["timestamp"] = data["timestamp"]
    for key in ("delta_risk_reversal", "strikes", "max_priors"):
        if key in data:
            view[key] = data[key]


def _max_change(maxchange: dict | None) -> dict:
    windows = {}
    for key, name in WINDOWS:
        pair = (maxchange or {}).get(key)
        if isinstance(pair, list) and len(pair) >= 2:
            windows[name] = {"strike": pair[0], "net_gex": pair[1]}
    return windows


class SnapshotStore:
    """Ticker → TickerSnapshot.  Whoever changes it must hold the order of the journal."""

    def __init__(self):
        self._tickers: dict[str, TickerSnapshot] = {}

    def get(self, ticker: str) -> TickerSnapshot:
        return self._tickers.get(ticker) or TickerSnapshot(ticker)

    def put(self, snapshot: TickerSnapshot):
        """Take the new state of a ticker; returns the function that takes it back."""
        before = self._tickers.get(snapshot.ticker)
        self._tickers[snapshot.ticker] = snapshot

        def undo():
            if before is None:
                self._tickers.pop(snapshot.ticker, None)
            else:
                self._tickers[snapshot.ticker] = before

        return undo

    def tickers(self) -> list[TickerSnapshot]:
        """All of them, at this moment."""
        return list(self._tickers.values())
