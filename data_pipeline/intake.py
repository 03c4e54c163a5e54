"""Connections: how the bytes of a client become one whole request, or a reason why not, and how it gets its answer.

A connection costs memory for what arrived, never for what was announced, and
has a total deadline for its head, one for its body and one for its answer.
Nothing here knows what a request means.
"""

import re
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

HEAD_LIMIT = 256 << 10  # bytes
LINE_LIMIT = 65536  # bytes; the standard library's
SEND_TIME = 10.0  # s for a client to take its answer
MOST_UNSENT = 64 << 20  # bytes of answers that clients take their time to read, all together
DRAIN_TIME = 1.0  # s to go on reading from a client that was answered early
MOST_DRAINING = 100  # such clients at once
SWEEP = 0.25  # s between two looks at the deadlines
RECEIVE = 64 << 10  # bytes

_NOTHING = memoryview(b"")
_HEAD_END = re.compile(rb"\n\r?\n")
# Header lines as RFC 9112 has them, and none that two readers could read in two ways: no folding, no blank
# before the colon, no NUL or lone CR.
_HEADERS = re.compile(rb"(?:[!-9;-~]+:[^\x00\r\n]*\r?\n)*\r?\n")
_FRAMING = re.compile(rb"(?im)^(content-length|transfer-encoding):(.*)")
_LENGTH = re.compile(rb"-?[0-9]{1,4000}")


@dataclass(frozen=True)
class Limits:
    """max_body in bytes; times in seconds, from the first byte read to the last."""

    max_body: int = 32 << 20
    head_time: float = 10.0
    body_time: float = 30.0


@dataclass(frozen=True)
class Problem:
    """Why a request is not whole; in_head: found before its body was due."""

    status: int
    message: str
    in_head: bool = False


class Connection:
    """One client, what it has sent so far, and what it has yet to take of its answer (`unsent`).

    `ready` once the request is whole or there is a `problem`; `silent` where
    nothing is to be said to it.  Used by one thread at a time.
    """

    def __init__(self, sock: socket.socket, address: tuple, limits: Limits):
        self.sock = sock
        self.address = address
        self.limits = limits
        self.deadline = time.monotonic() + limits.head_time
        self.ready = False
        self.silent = False
        self.draining = False
        self.unsent = _NOTHING
        self.problem: Problem | None = None
        self._buffer = bytearray()
        self._head_end = 0
        self._searched = 0
        self._end = 0

    @property
    def head(self) -> bytes:
        return bytes(self._buffer[: self._head_end or len(self._buffer)])

    @property
    def body(self) -> bytes:
        return bytes(self._buffer[self._head_end : self._end]) if self._head_end else b""

    @property
    def has_unread(self) -> bool:
        """Whether closing now could cut the answer off: the client may have sent more than was read."""
        return self.problem is not None or len(self._buffer) > (self._end or self._head_end)

    def receive(self, flags: int = 0) -> bool:
        """Read once from the socket; True when the request is ready.  Raises OSError (TimeoutError, BlockingIOError)."""
        data = self.sock.recv(RECEIVE, flags)
        if self.draining:
            return not data
        if data:
            self._buffer += data
            self._look()
        else:
            self._cut_off()
        return self.ready

    def receive_all(self, until: float, flags: int = 0) -> None:
        """Read until the request is ready.  Raises TimeoutError where bytes still come after `until`; else as `receive`."""
        while not self.receive(flags):
            if time.monotonic() > until:
                raise TimeoutError

    def send(self, answer: bytes | memoryview) -> bool:
        """Send what the client takes at once; True if that is all of it, else the rest is `unsent`.  Raises OSError."""
        try:
            # The usual case, and one system call: a socket that nothing was written to yet takes it all.
            sent = self.sock.send(answer, socket.MSG_DONTWAIT) if answer else 0
        except BlockingIOError:
            sent = 0
        if sent < len(answer):
            self.unsent = memoryview(answer)[sent:]
            return False
        self.unsent = _NOTHING
        if self.has_unread:
            self.sock.shutdown(socket.SHUT_WR)
        return True

    def linger(self) -> bool:
        """Whether it has to be kept though it is answered; its request is forgotten, and it has a new deadline.

        First until the client has taken the rest.  Then, where it may still
        send, to throw that away for a while: closing with unread bytes makes
        the kernel reset the connection, and the answer would be lost with it.
        """
        if self.silent:
            return False
        if self.unsent:
            self.deadline = time.monotonic() + SEND_TIME
            del self._buffer[: self._end or self._head_end]  # and `has_unread` stays as it is
            self._end = self._head_end = 0
        elif self.has_unread:
            self.draining = True
            self.deadline = time.monotonic() + DRAIN_TIME
            self._buffer.clear()
        return self.draining or bool(self.unsent)

    def expire(self) -> None:
        """The deadline has passed."""
        if self.unsent or not self._buffer:
            self.silent = self.ready = True
        elif self._head_end:
            self._fail(408, "Request body took too long")
        else:
            self._fail(408, "Request head took too long", in_head=True)

    def refuse(self) -> None:
        """There is no room for it."""
        if self.unsent:
            self.silent = True
        else:
            self._fail(503, "Too many connections", in_head=True)

    def _fail(self, status: int, message: str, in_head: bool = False) -> None:
        self.problem = Problem(status, message, in_head)
        self.ready = True

    def _cut_off(self) -> None:
        if self._head_end:
            self._fail(400, "Request body is shorter than its Content-Length")
        elif self._buffer:
            self._fail(400, "Request head is incomplete", in_head=True)
        else:
            self.silent = self.ready = True

    def _look(self) -> None:
        if not self._head_end and not self._find_head():
            return
        if not self._end:
            self._frame()
        if not self.ready and len(self._buffer) >= self._end:
            self.ready = True

    def _find_head(self) -> bool:
        """Whether the head is whole; a first line that can have no head behind it is ready as it is."""
        buffer = self._buffer
        if not self._searched:
            line_end = buffer.find(b"\n", 0, LINE_LIMIT + 1)
            no_request = not buffer[:1].isalpha() or len(buffer) > LINE_LIMIT if line_end == -1 else (
                len(buffer[:line_end].split()) < 3
            )
            if no_request:
                self.ready = True
            if no_request or line_end == -1:
                return False
        found = _HEAD_END.search(buffer, max(0, self._searched - 3))
        if found and found.end() <= HEAD_LIMIT:
            self._head_end = found.end()
            return True
        self._searched = len(buffer)
        if found or len(buffer) > HEAD_LIMIT:
            self._fail(431, "Request head is too large", in_head=True)
        return False

    def _frame(self) -> None:
        """Find out from the head how long the body is."""
        head = self.head
        self._end = self._head_end
        self.deadline = time.monotonic() + self.limits.body_time
        if not head.startswith(b"POST "):
            self.ready = True
            return
        headers = head.index(b"\n") + 1
        if not _HEADERS.fullmatch(head, headers):
            return self._fail(400, "Malformed request head")
        lengths = set()
        for name, value in _FRAMING.findall(head, headers):
            if name.lower() == b"transfer-encoding":
                return self._fail(400, "Transfer-Encoding is not supported")
            if not _LENGTH.fullmatch(value.strip(b" \t\r")):
                return self._fail(400, "Invalid Content-Length")
            lengths.add(int(value))
        if len(lengths) > 1:
            return self._fail(400, "Conflicting Content-Length")
        length = max(0, *lengths) if lengths else 0
        if length > self.limits.max_body:
            return self._fail(413, "Request body is too large")
        self._end += length


class Lounge:
    """Where connections wait that have not sent or not taken everything yet: one thread for all of them.

    on_ready is called, from that thread, with each connection whose request
    is ready; it must not block.  Over `most` connections the oldest is
    refused, or closed if its answer is on the way.  Those that are only
    drained are none of them, or each one refused would push out the next;
    over MOST_DRAINING the oldest is closed.
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
        self._closing = self._closed = False
        self._until = 0.0
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="Lounge", daemon=True)

    def __len__(self) -> int:
        return len(self._waiting) + len(self._draining)

    @property
    def sending(self) -> int:
        """How many have yet to take their answer."""
        return sum(1 for held in list(self._waiting.values()) if held)

    def start(self) -> None:
        self._thread.start()

    def add(self, connection: Connection) -> None:
        """Let it wait here; after `stop` it is closed."""
        with self._lock:
            if not self._closed:
                self._arrivals.append(connection)
                return self._wake()
        connection.sock.close()

    def stop(self, timeout: float) -> bool:
        """Send what is being sent, for at most so many seconds, and close all; True if the thread has ended."""
        self._until = time.monotonic() + timeout
        self._closing = True
        with self._lock:
            if not self._closed:
                self._wake()
        self._thread.join(timeout + 2 * SWEEP)
        return not self._thread.is_alive()

    def _wake(self) -> None:
        try:
            self._wake_in.send(b"!")
        except BlockingIOError:
            pass  # it is being woken already

    def _run(self) -> None:
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
        held = len(connection.unsent.obj)
        self._room_of(connection)[connection] = held
        self._held += held
        self._selector.register(connection.sock, selectors.EVENT_WRITE if held else selectors.EVENT_READ, connection)

    def _room_of(self, connection: Connection) -> dict[Connection, int]:
        return self._draining if connection.draining else self._waiting

    def _make_room(self) -> None:
        while len(self._waiting) > self.most:
            self._refuse(next(iter(self._waiting)))
        while len(self._draining) > MOST_DRAINING:
            self._release(next(iter(self._draining)))
        if self._held > MOST_UNSENT:
            # The newest stays, however much it is: there is always one that gets its answer.
            for connection in [c for c, held in self._waiting.items() if held][:-1]:
                if self._held > MOST_UNSENT:
                    self._refuse(connection)

    def _refuse(self, connection: Connection) -> None:
        connection.refuse()
        self._release(connection)

    def _serve(self, connection: Connection) -> None:
        try:
            done = connection.send(connection.unsent) if connection.unsent else connection.receive()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            connection.silent = done = True
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
        self._selector.unregister(connection.sock)
        if not (held or connection.draining or connection.silent):
            self.on_ready(connection)
        elif held and connection.linger():
            self._enter(connection)
        else:
            connection.sock.close()
