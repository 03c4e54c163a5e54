"""The dashboard hand-over: each history link is offered there before it is queued here.

The answer decides the reply to the client, so this is the one call to the
outside that a request waits for, and everything about it is bounded: the
time (in all, not per read), how many wait at once, and how often a dashboard
that is down is tried.
"""

import base64
import http.client
import json
import logging
import socket
import threading
import time
from urllib.parse import unquote, urlsplit

logger = logging.getLogger("webhook")

PATH = "/api/ingest/history"
ACCEPTED = (200, 202)
# As much of an answer's body as is read to see that the answer is whole.
BODY_LIMIT = 64 << 10


class Unreachable(Exception):
    """The dashboard could not be connected to, or did not answer in time."""


class Dashboard:
    """Offers links to the dashboard at `url`; safe to call from many threads.

    url: http or https, credentials allowed; redirects are not followed and
    proxies of the environment not used.  limit: seconds for one offer, name
    resolution included; waiting: how many may wait at once, the others are
    told False at once; down_for: seconds in which a dashboard that could not
    be reached is not tried again, after which one call tries for all.
    """

    def __init__(self, url: str, limit: float = 2.0, waiting: int = 4, down_for: float = 5.0):
        parts = urlsplit(url)
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._path = parts.path.rstrip("/") + PATH
        self._headers = {"Content-Type": "application/json", "Accept": "*/*", "Connection": "close"}
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode("ascii")
        self._limit = limit
        self._down_for = down_for
        self._waiting = threading.Semaphore(waiting)
        self._lock = threading.Lock()  # guards the three below
        self._down_since = None  # monotonic seconds; None while it is up
        self._probing = False
        self._counts = dict.fromkeys(("offered", "accepted", "refused", "failed", "busy", "skipped_down"), 0)

    def offer(self, url, ticker, endpoint) -> bool:
        """POST the three values, as the client sent them; True if the dashboard took the link (200 or 202).

        Returns within the limit and never raises.  A False link may still
        have reached a dashboard that answered too late.
        """
        self._count("offered")
        try:
            # requests, which the original used, sends no NaN either.
            body = json.dumps({"url": url, "ticker": ticker, "endpoint": endpoint}, allow_nan=False).encode("ascii")
        except (ValueError, RecursionError):
            self._count("failed")
            return False
        if not self._waiting.acquire(blocking=False):
            self._count("busy")
            return False
        if not self._may_try():
            self._waiting.release()
            self._count("skipped_down")
            return False
        exchange = Exchange(self._connection(), self._path, body, self._headers, self._waiting.release)
        return self._outcome(exchange)

    def _outcome(self, exchange) -> bool:
        try:
            status = exchange.run(self._limit)
        except Unreachable as problem:
            self._note("failed", down=True)
            logger.warning("Dashboard not reachable (%s); not tried again for %g s", problem, self._down_for)
            return False
        except Exception as problem:
            self._note("failed")
            logger.warning("Dashboard gave no usable answer (%s)", type(problem).__name__)
            return False
        if status not in ACCEPTED:
            self._note("refused")
            logger.warning("Dashboard refused a history link with status %d", status)
            return False
        self._note("accepted")
        return True

    def _note(self, count: str, down: bool = False) -> None:
        with self._lock:
            self._counts[count] += 1
            self._probing = False
            self._down_since = time.monotonic() if down else None

    def stats(self) -> dict:
        """Counts since the start, and whether the dashboard is held to be down."""
        with self._lock:
            return {**self._counts, "down": self._down_since is not None}

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def _may_try(self) -> bool:
        with self._lock:
            if self._down_since is None:
                return True
            if self._probing or time.monotonic() - self._down_since < self._down_for:
                return False
            self._probing = True
            return True

    def _connection(self) -> http.client.HTTPConnection:
        if not self._secure:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._limit)
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._limit)


class Exchange:
    """One request and its answer, made in a thread of its own.

    The thread is what makes the limit a total one: neither a slow name
    server nor a peer that drips bytes can hold the caller for longer.
    """

    def __init__(self, connection, path: str, body: bytes, headers: dict, finished):
        self._connection = connection
        self._request = (path, body, headers)
        self._finished = finished
        self._done = threading.Event()
        self._late = False
        self._status = None
        self._problem = None

    def run(self, limit: float) -> int:
        """The answer's status.  Raises Unreachable, or what http.client raises for an answer that is none."""
        thread = threading.Thread(target=self._work, name="DashboardOffer", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no thread to give
            self._finished()
            raise
        if not self._done.wait(limit):
            self._late = True
            self._cut()
            raise Unreachable("no answer in time")
        if self._problem is not None:
            raise self._problem
        return self._status

    def _work(self) -> None:
        try:
            self._exchange()
        except Exception as problem:
            self._problem = problem
        finally:
            self._connection.close()
            self._finished()
            self._done.set()

    def _exchange(self) -> None:
        path, body, headers = self._request
        try:
            self._connection.connect()
        except OSError as problem:
            raise Unreachable(type(problem).__name__) from None
        if self._late:
            return
        try:
            self._connection.request("POST", path, body, headers)
            answer = self._connection.getresponse()
            read = answer.read(BODY_LIMIT)
        except TimeoutError:
            raise Unreachable("no answer in time") from None
        if answer.length and len(read) < BODY_LIMIT:
            raise http.client.IncompleteRead(read, answer.length)
        self._status = answer.status

    def _cut(self) -> None:
        """Wake the thread out of a read, so that a dripping peer does not keep it."""
        sock = self._connection.sock
        try:
            if sock is not None:
                sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # closed in the meantime: the thread is awake already
