"""One series, a ticker and an endpoint, over one trading day."""

from __future__ import annotations  # array is generic to type checkers only, before Python 3.12

import bisect
import datetime
import math
import operator
from array import array
from collections.abc import Iterator, Mapping, Sequence

from data_pipeline.files.levels import MINUTE
from data_pipeline.payloads import reading, times
from data_pipeline.payloads.reading import Reading, Strike
from data_pipeline.payloads.times import NEW_YORK

COLUMNS = tuple(reading.NAMES)
# Rows that a day may have: a payload a second around the clock.  Over it the oldest rows go.
MOST_ROWS = 86_400
LATEST = float(times.LATEST)
SURELY = 23 * 3600  # s before midnight that are of the same day, on the shortest day of the year too


def trading_day(moment: float) -> datetime.date:
    """The New York date of a time in UTC seconds."""
    return datetime.datetime.fromtimestamp(moment, NEW_YORK).date()


def day_ends(day: datetime.date) -> float:
    """UTC seconds of the New York midnight that ends a date."""
    return datetime.datetime.combine(day + datetime.timedelta(days=1), datetime.time(), NEW_YORK).timestamp()


class Series:
    """The last payload of each kind and the day's columns, at the feed's own resolution.  Guarded by the board's lock.

    A payload of a later day begins the day anew; one of an earlier day changes
    nothing here, it is in the tables.  `changes` counts what was taken in.
    """

    def __init__(self, ticker: str, endpoint: str):
        self.ticker = ticker
        self.endpoint = endpoint
        self.day: datetime.date | None = None
        self.changes = 0
        self._begin(None)

    def _begin(self, day: datetime.date | None) -> None:
        self.day = day
        self._ends = 0.0 if day is None else day_ends(day)
        self.last: dict[str, tuple[float, Mapping[str, object]]] = {}  # kind -> (time, data)
        self._times = array("d")
        self._columns = {name: array("d") for name in COLUMNS}
        self._latest: dict[str, tuple[float, float]] = {}  # column -> (time, value), of the newest row that has one
        # minute -> strikes, gamma by volume, gamma by open interest, as of its first snapshot
        self._grid: dict[int, tuple[array[float], array[float], array[float]]] = {}

    @property
    def updated(self) -> float | None:
        """The newest payload's own time, UTC seconds; None before the first."""
        newest = [moment for moment, _ in self.last.values()]
        return max([*newest, *self._times[-1:]], default=None)

    def add(self, kind: str, data: Mapping[str, object], received: float) -> bool:
        """Take a payload in; False where it is of an earlier day.  received: UTC seconds."""
        moment, values = reading.time_and_values(data, received)
        # Most payloads are of the day that is on; the time zone is asked only where it could be another one.
        surely = self.day is not None and self._ends - SURELY < moment < self._ends
        day = self.day if self.day is not None and surely else trading_day(moment)
        if self.day is None or day > self.day:
            self._begin(day)
        elif day < self.day:
            return False
        if kind not in self.last or moment >= self.last[kind][0]:
            self.last[kind] = (moment, data)
        if kind != "maxchange" and values:
            self.add_row(moment, values)
        if kind == "snapshot" and data.get("strikes"):
            # Once a minute, not in each request.
            if (minute := int(moment) // MINUTE) not in self._grid:
                column = _plain_column(data["strikes"])
                if column is not None:
                    self._grid[minute] = column
                else:
                    self.add_column(minute, reading.strikes(data["strikes"]))
        self.changes += 1
        return True

    def add_row(self, moment: float, values: Mapping[str, float]) -> None:
        """One row for each time: a later payload of the same second fills in what the row did not have."""
        at = bisect.bisect_left(self._times, moment)
        if at == len(self._times) or self._times[at] != moment:
            self._times.insert(at, moment)
            for column in self._columns.values():
                column.insert(at, math.nan)
        for name, value in values.items():
            self._columns[name][at] = value
            if moment >= self._latest.get(name, (moment, value))[0]:
                self._latest[name] = (moment, value)
        if len(self._times) > MOST_ROWS:
            del self._times[0]
            for column in self._columns.values():
                del column[0]

    def add_column(self, minute: int, strikes: Sequence[Strike]) -> None:
        """The grid's column of a minute (UTC seconds // 60): of its first snapshot: it never knows the future."""
        if minute in self._grid or not strikes:
            return
        self._grid[minute] = (
            array("d", (one.strike for one in strikes)),
            array("f", (_narrow(one.volume) for one in strikes)),
            array("f", (_narrow(one.open_interest) for one in strikes)),
        )

    def restore(
        self,
        day: datetime.date,
        rows: Sequence[tuple[float, Mapping[str, float]]],
        grid: Sequence[tuple[int, Sequence[Strike]]],
    ) -> None:
        """Begin with what was written down of `day`: (time, value by column) and (minute, strikes)."""
        self._begin(day)
        for moment, values in rows:
            self.add_row(moment, values)
        for minute, strikes in grid:
            self.add_column(minute, strikes)

    def take_over(self, written: Series) -> None:
        """Put what was written down of this day under what this series has already."""
        if self.day is None:
            self._begin(written.day)
        if self.day != written.day:
            return
        live, self._times, self._columns = list(self.rows(0, LATEST)), written._times, written._columns
        self._latest = written._latest
        for moment, row in live:
            self.add_row(moment, {name: value for name, value in row.items() if value is not None})
        self._grid = written._grid | self._grid
        self.changes += 1

    def reading(self, kind: str) -> Reading | None:
        """The last payload of a kind with its strikes; None where none came today."""
        if kind not in self.last:
            return None
        moment, data = self.last[kind]
        return reading.read(data, moment)

    def strikes_at(self, moment: float) -> tuple[float, tuple[Strike, ...]] | None:
        """(time, strikes) as of a time: the grid's column of that minute or the last before it; None where none is."""
        minutes = [minute for minute in self._grid if minute <= int(moment) // MINUTE]
        if not minutes:
            return None
        minute = max(minutes)
        unknown = (None,) * reading.PRIORS
        return float(minute * MINUTE), tuple(
            Strike(strike, volume, None if math.isnan(oi) else oi, unknown)
            for strike, volume, oi in zip(*self._grid[minute])
        )

    def rows(self, start: float, end: float) -> Iterator[tuple[float, dict[str, float | None]]]:
        """(time, value by column) from start up to, not with, end; what a payload did not have is None."""
        first, last = bisect.bisect_left(self._times, start), bisect.bisect_left(self._times, end)
        for at in range(first, last):
            yield self._times[at], {name: _known(column[at]) for name, column in self._columns.items()}

    def grid(self) -> dict[int, tuple[array[float], array[float], array[float]]]:
        """minute (UTC seconds // 60) → strikes, gamma by volume, gamma by open interest (NaN: unknown)."""
        return {minute: self._grid[minute] for minute in sorted(self._grid)}

    def latest(self) -> dict[str, float | None]:
        """Each column's last known value: what the tiles show."""
        return {name: self._latest[name][1] if name in self._latest else None for name in COLUMNS}


def _plain_column(entries: object) -> tuple[array[float], array[float], array[float]] | None:
    """What `add_column` makes of strikes, ten times as fast, where all are lists of numbers in ascending order."""
    try:
        first, second, third = zip(*((e[0], e[1], e[2]) for e in entries))  # type: ignore[attr-defined]
        column = array("d", first), array("f", second), array("f", third)
    except (TypeError, ValueError, IndexError, KeyError, OverflowError):
        return None
    ascending = all(map(operator.lt, column[0], column[0][1:]))
    return column if ascending and math.isfinite(sum(map(sum, column))) else None


def _known(value: float) -> float | None:
    return value if value == value else None


def _narrow(value: float | None) -> float:
    """Four bytes are enough for a colour; what they cannot hold is unknown there."""
    return value if value is not None and abs(value) < 3e38 else math.nan
