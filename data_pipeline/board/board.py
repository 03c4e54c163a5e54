"""The board: every series of today, fed by what was made durable, read by the API."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from data_pipeline.board.series import Series
from data_pipeline.board.tape import Row, Tape

log = logging.getLogger("webhook")

MOST_SERIES = 64

Answer = TypeVar("Answer")


class Board:
    """(ticker, endpoint) → Series; over MOST_SERIES the one that was silent the longest goes.

    `add` is called in a request, after its payload is durable: it costs some
    hundredths of a millisecond and never raises.  clock: UTC seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time):
        self.clock = clock
        self.failed = self.evicted = self._changes = self.flow_changes = 0
        self._series: dict[tuple[str, str], Series] = {}  # the one heard last stands last
        self._tape = Tape()
        # Guards `_series`, what is in them, and the tape: requests add while the API reads.
        self._lock = threading.Lock()

    def add(self, ticker: str, endpoint: str, kind: str, data: Mapping[str, object]) -> None:
        """Take in a payload of `ticker` (upper case); kind: majors, maxchange or snapshot."""
        try:
            with self._lock:
                key = (ticker, endpoint)
                series = self._series.pop(key, None) or Series(ticker, endpoint)
                self._series[key] = series
                if len(self._series) > MOST_SERIES:
                    del self._series[next(iter(self._series))]
                    self.evicted += 1
                series.add(kind, data, self.clock())
                self._changes += 1
        except Exception:  # the payload is durable: what the board cannot take must not fail its request
            self.failed += 1
            if self.failed == 1:
                log.exception("a payload of %a does not fit the board; more of these are only counted", ticker)

    def add_flow(self, payload: dict[str, Any]) -> None:
        """Take in a whole `/uw` payload for the tape; as `add`, it never raises."""
        try:
            with self._lock:
                self.flow_changes += self._tape.add(payload, self.clock())
        except Exception:
            self.failed += 1
            if self.failed == 1:
                log.exception("a webhook does not fit the tape; more of these are only counted")

    def flow(self, since: float, symbol: str | None, side: str | None, min_premium: float, limit: int) -> list[Row]:
        """The newest rows of the tape that fit; see `Tape.rows`."""
        with self._lock:
            return self._tape.rows(since, symbol, side, min_premium, limit)

    def restore(self, written: Series) -> None:
        """Give a series the rows and the grid back that were written down of its day; what it has already stays."""
        with self._lock:
            series = self._series.setdefault(
                (written.ticker, written.endpoint), Series(written.ticker, written.endpoint)
            )
            series.take_over(written)
            self._changes += 1

    def series(self) -> list[tuple[str, str]]:
        """Every (ticker, endpoint), in alphabetical order."""
        with self._lock:
            return sorted(self._series)

    def ask(self, ticker: str, endpoint: str, question: Callable[[Series], Answer]) -> Answer | None:
        """The answer of a question to one series, asked under the lock; None where there is no such series."""
        with self._lock:
            series = self._series.get((ticker, endpoint))
            return None if series is None else question(series)

    def changes(self, ticker: str | None = None, endpoint: str | None = None) -> int:
        """A number that grows with each payload of that series; of all of them where none is named."""
        with self._lock:
            if ticker is None or endpoint is None:
                return self._changes
            series = self._series.get((ticker, endpoint))
            return 0 if series is None else series.changes

    def stats(self) -> dict[str, int]:
        """Counts for `/status`."""
        return {
            "series": len(self._series),
            "evicted": self.evicted,
            "failed": self.failed,
            "flow": self.flow_changes,
        }
