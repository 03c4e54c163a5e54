"""Real HTTP servers on a free local port that behave, or misbehave, as the services outside do."""

import hashlib
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Answer(NamedTuple):
    """What a service does with a request.

    body: bytes, or anything else as JSON.  manner: `whole`, `hang` (no byte
    until the service ends), `half` (closes in the middle of the body),
    `drip` (a byte every 0.1 s, for 10 s), `close` (no byte at all),
    `chunked`, `last` (whole, then closes), `held` (whole, then nothing until
    the service ends).  Headers win over those that the manner would have.
    """

    body: object = b""
    status: int = 200
    headers: dict = {}
    manner: str = "whole"


class Request(NamedTuple):
    method: str
    path: str
    headers: dict
    body: bytes
    at: float  # time.monotonic()

    def json(self):
        return json.loads(self.body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Clients that give up are what these services are for; anything else is told."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Service:
    """answer: called with each Request, returns an Answer; requests: those that came.

    As a context manager it serves until its end, and lets go what hangs.
    """

    def __init__(self, answer):
        self.answer = answer
        self.requests: list[Request] = []
        self._came = threading.Condition()
        self.ending = threading.Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = Request(self.command, self.path, dict(self.headers), body, time.monotonic())
                # Answered and noted under one lock: a scripted answer goes to the request that it is for.
                with service._came:
                    answer = service.answer(request)
                    service.requests.append(request)
                    service._came.notify_all()
                try:
                    self.give(answer)
                except OSError:
                    self.close_connection = True  # the client has gone

            do_GET = do_POST

            def give(self, answer):
                content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                if answer.manner == "hang":
                    service.ending.wait()
                if answer.manner in ("hang", "close"):
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                if answer.manner == "chunked":
                    length = {"Transfer-Encoding": "chunked"}
                else:
                    whole = answer.manner in ("whole", "last", "held")
                    length = {"Content-Length": str(len(content) if whole else 10**6)}
                for name, value in (length | answer.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if answer.manner == "chunked":
                    for byte in content:
                        self.wfile.write(b"1\r\n%c\r\n" % byte)
                    self.wfile.write(b"0\r\n\r\n")
                    return
                self.wfile.write(content[: len(content) // 2] if answer.manner == "half" else content)
                self.close_connection = answer.manner != "whole"
                if answer.manner == "held":
                    service.ending.wait()
                drops = 100 if answer.manner == "drip" else 0
                while drops and not service.ending.wait(0.1):
                    self.wfile.write(b" ")
                    drops -= 1

            def log_message(self, *args):
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="Service")
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self.ending.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def wait_for(self, count: int, timeout: float = 10) -> list[Request]:
        """The requests, once there are `count` of them."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.requests) >= count, timeout), f"only {len(self.requests)} came"
            return list(self.requests)


def script(*answers):
    """A Service's `answer` that gives these in turn, and the last one from then on."""
    left = list(answers)
    return lambda request: left.pop(0) if len(left) > 1 else left[0]


class Web(Service):
    """Serves `files` (path -> bytes) with ETag, Range and If-Range, as one does that has history files.

    cut: bytes after which a body is broken off, for the answers to come that
    many are listed; answers: path -> (status, headers, body) given as they
    are, and held open on a path that begins with /held.
    """

    def __init__(self):
        super().__init__(self._answer)
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, tuple] = {}
        self.cut: list[int] = []

    @property
    def seen(self) -> list[tuple[str, dict]]:
        """Path with query, and headers, of each request."""
        return [(request.path, request.headers) for request in self.requests]

    def _answer(self, request: Request) -> Answer:
        path = request.path.split("?")[0]
        status, headers, body = self.answers.get(path) or self._file(path, request.headers)
        if self.cut and body:
            headers, body = {"Content-Length": str(len(body)), **headers}, body[: self.cut.pop(0)]
        return Answer(body, status, headers, "held" if path.startswith("/held") else "last")

    def _file(self, path: str, asked: dict) -> tuple:
        if path not in self.files:
            return 404, {}, b""
        content = self.files[path]
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        if asked.get("If-None-Match") == tag:
            return 304, {"ETag": tag}, b""
        if asked.get("Range") and asked.get("If-Range") == tag:
            start = int(asked["Range"].removeprefix("bytes=").rstrip("-"))
            of = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return 206, {"ETag": tag, "Content-Range": of}, content[start:]
        return 200, {"ETag": tag}, content
