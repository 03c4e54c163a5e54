"""Once a night: closed days of the live tables go to the lake, in a process of its own."""

import logging
import pathlib
import subprocess
import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from data_pipeline.background import Background, child_command, child_environment

log = logging.getLogger("webhook")

AT_HOUR = 3  # local time: no market is open, and the day that closed at midnight UTC is whole


class NightlyArchive(Background):
    """Runs `archive --keep-days` at AT_HOUR each night; `stop` ends a run that is going on.

    A run that is ended, or fails, loses nothing and is done again the next night.
    """

    def __init__(self, data_dir: pathlib.Path, keep_days: int, now: Callable[[], datetime] = datetime.now):
        super().__init__("NightlyArchive")
        self._command = child_command(
            "data_pipeline", "archive", "--keep-days", str(keep_days), "--json", "--data-dir", str(data_dir)
        )
        self._now = now
        self._lock = threading.Lock()  # guards `_child`
        self._child: subprocess.Popen[str] | None = None
        self._done = self._failed = 0

    def _wake(self) -> None:
        with self._lock:
            if self._child is not None:
                self._child.terminate()

    def stats(self) -> dict[str, int]:
        """Runs by how they ended."""
        return {"done": self._done, "failed": self._failed}

    def _run(self) -> None:
        while not self._stopping.wait(seconds_until_night(self._now())):
            self.run()

    def run(self) -> int:
        """One run, now; returns its exit code, -1 where there was none."""
        with self._lock:
            if self._stopping.is_set():
                return -1
            try:
                self._child = subprocess.Popen(
                    self._command, env=child_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
                )
            except OSError as problem:  # no memory or no process left, say
                self._failed += 1
                log.error("the archive run cannot be started, and is tried again next night: %s", problem)
                return -1
        said, _ = self._child.communicate()
        code = self._child.returncode
        with self._lock:
            self._child = None
        if code == 0:
            self._done += 1
            log.info("archived: %s", " ".join(said.split()))
        else:
            self._failed += 1
            log.error("the archive run ended with %d; it is done again next night: %s", code, " ".join(said.split()))
        return code


def seconds_until_night(now: datetime) -> float:
    """Seconds from a local time to the next AT_HOUR."""
    night = now.replace(hour=AT_HOUR, minute=0, second=0, microsecond=0)
    if night <= now:
        night += timedelta(days=1)
    return (night - now).total_seconds()
