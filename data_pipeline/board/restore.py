"""After a restart the board gets its day back from the level files."""

import datetime
import logging
import pathlib
import time
from urllib.parse import unquote

from data_pipeline.background import Background
from data_pipeline.board import days
from data_pipeline.board.board import Board
from data_pipeline.board.series import trading_day
from data_pipeline.files import levels

log = logging.getLogger("webhook")


class BoardRestore(Background):
    """Reads today's level files once, on a thread of its own, while requests are answered already.

    What came in meanwhile stays: a row or column that the board has is never
    replaced by one of a file.
    """

    def __init__(self, board: Board, data_dir: pathlib.Path):
        super().__init__("BoardRestore")
        self.board = board
        self.data_dir = data_dir
        self.series = 0

    def _run(self) -> None:
        began = time.monotonic()
        day = trading_day(self.board.clock())
        for path in sorted((self.data_dir / levels.FOLDER).glob(f"*/*/{day}.csv")):
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
