"""`GEXBridgeRequestHandler`: routes, bodies, answers.  Nothing else speaks HTTP inwards."""

import codecs
import contextlib
import gzip
import io
import json
import logging
import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from data_pipeline.http_server import api, pages, static
from data_pipeline.http_server.body import BadBody, unpack
from data_pipeline.http_server.connection import Connection
from data_pipeline.payloads.nesting import is_too_deep
from data_pipeline.payloads.validation import ValidationError
from data_pipeline.repository.journal import NotDurable

if TYPE_CHECKING:
    from data_pipeline.http_server.server import BridgeServer

log = logging.getLogger("webhook")

_HOST = re.compile(r"\Ahttps?://[^/?#]*(?=/)", re.IGNORECASE)
BIG_BODY = 256 << 10  # bytes
# A body is parsed without letting another thread run: several big ones at once, good or bad, would hold up everybody.
_one_big_body = threading.Lock()
WORTH_PACKING = 1400  # bytes: what fits one packet is sent as it is
SHOWN_HEADERS = (
    ("Content-Security-Policy", static.POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Vary", "Accept-Encoding"),
)

_TOKEN = re.compile(r"(?<=token=)[^& ]*")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\xa0-\xff]")


class HTTPError(Exception):
    """An answer other than success: status and message."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status
        self.message = message


def status_line_text(message: str) -> str:
    """Text that may stand in a status line: printable latin-1, all else as an escape."""
    return _UNPRINTABLE.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), message)


def _parsed(raw: bytes) -> object:
    """The JSON of a body.  Raises HTTPError."""
    try:
        payload: object = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise HTTPError(400, "Request body is not UTF-8") from None
    except RecursionError:
        raise HTTPError(400, "JSON payload is nested too deeply") from None
    except ValueError:  # also a number of more digits than Python converts
        raise HTTPError(400, "Invalid JSON payload") from None
    if is_too_deep(raw):
        raise HTTPError(400, "JSON payload is nested too deeply")
    return payload


def _static_answer(path: str, known: str) -> tuple[api.Answer, bytes | None]:
    found = static.get(path)
    if found is None:
        raise HTTPError(404, "plotly is not installed: pip install plotly")
    tag = ("ETag", found.tag)
    if api.knows(known, found.tag):
        return api.Answer(304, (tag,), b""), None
    # The page itself is asked about each time; Plotly is 5 MB and changes with its package only.
    keep = "max-age=604800" if path == static.PLOTLY else "no-cache"
    return api.Answer(200, (("Content-Type", found.kind), tag, ("Cache-Control", keep)), found.body), found.packed


class GEXBridgeRequestHandler(BaseHTTPRequestHandler):
    """Answers the one request of a connection that `intake` has received whole.

    The server's `bridge` does what a payload causes; its `pages` hold what
    GET serves; `count(path, status)` counts.
    """

    server_version = "GEXBridge/1.0"
    # Also for what names no version: every answer has a status line.
    default_request_version = "HTTP/1.0"
    # request body → what to do with it; what GET serves is in `pages`
    ROUTES = {"/gex": "_gex", "/gex_history_url": "_gex_history_url", "/uw": "_uw"}

    request: Connection
    server: "BridgeServer"
    wfile: io.BytesIO

    def setup(self) -> None:
        self.connection = self.request.sock
        self.rfile = io.BytesIO(self.request.head)
        self.wfile = io.BytesIO()
        self.status = 0
        self._lines: list[tuple[int, str]] = []

    def finish(self) -> None:
        """Send the answer, or what the client takes of it at once: for more, no worker waits.

        What is to be logged and counted comes after it, the client need not wait for that.
        """
        try:
            self.request.send(self.wfile.getvalue())
        except OSError as problem:
            log.debug("%s went away before its answer: %s", self.client_address[0], problem)
        for level, line in self._lines:
            log.log(level, "%s", line)
        if self.status:  # an empty request line gets no answer
            self.server.count(self._counted_as(), self.status)

    def _counted_as(self) -> str:
        """The path in the counts: the page's files count as one, and so do the API's questions."""
        path = getattr(self, "path", "").partition("?")[0]
        if path in static.PATHS:
            return "/"
        if path.startswith(api.PREFIX):
            return "/api"
        return self.route if self.route in self.ROUTES or self.route in pages.ROUTES else "other"

    def handle(self) -> None:
        self.close_connection = True
        problem = self.request.problem
        if problem and problem.in_head:
            self.requestline = self.rfile.readline(200).decode("latin-1").rstrip("\r\n")
            self.request_version = self.protocol_version
            self.command = ""
            self.send_error(problem.status, problem.message)
        else:
            self.handle_one_request()

    @property
    def route(self) -> str:
        """Everything after the host, without slashes at its end."""
        return _HOST.sub("", getattr(self, "path", ""), count=1).rstrip("/")

    def do_OPTIONS(self) -> None:
        if self.route not in self.ROUTES:
            return self.send_error(404, "Endpoint not found")
        self.send_response(204)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Access-Control-Allow-Methods", "POST, OPTIONS")
        self.send_header("Access-Control-Allow-Headers", "Content-Type")
        self.end_headers()

    def do_GET(self) -> None:
        try:
            path, _, query = self.path.partition("?")
            if path in static.PATHS or path.startswith(api.PREFIX):
                return self._show(path, query)
            if self.route not in pages.ROUTES:
                # As the standard library answers where there is no do_GET: nothing but these pages is new.
                raise HTTPError(501, f"Unsupported method ({self.command!r})")
            self._check_host()
            status, kind, body = self.server.pages.get(self.route)
            self.send_response(status)
            # No Access-Control-Allow-Origin: what a page of another site asks for, it may not read.
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body)
        except Exception as problem:
            self._fail(problem)

    def do_HEAD(self) -> None:
        """As GET, without the body; on other paths 501, as the standard library answers it."""
        self.do_GET()
        head, end, _ = self.wfile.getvalue().partition(b"\r\n\r\n")
        self.wfile = io.BytesIO()
        self.wfile.write(head + end)

    def _check_host(self) -> None:
        """Some web page's name may lead here: what is known is for those who name this machine."""
        if not self.server.pages.may_ask(self.headers.get_all("Host", [])):
            raise HTTPError(421, "Host is neither an IP address, nor localhost, nor one of ALLOWED_HOSTS")

    def _show(self, path: str, query: str) -> None:
        """The page, its files and the API: no Access-Control-Allow-Origin, and gzip where the client takes it."""
        self._check_host()
        cookies, authorization = self.headers.get_all("Cookie", []), self.headers.get("Authorization") or ""
        if refusal := self.server.access.refusal(query, cookies, authorization):
            raise HTTPError(403, refusal)
        known = self.headers.get("If-None-Match") or ""
        if path.startswith(api.PREFIX) and self.server.api is not None:
            answer = self.server.api.get(path, query, known)
            packed = gzip.compress(answer.body, 1) if len(answer.body) > WORTH_PACKING else None
        else:
            answer, packed = _static_answer(path, known)
        if packed is not None and "gzip" in (self.headers.get("Accept-Encoding") or ""):
            answer = replace(answer, body=packed, headers=(*answer.headers, ("Content-Encoding", "gzip")))
        self.send_response(answer.status)
        for name, value in (*answer.headers, *SHOWN_HEADERS):
            self.send_header(name, value)
        if cookie := self.server.access.new_cookie(query):
            self.send_header("Set-Cookie", cookie)
        self.end_headers()
        self.wfile.write(answer.body)

    def do_POST(self) -> None:
        try:
            if self.route not in self.ROUTES:
                raise HTTPError(404, "Endpoint not found")
            if not self.server.pages.may_send(self.headers.get_all("Origin", [])):
                raise HTTPError(403, "Origin is not allowed")
            raw, payload = self._body()
            status, answer = getattr(self, self.ROUTES[self.route])(raw, payload)
            self._answer(status, answer)
        except Exception as problem:
            self._fail(problem)

    def _gex(self, raw: bytes, payload: Any) -> tuple[int, dict[str, Any]]:
        return 202, self.server.bridge.gex(raw, payload)

    def _gex_history_url(self, raw: bytes, payload: Any) -> tuple[int, dict[str, Any]]:
        return 202, self.server.bridge.history_link(payload)

    def _uw(self, raw: bytes, payload: Any) -> tuple[int, dict[str, Any]]:
        agent = self.headers.get("User-Agent") or ""
        return 200, self.server.bridge.universal(raw, payload, self.client_address[0], agent)

    def _body(self) -> tuple[bytes, Any]:
        """The request body, as bytes and as the object it is.  Raises HTTPError."""
        if self.request.problem:
            raise HTTPError(self.request.problem.status, self.request.problem.message)
        try:
            raw = unpack(self.request.body, self.request.coding, self.request.limits.max_body)
        except BadBody as problem:
            raise HTTPError(problem.status, problem.message) from None
        raw = raw.removeprefix(codecs.BOM_UTF8)
        if not raw:
            raise HTTPError(400, "Empty request body")
        with _one_big_body if len(raw) > BIG_BODY else contextlib.nullcontext():
            payload = _parsed(raw)
        if not isinstance(payload, dict) and not (self.route == "/uw" and self.server.bridge.takes_frames(payload)):
            raise HTTPError(400, "Payload must be a JSON object")
        if log.isEnabledFor(logging.DEBUG):
            log.debug("payload of %s: %s", self.route, raw.decode("utf-8"))
        return raw, payload

    def _answer(self, status: int, answer: dict[str, Any]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode("ascii"))

    def _fail(self, problem: Exception) -> None:
        """The one place where exceptions become statuses: the client gets a short line, the log the traceback."""
        if isinstance(problem, HTTPError):
            self.send_error(problem.status, problem.message)
        elif isinstance(problem, ValidationError):
            self.send_error(400, str(problem))
        elif isinstance(problem, NotDurable):
            self.send_error(500, f"Payload could not be stored: {problem}")
        else:
            log.exception("unforeseen error in %s", self.route)
            self.send_error(500, str(problem))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        super().send_error(code, None if message is None else status_line_text(message), explain)

    def date_time_string(self, timestamp: float | None = None) -> str:
        return self.server.date_header() if timestamp is None else super().date_time_string(timestamp)

    def send_response(self, code: int, message: str | None = None) -> None:
        self.status = int(code)
        super().send_response(code, message)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        # Those who look after the server ask every few seconds.
        level = logging.DEBUG if self.command == "GET" and self.status in (200, 304) else logging.INFO
        self._log_later(level, f'"{_TOKEN.sub("...", self.requestline)}" {self.status} {size}')

    def log_message(self, format: str, *args: object) -> None:
        self._log_later(logging.INFO, format % args)

    def _log_later(self, level: int, text: str) -> None:
        self._lines.append((level, f"{self.client_address[0]} - {text}"))
