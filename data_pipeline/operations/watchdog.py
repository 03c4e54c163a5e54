"""What systemd is told while the server runs: READY once it works, WATCHDOG while it goes on working."""

import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

from data_pipeline.operations import systemd

log = logging.getLogger("webhook")

ANSWER_TIME = 5.0  # s in which the server must answer itself
START_LOOK = 0.05  # s between two looks at whether the writer has begun


class Watchdog:
    """Feeds systemd's watchdog from a thread of its own; without systemd there is no thread.

    address: where the server listens; stats: of the repository.  READY is
    sent once the server answers (it does so after the journal is replayed)
    and the writer has reported.  A sign of life is sent only if the server
    answers itself over a socket and the loader either has nothing to do or
    has tried to within the watchdog's time: a database that is busy, or a
    disk that is full, is no reason to be started again.
    """

    def __init__(self, address: tuple[Any, ...], stats: Callable[[], dict[str, Any]]):
        self._address = address
        self._stats = stats
        self._limit = systemd.watchdog_interval()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="Watchdog", daemon=True)

    def start(self) -> None:
        """Begin, where systemd is there.  Raises RuntimeError where the system gives no thread."""
        if systemd.is_there():
            self._thread.start()

    def stop(self) -> None:
        """Tell systemd that the end has begun."""
        self._stopping.set()
        systemd.notify("STOPPING=1")

    def problem(self) -> str:
        """Why systemd should start the server again; empty where it need not."""
        if not self._answers():
            return f"the server does not answer itself within {ANSWER_TIME:g} s"
        idle = self._stats()["loader"]["idle_seconds"]
        if self._limit is not None and idle > self._limit:
            return f"records wait and the loader has tried nothing for {idle:.0f} s"
        return ""

    def _run(self) -> None:
        while not self._is_ready():
            if self._stopping.wait(START_LOOK):
                return
        systemd.notify("READY=1\nSTATUS=works")
        while self._limit and not self._stopping.is_set():
            try:
                problem = self.problem()
            except Exception:
                log.exception("the server could not look at itself")
                problem = "the server could not look at itself"
            if problem:
                log.error("systemd gets no sign of life: %s", problem)
                systemd.notify(f"STATUS={problem}")
            else:
                systemd.notify("WATCHDOG=1\nSTATUS=works")
            self._stopping.wait(self._limit / 3)

    def _is_ready(self) -> bool:
        try:
            return "position" in self._stats()["loader"] and self._answers()
        except Exception as problem:  # a count that is not there yet, a folder that cannot be listed: look again
            log.debug("not ready: %r", problem)
            return False

    def _answers(self) -> bool:
        host, port = self._address[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        try:
            with socket.create_connection((host, port), ANSWER_TIME) as sock:
                sock.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                return sock.recv(64).startswith(b"HTTP/1.0 200 ")
        except OSError:
            return False
