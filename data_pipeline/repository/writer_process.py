"""`WriterProcess`: the process that turns the journal into tables and files, as the server sees it."""

import collections
import contextlib
import json
import logging
import os
import pathlib
import subprocess
import sys
import threading
import time

from data_pipeline.repository.journal import Journal

log = logging.getLogger("webhook")
TELL_INTERVAL = 0.02  # s, between two words to the writer
RESTART_PAUSES = (0.1, 1.0, 5.0, 15.0)  # s, before the writer is started again
STEADY = 60.0  # s that a writer must have lived for the pauses to begin anew


class WriterProcess:
    """The writer as the server sees it: started, told how far the journal is durable, watched, stopped.

    What it says comes as lines of JSON; what it logs goes where the server's
    own log goes.
    """

    def __init__(self, settings, journal: Journal):
        self.settings = settings
        self.journal = journal
        self.restarts = 0
        self._process: subprocess.Popen | None = None
        self.report: dict = {}
        self._moved = time.monotonic()  # when the loader last showed a sign of life
        self._news = threading.Event()
        self._stopping = threading.Event()
        # (number, time) of what became durable, as long as it is not in the tables.
        self._unloaded: collections.deque[tuple[int, float]] = collections.deque(maxlen=100_000)
        # Guards taking from it: several clients may ask for the counts at once.
        self._counting = threading.Lock()
        self._threads = [
            threading.Thread(target=self._watch, name="WriterWatch", daemon=True),
            threading.Thread(target=self._send_news, name="WriterBell", daemon=True),
        ]

    def start(self) -> None:
        self.tell(self.journal.durable)
        self._spawn()
        for thread in self._threads:
            thread.start()

    def tell(self, number: int) -> None:
        """The journal is durable up to `number`."""
        if not self._news.is_set():
            self._news.set()

    def stop(self, timeout: float) -> bool:
        until = time.monotonic() + timeout
        self._stopping.set()
        self._news.set()
        process = self._process
        if process is None:
            return False
        self._threads[1].join(max(0.0, until - time.monotonic()))
        self._send(f"{self.journal.durable}\nstop\n")
        try:
            code = process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning(
                "the writer did not finish in time; the rest stays in the journal and is done at the next start"
            )
            process.kill()
            process.wait()
            code = None
        self._threads[0].join(1.0)
        process.stdin.close()
        return code == 0

    def stats(self) -> dict:
        report = dict(self.report)
        loader = dict(report.get("loader", {}))
        position = loader.get("position", 0)
        now = time.monotonic()
        with self._counting:
            while self._unloaded and self._unloaded[0][0] <= position:
                self._unloaded.popleft()
            lag = now - self._unloaded[0][1] if self._unloaded else 0.0
        loader["lag_records"] = max(0, self.journal.durable - position)
        loader["lag_seconds"] = lag
        # How long records have been waiting without the loader so much as trying.
        loader["idle_seconds"] = min(lag, now - self._moved)
        running = self._process is not None and self._process.poll() is None
        return {**report, "loader": loader, "writer": {"running": running, "restarts": self.restarts}}

    def ask_last_link(self) -> int:
        """The highest id of the history queue in the database; for a journal that begins beside an older file."""
        answer = subprocess.run([*self._command(), "--last-link"], env=self._environment(), stdout=subprocess.PIPE)
        if answer.returncode != 0:
            raise OSError(
                f"{self.settings.database} cannot be read; close the program that has it open and start again"
            )
        return int(answer.stdout)

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "data_pipeline.writer", "--data-dir", str(self.settings.data_dir)] + (
            ["--debug"] if self.settings.debug else []
        )

    def _environment(self) -> dict:
        package = str(pathlib.Path(__file__).resolve().parents[2])
        paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**os.environ, "PYTHONPATH": paths}

    def _spawn(self) -> None:
        journal = self.journal
        ends = ["--end", str(journal.opened_at), "--durable", str(journal.durable)]
        # Its own session: a Ctrl-C is for the server, which then lets it finish.
        self._process = subprocess.Popen(
            [*self._command(), "--journal", journal.id, *ends],
            env=self._environment(),
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        # A writer that hangs must not make the server hang with it.
        os.set_blocking(self._process.stdin.fileno(), False)
        self._news.set()

    def _send(self, words: str) -> None:
        try:
            self._process.stdin.write(words.encode())
        except (OSError, ValueError) as problem:  # it is gone, or does not listen; both end otherwise
            log.debug("the writer does not hear: %s", problem)

    def _send_news(self) -> None:
        while True:
            self._news.wait()
            self._news.clear()
            if self._stopping.is_set():
                return
            durable = self.journal.durable
            self._unloaded.append((durable, time.monotonic()))
            self._send(f"{durable}\n")
            time.sleep(TELL_INTERVAL)

    def _receive(self, report: dict) -> None:
        signs = ("position", "sessions", "failed_sessions")
        before = self.report.get("loader", {})
        if any(report["loader"][sign] != before.get(sign) for sign in signs):
            self._moved = time.monotonic()
        self.report = report

    def _watch(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            for line in self._process.stdout:
                with contextlib.suppress(ValueError):  # half a line is what a kill leaves
                    self._receive(json.loads(line))
            code = self._process.wait()
            self._process.stdout.close()
            if self._stopping.is_set():
                return
            failures = 0 if time.monotonic() - began > STEADY else failures + 1
            pause = RESTART_PAUSES[min(failures, len(RESTART_PAUSES) - 1)]
            log.error("the writer ended with %s; it is started again in %g s, nothing is lost", code, pause)
            if not self._spawn_after(pause):
                return

    def _spawn_after(self, pause: float) -> bool:
        """Start it again; False if the stop comes first."""
        self._process.stdin.close()
        while not self._stopping.wait(pause):
            try:
                self._spawn()
                self.restarts += 1
                return True
            except OSError as problem:  # no memory, no descriptors, no processes: it may pass
                pause = RESTART_PAUSES[-1]
                log.error("the writer cannot be started, next try in %g s: %s", pause, problem)
        return False
