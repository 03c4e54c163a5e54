"""Calls to services outside: the one place that bounds their time and size, and what an error may tell.

Addresses and headers carry keys, and `requests` and `urllib3` put addresses
and headers into their exceptions and log lines.  Here an exception's text is
made anew, and urllib3's own lines are not logged.  `requests` is imported on
first use: it takes 85 ms.
"""

import json
import logging
import math
import time
from collections.abc import Mapping
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, NamedTuple

from data_pipeline import BridgeError

if TYPE_CHECKING:
    import requests
    from urllib3 import HTTPResponse, Retry

# A service may ask for any pause; longer ones than this are not believed.
LONGEST_RETRY_AFTER = 3600.0


class WebError(BridgeError):
    """No usable reply; the text names neither address nor header nor body."""


class Reply(NamedTuple):
    """status; headers (case-insensitive); body: the whole, unpacked, in bytes."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON; raises WebError where it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            pass
        raise WebError("the reply is not JSON")

    def retry_after(self, default: float) -> float:
        """The seconds to wait that a 429 names, in its JSON body or its header; else `default`."""
        try:
            named: Any = json.loads(self.body)["retry_after"]
        except (ValueError, RecursionError, LookupError, TypeError):
            named = self.headers.get("Retry-After")
        try:
            seconds = float(named)
        except (TypeError, ValueError, OverflowError):
            return default
        return min(seconds, LONGEST_RETRY_AFTER) if math.isfinite(seconds) and seconds >= 0 else default


def session(authorization: str, headers: dict[str, str], retries: "Retry | int" = 0) -> "requests.Session":
    """A requests.Session that sends `authorization` to the host it is used for.

    headers: sent with each request; retries: urllib3's Retry, or 0.  Set by a
    function, the header is not replaced by what a ~/.netrc holds for the host.
    Cookies are not kept.
    """
    from http.cookiejar import DefaultCookiePolicy

    import requests
    from requests.adapters import HTTPAdapter

    def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = authorization
        return request

    for name in ("urllib3.connectionpool", "urllib3.util.retry"):
        logging.getLogger(name).addFilter(_nothing)
    made = requests.Session()
    made.auth = authorize
    made.headers.update(headers)
    made.max_redirects = 3
    made.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
    for scheme in ("http://", "https://"):
        made.mount(scheme, HTTPAdapter(max_retries=retries))
    return made


def call(
    session: "requests.Session", method: str, url: str, time_limit: float, max_bytes: int = 32 << 20, **request: Any
) -> Reply:
    """One request, whatever its status.

    time_limit: seconds to connect, for the wait for the head, and for the
    whole body; max_bytes: largest body, unpacked.  Raises WebError.
    """
    import urllib3

    try:
        with session.request(method, url, timeout=time_limit, stream=True, **request) as response:
            body = _body(response.raw, time.monotonic() + time_limit, max_bytes)
            return Reply(response.status_code, response.headers, body)
    except (OSError, ValueError, HTTPException, urllib3.exceptions.HTTPError) as problem:
        reason = _reason(problem, time_limit)
    # Outside the `except`, so that the new exception does not carry the old one, and its address, along.
    raise WebError(reason)


def _body(raw: "HTTPResponse", deadline: float, max_bytes: int) -> bytes:
    """Read to the end; `read1` returns what there is, so that a dripping body meets the deadline."""
    parts, size = [], 0
    while part := raw.read1(65536, decode_content=True):
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            raise _Refused(f"the reply has more than {max_bytes} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError
    return b"".join(parts)


class _Refused(ValueError):
    """Ours, so its text may be told."""


def _reason(problem: Exception, time_limit: float) -> str:
    """What went wrong, from the types of the exceptions and the system's words: their own texts hold the address."""
    import requests
    from urllib3.exceptions import ProtocolError
    from urllib3.exceptions import TimeoutError as PoolTimeout

    chain: list[BaseException] = [problem]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(inner)
    for inner in chain:
        if isinstance(inner, _Refused):
            return str(inner)
        if isinstance(inner, OSError) and isinstance(inner.errno, int) and inner.strerror:
            return f"{type(problem).__name__}: {inner.strerror}"
    # Second: urllib3 counts a refused connection among the timeouts.
    if any(isinstance(inner, (requests.Timeout, PoolTimeout, TimeoutError)) for inner in chain):
        return f"no answer within {time_limit:g} s"
    if isinstance(problem, (requests.ConnectionError, ProtocolError)):
        return "the connection closed before the reply was whole"
    return type(problem).__name__


def _nothing(record: logging.LogRecord) -> bool:
    """A log filter that lets nothing through."""
    return False
