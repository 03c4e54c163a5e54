"""The dashboard hand-over: each history link is offered there before it is queued here.

The answer decides the reply to the client, so this is the one call to the outside that a request waits for, and
everything about it is bounded: the time (in all, not per read), how many wait at once, and how often a dashboard that
is down is tried.
"""

import base64
import contextlib
import http.client
import json
import logging
import queue
import socket
import threading
import time
from urllib.parse import unquote, urlsplit

log = logging.getLogger("webhook")

PATH = "/api/ingest/history"
ACCEPTED = (200, 202)
# As much of an answer's body as is read to see that the answer is whole.
BODY_LIMIT = 64 << 10


class Unreachable(Exception):
    """The dashboard could not be connected to, or did not answer in time."""


class Dashboard:
    """Offers links to the dashboard at `url`; safe to call from many threads.

    url: http or https, credentials allowed; redirects are not followed and proxies of the environment not used.
    limit: seconds for one offer, name resolution included; waiting: how many may wait at once, the others are told
    False at once; down_for: seconds in which a dashboard that could not be reached is not tried again, after which one
    call tries for all.
    """

    def __init__(self, url: str, limit: float = 2.0, waiting: int = 4, down_for: float = 5.0):
        parts = urlsplit(url)
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port = parts.hostname or "", parts.port
        self._path = parts.path.rstrip("/") + PATH
        self._headers = {"Content-Type": "application/json", "Accept": "*/*", "Connection": "close"}
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode("ascii")
        self._limit = limit
        self._down_for = down_for
        self._waiting = threading.Semaphore(waiting)
        self._lock = threading.Lock()  # guards the three below
        self._down_since: float | None = None  # monotonic seconds; None while it is up
        self._probing = False
        self._counts = dict.fromkeys(("offered", "accepted", "refused", "failed", "busy", "skipped_down"), 0)

    def offer(self, url: object, ticker: object, endpoint: object) -> bool:
        """POST the three values, as the client sent them; True if the dashboard took the link (200 or 202).

        Returns within the limit and never raises.  A False link may still
        have reached a dashboard that answered too late.
        """
        self._count("offered")
        try:
            # requests, which the original used, sends no NaN either.
            body = json.dumps({"url": url, "ticker": ticker, "endpoint": endpoint}, allow_nan=False).encode("ascii")
        except (ValueError, RecursionError):
            return self._count("failed")
        if not self._waiting.acquire(blocking=False):
            return self._count("busy")
        if not self._may_try():
            self._waiting.release()
            return self._count("skipped_down")
        try:
            status = self._ask(body)
        except Unreachable as problem:
            self._note("failed", down=True)
            log.warning("Dashboard not reachable (%s); not tried again for %g s", problem, self._down_for)
            return False
        except Exception as problem:
            self._note("failed")
            log.warning("Dashboard gave no usable answer (%s)", type(problem).__name__)
            return False
        self._note("accepted" if status in ACCEPTED else "refused")
        if status not in ACCEPTED:
            log.warning("Dashboard refused a history link with status %d", status)
        return status in ACCEPTED

    def stats(self) -> dict[str, int | bool]:
        """Counts since the start, and whether the dashboard is held to be down."""
        with self._lock:
            return {**self._counts, "down": self._down_since is not None}

    def _count(self, what: str) -> bool:
        with self._lock:
            self._counts[what] += 1
        return False

    def _note(self, count: str, down: bool = False) -> None:
        with self._lock:
            self._counts[count] += 1
            self._probing = False
            self._down_since = time.monotonic() if down else None

    def _may_try(self) -> bool:
        with self._lock:
            if self._down_since is None:
                return True
            if self._probing or time.monotonic() - self._down_since < self._down_for:
                return False
            self._probing = True
            return True

    def _ask(self, body: bytes) -> int:
        """The answer's status.  Raises Unreachable, or what http.client raises for an answer that is none.

        The exchange has a daemon thread of its own: a socket's timeout bounds one read, so without the thread a slow
        name server, or a peer that drips bytes, would hold the caller beyond the limit.  It gives the place among the
        waiting back when it ends.
        """
        connection = self._kind(self._host, self._port, timeout=self._limit)
        until = time.monotonic() + self._limit
        outcome: queue.SimpleQueue[int | Exception] = queue.SimpleQueue()

        def exchange() -> None:
            result: int | Exception
            try:
                result = self._status(connection, body, until)
            except TimeoutError:
                result = Unreachable("no answer in time")
            except Exception as problem:
                result = problem
            connection.close()
            self._waiting.release()
            outcome.put(result)

        try:
            threading.Thread(target=exchange, name="DashboardOffer", daemon=True).start()
        except RuntimeError:  # the system has no thread to give
            self._waiting.release()
            raise
        try:
            result = outcome.get(timeout=self._limit)
        except queue.Empty:
            # Wake the exchange out of a read, so that a dripping peer does not keep it; it may have closed meanwhile.
            if sock := connection.sock:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            raise Unreachable("no answer in time") from None
        if isinstance(result, Exception):
            raise result
        return result

    def _status(self, connection: http.client.HTTPConnection, body: bytes, until: float) -> int:
        try:
            connection.connect()
        except OSError as problem:
            raise Unreachable(type(problem).__name__) from None
        if time.monotonic() > until:  # the caller is gone and has queued the link here: it must not be sent as well
            raise Unreachable("no answer in time")
        connection.request("POST", self._path, body, self._headers)
        answer = connection.getresponse()
        read = answer.read(BODY_LIMIT)
        if answer.length and len(read) < BODY_LIMIT:
            raise http.client.IncompleteRead(read, answer.length)
        return answer.status
