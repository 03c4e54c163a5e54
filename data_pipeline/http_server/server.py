"""The server: its socket, its worker threads, and what it counts."""

import collections
import logging
import socket
import socketserver
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

from data_pipeline.bridge import Bridge
from data_pipeline.http_server.access import Access
from data_pipeline.http_server.api import Api
from data_pipeline.http_server.connection import Connection, Limits
from data_pipeline.http_server.handler import GEXBridgeRequestHandler
from data_pipeline.http_server.pages import Pages
from data_pipeline.http_server.waiting_room import WaitingRoom

log = logging.getLogger("webhook")
PROMPT = 0.01  # s that a worker gives a client to send its request, before it takes the next one
SLOW_WORKERS = 8


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
        # Guards `_counts` and `_busy`; notified when a request is done.
        self._lock = threading.Condition()
        self._busy = 0
        self._date = 0, ""
        self._closing = False
        self._waiting_room = WaitingRoom(most, self._answer_late)
        self._late = ThreadPoolExecutor(SLOW_WORKERS, thread_name_prefix="SlowWorker")
        self._workers = [
            threading.Thread(target=self._work, name=f"Worker-{n}", daemon=True) for n in range(1, workers + 1)
        ]

    @property
    def port(self) -> int:
        return self.server_address[1]

    def start(self) -> None:
        self._waiting_room.start()
        for worker in self._workers:
            worker.start()

    def stop(self, timeout: float) -> bool:
        """Accept nothing more and let requests finish; True if all did within `timeout` seconds."""
        self._closing = True
        until = time.monotonic() + timeout
        self.socket.shutdown(socket.SHUT_RDWR)  # wakes every worker in accept()
        with self._lock:
            self._lock.wait_for(lambda: self._busy == 0, timeout)
        self._waiting_room.stop(max(0.0, until - time.monotonic()))
        self._late.shutdown(wait=False, cancel_futures=True)
        self.server_close()
        if cut_off := self._busy + self._waiting_room.sending:
            log.warning("%d requests were cut off", cut_off)
        return not cut_off

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
                    log.error("cannot accept: %s", problem)
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
        self._answer(connection)

    def _answer_late(self, connection: Connection) -> None:
        if self._closing:
            connection.sock.close()
        else:
            self._late.submit(self._answer, connection)

    def _answer(self, connection: Connection) -> None:
        with self._lock:
            self._busy += 1
        try:
            if not connection.silent:
                self.RequestHandlerClass(connection, connection.address, self)
        except Exception:
            log.exception("unforeseen error while answering %s", connection.address[0])
        # Before it counts as done: a stop waits for what is worked on, then for what the waiting room still sends.
        if connection.linger():
            self._waiting_room.add(connection)
        else:
            connection.sock.close()
        with self._lock:
            self._busy -= 1
            self._lock.notify_all()
