"""The flow tape: the newest option trades and flow alerts, in memory."""

import collections
import itertools
from collections.abc import Mapping
from typing import Any

from data_pipeline.payloads import times
from data_pipeline.payloads.flow import option_flow

MOST_ROWS = 2_000
SHOWN = (
    "symbol",
    "option_symbol",
    "option_type",
    "strike",
    "expiration",
    "side",
    "sentiment",
    "size",
    "price",
    "premium",
    "underlying_price",
    "rule",
    "has_sweep",
)

Row = dict[str, Any]


class Tape:
    """The last MOST_ROWS rows, the newest last.  Guarded by the board's lock.  The tables have them all."""

    def __init__(self) -> None:
        self._rows: collections.deque[Row] = collections.deque(maxlen=MOST_ROWS)
        self._numbers = itertools.count(1)

    def add(self, payload: dict[str, Any], received: float) -> int:
        """Take in a whole `/uw` payload; returns how many rows it had.  received: UTC seconds."""
        found = option_flow(payload)
        for row in found:
            moment = times.seconds_of(row["executed_at"])
            shown = {"number": next(self._numbers), "time": received if moment is None else moment}
            self._rows.append(shown | {name: row[name] for name in SHOWN})
        return len(found)

    def rows(self, since: float, symbol: str | None, side: str | None, min_premium: float, limit: int) -> list[Row]:
        """The newest rows that fit, the newest first; since: UTC seconds, exclusive; premium in dollars."""
        fitting = (row for row in reversed(self._rows) if _fits(row, since, symbol, side, min_premium))
        return list(itertools.islice(fitting, limit))


def _fits(row: Mapping[str, Any], since: float, symbol: str | None, side: str | None, min_premium: float) -> bool:
    return (
        row["time"] > since
        and (symbol is None or row["symbol"] == symbol)
        and (side is None or row["side"] == side)
        and (min_premium <= 0 or (row["premium"] or 0) >= min_premium)
    )
