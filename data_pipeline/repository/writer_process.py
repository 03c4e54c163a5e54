"""`WriterProcess`: the process that turns the journal into tables and files, as the server sees it."""

import bisect
import collections
import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import threading
import time
from typing import IO, Any

from data_pipeline import BridgeError
from data_pipeline.background import child_command, child_environment
from data_pipeline.config import Settings
from data_pipeline.repository.journal import Journal

log = logging.getLogger("webhook")
TELL_INTERVAL = 0.02  # s, between two words to the writer
DEAF_PAUSE = 0.2  # s, before a word that did not get through is said again
RESTART_PAUSES = (0.1, 1.0, 5.0, 15.0)  # s, before the writer is started again
WRITER = "data_pipeline.writer"
READERS = ("loader", "files", "depth")  # of the journal, each with its own position
STEADY = 60.0  # s that a writer must have lived for the pauses to begin anew


class DatabaseUnreadable(BridgeError):
    """A database that is there at the start and cannot be read."""


class WriterProcess:
    """The writer as the server sees it: started, told how far the journal is durable, watched, stopped.

    It gets the settings as they are here, over its standard input: what `.env`
    says by now is none of its business.  What it says comes as lines of JSON;
    what it logs goes where the server's own log goes.
    """

    def __init__(self, settings: Settings, journal: Journal):
        self.settings = settings
        self.journal = journal
        self.restarts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.report: dict[str, Any] = {}
        self._moved = time.monotonic()  # when the loader last showed a sign of life
        self._news = threading.Event()
        self._stopping = threading.Event()
        # (number, time) of what became durable, as long as it is not in tables, files and depth files.
        self._unread: collections.deque[tuple[int, float]] = collections.deque(maxlen=100_000)
        # Guards taking from it: several clients may ask for the counts at once.
        self._counting = threading.Lock()
        self._threads = [
            threading.Thread(target=self._watch, name="WriterWatch", daemon=True),
            threading.Thread(target=self._send_news, name="WriterBell", daemon=True),
        ]

    def start(self) -> None:
        """Start it, and watch it.  Raises OSError, RuntimeError where the system gives no process or no thread."""
        self.tell(self.journal.durable)
        self._spawn()
        for thread in self._threads:
            thread.start()

    def tell(self, number: int) -> None:
        """The journal is durable up to `number`."""
        if not self._news.is_set():
            self._news.set()

    def stop(self, timeout: float) -> bool:
        """Have it finish what is in the journal; True if it did within `timeout` seconds, else it is killed."""
        until = time.monotonic() + timeout
        self._stopping.set()
        self._news.set()
        process = self._process
        if process is None:
            return False
        self._threads[1].join(max(0.0, until - time.monotonic()))
        while not self._send(f"{self.journal.durable}\nstop\n") and process.poll() is None and time.monotonic() < until:
            time.sleep(TELL_INTERVAL)
        code: int | None = None
        try:
            code = process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning(
                "the writer did not finish in time; the rest stays in the journal and is done at the next start"
            )
            _end_group(process)
            process.wait()
        self._threads[0].join(1.0)
        _stdin(process).close()
        return code == 0

    def stats(self) -> dict[str, Any]:
        """The writer's last report, and how far its readers are behind the journal; see README, `/status`."""
        report = self.report
        readers = {name: dict(report.get(name, {})) for name in READERS}
        positions = [reader.get("position", 0) for reader in readers.values()]
        now = time.monotonic()
        with self._counting:
            while self._unread and self._unread[0][0] <= min(positions):
                self._unread.popleft()
            for reader, position in zip(readers.values(), positions):
                oldest = bisect.bisect_right(self._unread, position, key=lambda entry: entry[0])
                reader["lag_records"] = max(0, self.journal.durable - position)
                reader["lag_seconds"] = now - self._unread[oldest][1] if oldest < len(self._unread) else 0.0
        # How long records have been waiting without the loader so much as trying.
        readers["loader"]["idle_seconds"] = min(readers["loader"]["lag_seconds"], now - self._moved)
        running = self._process is not None and self._process.poll() is None
        return {**report, **readers, "writer": {"running": running, "restarts": self.restarts}}

    def ask_last_link(self) -> int:
        """The highest id of the history queue in the database; for a journal that begins beside an older file.

        Raises DatabaseUnreadable.
        """
        answer = subprocess.run(
            child_command(WRITER, "--last-link"),
            env=child_environment(),
            input=self._settings_line(),
            stdout=subprocess.PIPE,
        )
        try:
            found = json.loads(answer.stdout)
            return int(found["last_link"])
        except (ValueError, TypeError, KeyError):
            why = f"it ended with {answer.returncode}" if not answer.stdout else found.get("problem")
            raise DatabaseUnreadable(
                f"cannot start: {self.settings.database} cannot be read; close the program that has it open"
                f" and start again ({why})"
            ) from None

    def _settings_line(self) -> bytes:
        return self.settings.to_json().encode() + b"\n"

    def _spawn(self) -> None:
        journal = self.journal
        ends = ["--end", str(journal.opened_at), "--durable", str(journal.durable)]
        # Its own session: a Ctrl-C is for the server, which then lets it finish.
        self._process = subprocess.Popen(
            child_command(WRITER, "--journal", journal.id, *ends),
            env=child_environment(),
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        stdin = _stdin(self._process)
        with contextlib.suppress(BrokenPipeError):  # it is gone again; `_watch` sees that
            stdin.write(self._settings_line())
        # A writer that hangs must not make the server hang with it.
        os.set_blocking(stdin.fileno(), False)
        self._news.set()

    def _send(self, words: str) -> bool:
        """False where it did not get through: the pipe is full, as the writer is stopped, or the writer is gone.

        So short a text goes into a pipe whole or not at all.
        """
        try:
            return self._process is not None and _stdin(self._process).write(words.encode()) is not None
        except (OSError, ValueError) as problem:
            log.debug("the writer does not hear: %s", problem)
            return False

    def _send_news(self) -> None:
        while True:
            self._news.wait()
            self._news.clear()
            if self._stopping.is_set():
                return
            durable = self.journal.durable
            if not self._unread or self._unread[-1][0] != durable:
                self._unread.append((durable, time.monotonic()))
            if self._send(f"{durable}\n"):
                time.sleep(TELL_INTERVAL)
            else:
                self._news.set()
                self._stopping.wait(DEAF_PAUSE)

    def _receive(self, report: dict[str, Any]) -> None:
        signs = ("position", "sessions", "failed_sessions")
        before = self.report.get("loader", {})
        if any(report["loader"][sign] != before.get(sign) for sign in signs):
            self._moved = time.monotonic()
        self.report = report

    def _watch(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            assert self._process is not None
            # Buffered: the bare pipe would be read a byte at a time.
            with io.BufferedReader(_stdout(self._process)) as lines:
                for line in lines:
                    with contextlib.suppress(ValueError):  # half a line is what a kill leaves
                        self._receive(json.loads(line))
            code = self._process.wait()
            _end_group(self._process)
            if self._stopping.is_set():
                return
            failures = 0 if time.monotonic() - began > STEADY else failures + 1
            pause = RESTART_PAUSES[min(failures, len(RESTART_PAUSES) - 1)]
            log.error("the writer ended with %s; it is started again in %g s, nothing is lost", code, pause)
            if not self._spawn_after(pause):
                return

    def _spawn_after(self, pause: float) -> bool:
        """Start it again; False if the stop comes first."""
        if self._process is not None:
            _stdin(self._process).close()
        while not self._stopping.wait(pause):
            try:
                self._spawn()
                self.restarts += 1
                return True
            except OSError as problem:  # no memory, no descriptors, no processes: it may pass
                pause = RESTART_PAUSES[-1]
                log.error("the writer cannot be started, next try in %g s: %s", pause, problem)
        return False


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the writer, where it still is, and the imports and archive runs that it left: they are in its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _stdin(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None  # it is a pipe
    return process.stdin


def _stdout(process: subprocess.Popen[bytes]) -> io.FileIO:
    assert isinstance(process.stdout, io.FileIO)  # a pipe, without a buffer
    return process.stdout
