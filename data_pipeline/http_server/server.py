"""The server: its socket, its worker threads, and what it counts."""

import collections
import contextlib
import logging
import queue
import resource
import socket
import socketserver
import threading
import time
from email.utils import formatdate

from data_pipeline.bridge import Bridge
from data_pipeline.http_server.access import Access
from data_pipeline.http_server.api import Api
from data_pipeline.http_server.connection import Connection, Limits
from data_pipeline.http_server.handler import GEXBridgeRequestHandler
from data_pipeline.http_server.kept_threads import KeptThreads
from data_pipeline.http_server.pages import Pages
from data_pipeline.http_server.waiting_room import MOST_DRAINING, WaitingRoom

log = logging.getLogger("webhook")
PROMPT = 0.01  # s that a worker gives a client to send its request, before it takes the next one
SLOW_WORKERS = 8
OTHER_FILES = 100  # descriptors for all that is no client
MESSAGE_PAUSE = 60.0  # s between two lines about the same trouble


class BridgeServer(socketserver.TCPServer):
    """A threading server whose threads are reused: each of `workers` accepts, answers, and accepts again.

    A request that does not arrive at once waits in the waiting room, where it costs
    no thread; it is answered by one of SLOW_WORKERS.  What a client does not
    take of its answer at once goes out from the waiting room too.  `count` and
    `counts` keep the number of answers by path and status.
    """

    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(
        self,
        address: tuple[str, int],
        bridge: Bridge,
        pages: Pages,
        workers: int,
        most: int,
        limits: Limits,
        api: Api | None = None,
        access: Access | None = None,
    ):
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, GEXBridgeRequestHandler)
        self.bridge = bridge
        self.pages = pages
        self.api = api
        self.access = access or Access(address[0], "")
        self.limits = limits
        self.started = time.monotonic()
        self._counts: collections.Counter[tuple[str, int]] = collections.Counter()
        # Guards `_counts`, `_busy`, `_turned_away` and `_said`; notified when a request is done.
        self._lock = threading.Condition()
        self._busy = 0  # requests that are being answered or wait for a slow worker
        self._turned_away = 0  # requests that became whole after the stop
        self._said = -MESSAGE_PAUSE
        self._date = 0, ""
        self._closing = False
        self._waiting_room = WaitingRoom(_within_descriptors(most, workers), self._answer_late)
        self._late: queue.SimpleQueue[Connection | None] = queue.SimpleQueue()
        self._threads = KeptThreads(
            {"WaitingRoom": self._waiting_room.run}
            | {f"Worker-{n}": self._work for n in range(1, workers + 1)}
            | {f"SlowWorker-{n}": self._work_late for n in range(1, SLOW_WORKERS + 1)}
        )

    @property
    def port(self) -> int:
        return self.server_address[1]

    def start(self) -> None:
        self._threads.start()

    def stop(self, timeout: float) -> bool:
        """Accept nothing more and let requests finish; True if all did within `timeout` seconds."""
        self._threads.stop()
        self._closing = True
        until = time.monotonic() + timeout
        self.socket.shutdown(socket.SHUT_RDWR)  # wakes every worker in accept()
        with self._lock:
            self._lock.wait_for(lambda: self._busy == 0, timeout)
        self._waiting_room.stop(max(0.0, until - time.monotonic()))
        with self._lock:
            cut_off = self._busy + self._turned_away + self._waiting_room.sending
        with contextlib.suppress(queue.Empty):
            while connection := self._late.get_nowait():
                connection.sock.close()
        for _ in range(SLOW_WORKERS):
            self._late.put(None)
        self.server_close()
        if cut_off:
            log.warning("%d requests were cut off", cut_off)
        return not cut_off

    def stats(self) -> dict[str, int | list[str]]:
        """The threads that answer: which are missing, and how often one was started again."""
        return {"missing_threads": self._threads.missing(), "restarted_threads": self._threads.restarted}

    def count(self, path: str, status: int) -> None:
        with self._lock:
            self._counts[path, status] += 1

    def counts(self) -> dict[str, dict[str, int]]:
        """{path: {status: number of answers}}; paths that are no endpoint are `other`."""
        with self._lock:
            counted = list(self._counts.items())
        found: dict[str, dict[str, int]] = {}
        for (path, status), number in sorted(counted):
            found.setdefault(path, {})[str(status)] = number
        return found

    def date_header(self) -> str:
        """Now, as the Date header has it; made once a second."""
        second, text = self._date
        if second != (now := int(time.time())):
            text = formatdate(now, usegmt=True)
            self._date = now, text
        return text

    def _work(self) -> None:
        while not self._closing:
            try:
                sock, address = self.socket.accept()
            except OSError as problem:
                if not self._closing:
                    self._say_once_a_minute(f"cannot accept: {problem}")
                    time.sleep(0.1)
                continue
            try:
                self._begin(Connection(sock, address, self.limits))
            except Exception:  # no memory, no thread: one connection's failure is its own, the worker goes on
                log.exception("a connection of %s failed", address[0])
                sock.close()

    def _begin(self, connection: Connection) -> None:
        """Answer a client that sends its request at once; the others go to the waiting room."""
        until = time.monotonic() + PROMPT
        try:
            try:
                connection.receive_all(until, socket.MSG_DONTWAIT)  # most often it is here already
            except BlockingIOError:
                connection.sock.settimeout(PROMPT)
                connection.receive_all(until)
        except TimeoutError:
            return self._waiting_room.add(connection)
        except OSError:
            connection.silent = True
        with self._lock:
            self._busy += 1
        self._answer(connection)

    def _say_once_a_minute(self, text: str) -> None:
        with self._lock:
            if time.monotonic() - self._said < MESSAGE_PAUSE:
                return
            self._said = time.monotonic()
        log.error("%s", text)

    def _answer_late(self, connection: Connection) -> None:
        with self._lock:
            if not self._closing:
                self._busy += 1
                return self._late.put(connection)
            self._turned_away += not (connection.silent or connection.problem)
        connection.sock.close()

    def _work_late(self) -> None:
        while connection := self._late.get():
            self._answer(connection)

    def _answer(self, connection: Connection) -> None:
        """It counts as busy already."""
        try:
            if not connection.silent:
                # Where the standard library hands over a socket, the handler has a whole Connection.
                GEXBridgeRequestHandler(connection, connection.address, self)  # type: ignore[arg-type]
        except Exception:
            log.exception("unforeseen error while answering %s", connection.address[0])
        finally:
            # Before it counts as done: a stop waits for what is worked on, then for what the waiting room still sends.
            if connection.linger():
                self._waiting_room.add(connection)
            else:
                connection.sock.close()
            with self._lock:
                self._busy -= 1
                self._lock.notify_all()


def _within_descriptors(most: int, workers: int) -> int:
    """As many waiting connections as there are descriptors for, else accepting would fail before the oldest goes."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    room = max(1, limit - workers - SLOW_WORKERS - MOST_DRAINING - OTHER_FILES)
    if limit == resource.RLIM_INFINITY or most <= room:
        return most
    log.warning("MAX_CONNECTIONS is %d instead of %d: there are only %d descriptors", room, most, limit)
    return room
