"""Connections: how the bytes of a client become one whole request, or a reason why not, and how it gets its answer.

A connection costs memory for what arrived, never for what was announced, and
has a total deadline for its head, one for its body and one for its answer.
Nothing here knows what a request means.
"""

import re
import socket
import time
from dataclasses import dataclass
from typing import Any

from data_pipeline.http_server.body import CODINGS, BadBody, Chunks

HEAD_LIMIT = 256 << 10  # bytes
LINE_LIMIT = 65536  # bytes; the standard library's
SEND_TIME = 10.0  # s for a client to take its answer
DRAIN_TIME = 1.0  # s to go on reading from a client that was answered early
RECEIVE = 64 << 10  # bytes

SHORT = "Request body is shorter than its Content-Length"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_NOTHING = memoryview(b"")
_HEAD_END = re.compile(rb"\n\r?\n")
# Header lines as RFC 9112 has them, and none that two readers could read in two ways: no folding, no blank
# before the colon, no NUL or lone CR.
_HEADERS = re.compile(rb"(?:[!-9;-~]+:[^\x00\r\n]*\r?\n)*\r?\n")
_FRAMING = re.compile(rb"(?im)^(content-length|transfer-encoding|content-encoding|expect):(.*)")
_LENGTH = re.compile(rb"-?[0-9]{1,4000}")


@dataclass(frozen=True)
class Limits:
    """max_body in bytes; times in seconds, from the first byte read to the last."""

    max_body: int = 4 << 20
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

    def __init__(self, sock: socket.socket, address: tuple[Any, ...], limits: Limits):
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
        self._chunks: Chunks | None = None
        self.coding = b""  # of the body, one of CODINGS

    @property
    def head(self) -> bytes:
        return bytes(self._buffer[: self._head_end or len(self._buffer)])

    @property
    def body(self) -> bytes:
        """As it was sent, without chunks but still packed as `coding` says."""
        if self._chunks:
            return bytes(self._chunks.body)
        return bytes(self._buffer[self._head_end : self._end]) if self._head_end else b""

    @property
    def size(self) -> int:
        """Bytes of memory that its request takes up."""
        return len(self._buffer) + (len(self._chunks.body) if self._chunks else 0)

    @property
    def held(self) -> int:
        """Bytes of memory that its answer takes up, as long as some of it is unsent."""
        return memoryview(self.unsent.obj).nbytes

    @property
    def has_unread(self) -> bool:
        """Whether closing now could cut the answer off: the client may have sent more than was read."""
        return self.problem is not None or len(self._buffer) > (self._end or self._head_end)

    def receive(self, flags: int = 0) -> bool:
        """Read once from the socket; True when the request is ready.  Raises OSError."""
        data = self.sock.recv(RECEIVE, flags)
        if self.draining:
            return not data
        if data:
            self._buffer += data
            self._parse()
        else:
            self._cut_off()
        return self.ready

    def receive_all(self, until: float, flags: int = 0) -> None:
        """Read until the request is ready.  Raises TimeoutError where bytes come after `until`; else as `receive`."""
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
        # Without this a 413 or 503 sent before the body has come is lost to the client: closing at once resets the
        # connection, and curl or a browser says "connection reset" instead of the status.
        if self.unsent:
            self.deadline = time.monotonic() + SEND_TIME
            del self._buffer[: self._end or self._head_end]  # and `has_unread` stays as it is
            self._end = self._head_end = 0
            self._chunks = None
        elif self.has_unread:
            self.draining = True
            self.deadline = time.monotonic() + DRAIN_TIME
            self._buffer.clear()
            self._chunks = None
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
            self._fail(400, "Request body is not whole" if self._chunks else SHORT)
        elif self._buffer:
            self._fail(400, "Request head is incomplete", in_head=True)
        else:
            self.silent = self.ready = True

    def _parse(self) -> None:
        if not self._head_end and not self._find_head():
            return
        if not self._end:
            self._frame()
        if self.ready:
            return
        try:
            whole = self._chunks.take(self._buffer, self._head_end) if self._chunks else len(self._buffer) >= self._end
        except BadBody as problem:
            return self._fail(problem.status, problem.message)
        self.ready = self.ready or whole

    def _find_head(self) -> bool:
        """Whether the head is whole; a first line that can have no head behind it is ready as it is."""
        buffer = self._buffer
        if not self._searched:
            # Without this test whoever sends no HTTP (TLS to this port, HTTP/0.9, a first line without end) would wait
            # HEAD_TIMEOUT for an answer the standard library gives at once.
            line_end = buffer.find(b"\n", 0, LINE_LIMIT + 1)
            no_request = (
                not buffer[:1].isalpha() or len(buffer) > LINE_LIMIT
                if line_end == -1
                else (len(buffer[:line_end].split()) < 3)
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
        lengths, chunked, waits = set[int](), False, False
        for name, value in _FRAMING.findall(head, headers):
            name, value = name.lower(), value.strip(b" \t\r")
            if name == b"content-length":
                if not _LENGTH.fullmatch(value):
                    return self._fail(400, "Invalid Content-Length")
                lengths.add(int(value))
            elif name == b"transfer-encoding":
                if chunked or value.lower() != b"chunked":
                    return self._fail(400, "Transfer-Encoding is not supported")
                chunked = True
            elif name == b"content-encoding":
                if self.coding or value.lower() not in CODINGS:
                    return self._fail(415, "Content-Encoding is not supported")
                self.coding = value.lower()
            else:
                waits = value.lower() == b"100-continue"
        if len(lengths) + chunked > 1:
            return self._fail(400, "Conflicting Content-Length")
        length = max(0, *lengths) if lengths else 0
        if length > self.limits.max_body:
            return self._fail(413, "Request body is too large")
        self._end += length
        if chunked:
            self._chunks = Chunks(self.limits.max_body)
        if waits and (length or chunked) and len(self._buffer) == self._head_end:
            # It sends its body only now.  These are the first bytes on this socket: they fit.
            self.sock.send(CONTINUE, socket.MSG_DONTWAIT)
