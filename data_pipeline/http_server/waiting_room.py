"""Where connections wait that have not sent, or not taken, everything yet: one thread for all of them."""

import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable

from data_pipeline.http_server.connection import Connection

log = logging.getLogger("webhook")
MOST_UNSENT = 64 << 20  # bytes of answers that clients take their time to read, all together
MOST_RECEIVED = 256 << 20  # bytes of unfinished requests, all together
MOST_DRAINING = 100  # such clients at once
SWEEP = 0.25  # s between two looks at the deadlines


class WaitingRoom:
    """Where connections wait that have not sent or not taken everything yet: one thread for all of them.

    That thread calls `run`, which calls on_ready with each connection whose
    request is ready; it must not block.  Over `most` connections the oldest is
    refused, or closed if its answer is on the way.  Those that are only
    drained are none of them, or each one refused would push out the next;
    over MOST_DRAINING the oldest is closed.  Over MOST_RECEIVED bytes of
    unfinished requests the largest is refused.
    """

    def __init__(self, most: int, on_ready: Callable[[Connection], None]):
        self.most = most
        self.on_ready = on_ready
        self._selector = selectors.DefaultSelector()
        # Guards `_arrivals`, which other threads fill, and `_closed`, after which nobody takes them.
        self._lock = threading.Lock()
        self._arrivals: list[Connection] = []
        # connection -> bytes that its answer takes up; `_held` is the sum
        self._waiting: dict[Connection, int] = {}
        self._draining: dict[Connection, int] = {}
        self._held = 0
        self._received = 0  # the sum of what the connections have sent
        self._closing = self._closed = False
        self._until = 0.0
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._ended = threading.Event()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._draining)

    @property
    def sending(self) -> int:
        """How many have yet to take their answer."""
        return sum(1 for held in list(self._waiting.values()) if held)

    def add(self, connection: Connection) -> None:
        """Let it wait here; after `stop` it is closed."""
        with self._lock:
            if not self._closed:
                self._arrivals.append(connection)
                return self._wake()
        connection.sock.close()

    def stop(self, timeout: float) -> bool:
        """Send what is being sent, for at most so many seconds, and close all; True if `run` has ended."""
        self._until = time.monotonic() + timeout
        self._closing = True
        with self._lock:
            if not self._closed:
                self._wake()
        return self._ended.wait(timeout + 2 * SWEEP)

    def _wake(self) -> None:
        try:
            self._wake_in.send(b"!")
        except BlockingIOError:
            pass  # it is being woken already

    def run(self) -> None:
        """Serve them until `stop`; for one thread.  Should it raise, it can be called again: all still wait."""
        sweep = 0.0
        while self._goes_on():
            events = self._selector.select(SWEEP if len(self) else None)
            for key, _ in events:
                if key.data is not None:
                    self._serve(key.data)
            # Only now: those that have to go may have been among the events.
            if any(key.data is None for key, _ in events):
                self._admit()
            self._make_room()
            if time.monotonic() >= sweep:
                sweep = time.monotonic() + SWEEP
                self._expire()
        with self._lock:
            self._closed = True
            self._wake_in.close()
            self._wake_out.close()
        for connection in [*self._waiting, *self._draining, *self._arrivals]:
            connection.sock.close()
        self._selector.close()
        self._ended.set()

    def _goes_on(self) -> bool:
        if not self._closing:
            return True
        return time.monotonic() < self._until and bool(self._arrivals or self._held)

    def _admit(self) -> None:
        self._wake_out.recv(4096)
        with self._lock:
            arrivals, self._arrivals = self._arrivals, []
        for connection in arrivals:
            connection.sock.setblocking(False)
            self._enter(connection)

    def _enter(self, connection: Connection) -> None:
        held = connection.held
        self._room_of(connection)[connection] = held
        self._held += held
        self._received += connection.size
        self._selector.register(connection.sock, selectors.EVENT_WRITE if held else selectors.EVENT_READ, connection)

    def _room_of(self, connection: Connection) -> dict[Connection, int]:
        return self._draining if connection.draining else self._waiting

    def _make_room(self) -> None:
        while len(self._waiting) > self.most:
            self._refuse(next(iter(self._waiting)))
        while len(self._draining) > MOST_DRAINING:
            self._release(next(iter(self._draining)))
        while self._received > MOST_RECEIVED and self._waiting:
            self._refuse(max(self._waiting, key=lambda connection: connection.size))
        if self._held > MOST_UNSENT:
            # The newest stays, however much it is: there is always one that gets its answer.
            for connection in [c for c, held in self._waiting.items() if held][:-1]:
                if self._held > MOST_UNSENT:
                    self._refuse(connection)

    def _refuse(self, connection: Connection) -> None:
        connection.refuse()
        self._release(connection)

    def _serve(self, connection: Connection) -> None:
        before = connection.size
        try:
            done = connection.send(connection.unsent) if connection.unsent else connection.receive()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            connection.silent = done = True
        except Exception:  # no memory: one connection's failure is its own, the room goes on
            log.exception("a connection of %s failed", connection.address[0])
            connection.silent = done = True
        self._received += connection.size - before
        if done:
            self._release(connection)

    def _expire(self) -> None:
        now = time.monotonic()
        for connection in [c for c in (*self._waiting, *self._draining) if c.deadline <= now]:
            connection.expire()
            self._release(connection)

    def _release(self, connection: Connection) -> None:
        """It waits for nothing more here: a request is answered, an answer that is sent may have to be followed up."""
        held = self._room_of(connection).pop(connection)
        self._held -= held
        self._received -= connection.size
        self._selector.unregister(connection.sock)
        if not (held or connection.draining or connection.silent):
            self._hand_over(connection)
        elif held and connection.linger():
            self._enter(connection)
        else:
            connection.sock.close()

    def _hand_over(self, connection: Connection) -> None:
        try:
            self.on_ready(connection)
        except Exception:  # "can't start new thread": the others still wait here
            log.exception("a request of %s could not be handed over", connection.address[0])
            connection.sock.close()
