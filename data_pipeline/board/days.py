"""Days that are over, as their level files have them."""

import collections
import datetime
import pathlib
import re
import threading

from data_pipeline.board.series import Series
from data_pipeline.files import levels

KEPT = 4  # series of past days that stay in memory, two megabytes each
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}\.csv")


class PastDays:
    """Reads level files when asked, and keeps the few that were asked for last."""

    def __init__(self, data_dir: pathlib.Path):
        self.data_dir = data_dir
        self._kept: collections.OrderedDict[tuple[str, str, datetime.date], tuple[tuple[int, int], Series]]
        self._kept = collections.OrderedDict()
        self._lock = threading.Lock()  # guards `_kept`; also, one file is read at a time

    def days(self, ticker: str, endpoint: str) -> list[str]:
        """The days `YYYY-MM-DD` of a series that have a level file, the oldest first."""
        try:
            found = [path.name for path in (self.data_dir / levels.folder_of(ticker, endpoint)).iterdir()]
        except OSError:  # there is none, or it cannot be read: there is nothing to show
            return []
        return sorted(name.removesuffix(".csv") for name in found if _DAY.fullmatch(name))

    def series(self, ticker: str, endpoint: str, day: datetime.date) -> Series | None:
        """The series of that day, which nobody may change; None where there is no file.  Raises OSError."""
        path = self.data_dir / levels.folder_of(ticker, endpoint) / f"{day}.csv"
        with self._lock:
            try:
                state = path.stat()
            except FileNotFoundError:
                return None
            version, key = (state.st_mtime_ns, state.st_size), (ticker, endpoint, day)
            if key not in self._kept or self._kept[key][0] != version:
                self._kept[key] = version, read(path, ticker, endpoint, day)
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return self._kept[key][1]


def read(path: pathlib.Path, ticker: str, endpoint: str, day: datetime.date) -> Series:
    """The series that a level file `DAY.csv` and the strikes beside it make.  Raises OSError."""
    strikes = path.with_name(f"{day}.strikes.jsonl")
    grid = list(levels.columns(strikes.read_bytes())) if strikes.exists() else []
    series = Series(ticker, endpoint)
    series.restore(day, list(levels.rows(path.read_bytes())), grid)
    return series
