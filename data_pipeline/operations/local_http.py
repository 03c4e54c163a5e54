"""What the tools ask of a bridge over HTTP: small answers, in bounded time."""

import http.client
import socket
from contextlib import suppress
from urllib.parse import urlsplit

TIMEOUT = 5.0  # s, for each step
LONGEST = 8 << 20  # bytes of an answer


def base_url(host: str, port: int) -> str:
    """Where a bridge that listens on host and port is asked from this machine.

    By its address: names that are not in ALLOWED_HOSTS it refuses.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    if ":" not in host:
        with suppress(OSError):
            host = socket.gethostbyname(host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def get(url: str, path: str) -> tuple[int, str, bytes]:
    """Status, Server header and body.  Raises OSError, also for what is no HTTP."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT)
    try:
        connection.request("GET", parts.path.rstrip("/") + path, headers={"Accept": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Server", ""), answer.read(LONGEST)
    except http.client.HTTPException as problem:
        raise OSError(f"no HTTP answer: {type(problem).__name__}") from None
    finally:
        connection.close()
