"""After a restart the board gets its day back from the level files."""

import datetime
import logging
import pathlib
import time
from collections.abc import Callable
from urllib.parse import unquote

from data_pipeline.background import Background
from data_pipeline.board import days
from data_pipeline.board.board import Board
from data_pipeline.board.series import trading_day
from data_pipeline.config import DataFolder

log = logging.getLogger("webhook")

LOOK_EVERY = 0.2  # s


class BoardRestore(Background):
    """Reads today's level files on a thread of its own, while requests are answered already.

    What came in meanwhile stays: a row or column that the board has is never
    replaced by one of a file.  caught_up: whether the files have all that was
    acknowledged before the start; after a kill they do not, and are read once
    more when they do.
    """

    def __init__(self, board: Board, data_dir: pathlib.Path, caught_up: Callable[[], bool] = lambda: True):
        super().__init__("BoardRestore")
        self.board = board
        self.data_dir = data_dir
        self.caught_up = caught_up
        self.series = 0

    def _run(self) -> None:
        self._restore_all()
        if not self.caught_up():
            while not self._stopping.wait(LOOK_EVERY):
                if self.caught_up():
                    return self._restore_all()

    def _restore_all(self) -> None:
        began = time.monotonic()
        self.series = 0
        day = trading_day(self.board.clock())
        for path in sorted(DataFolder(self.data_dir).levels.glob(f"*/*/{day}.csv")):
            if self._stopping.is_set():
                return
            try:
                self._restore(path, day)
            except OSError as problem:
                log.warning("the day so far of %a cannot be shown: %s", path.parent.name, problem)
        if self.series:
            log.info("the board has %d series of today back, after %.1f s", self.series, time.monotonic() - began)

    def _restore(self, path: pathlib.Path, day: datetime.date) -> None:
        # A name that was too long for a folder has a hash at its end, and cannot be told from it.
        ticker, endpoint = (unquote(name) for name in path.parts[-3:-1])
        if "~" in ticker or "~" in endpoint:
            return
        self.board.restore(days.read(path, ticker, endpoint, day))
        self.series += 1
