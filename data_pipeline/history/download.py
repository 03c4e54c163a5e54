"""Files from the web, fetched for a client that only named the address: to a file, resumable, and never from inside.

An address given by a client must not reach what only this machine can reach.
So: http and https, hosts on the list, and a private, loopback or link-local
address only for a host that is itself on the list by name.  The connection is
made to the very address that was checked, and each redirect is checked like
the first address.  What follows the `?` of an address may be a signature that
opens it: it is in no message and no file made here.
"""

import contextlib
import fcntl
import hashlib
import http.client
import ipaddress
import json
import os
import pathlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from data_pipeline import __version__
from data_pipeline.config import DataFolder
from data_pipeline.files import atomic
from data_pipeline.files.names import folder_name

REDIRECTS = 5
BLOCK = 1 << 18

# Hosts that give history to whoever has an API key; it is sent to no other, and never in the clear.
API_HOSTS = ("api.gex.bot", "api.gexbot.com")

# What HISTORY_ALLOWED_HOSTS holds unless the operator sets it.  Nobody vouches for where these names lead, so unlike
# hosts that the operator names they must have a public address.
DEFAULT_HOSTS = (
    "hist.gex.bot",
    "hist.gexbot.com",
    *API_HOSTS,
    "nfagexbotresearch.blob.core.windows.net",
)

# An answer that is no history but says where it is, `{"url": …}`, is not longer.
LINK_BYTES = 1 << 16

# What the name of a history file says: 2025-11-14_NQ_NDX_classic_gex_zero.json,
# or …/hist/SPX/classic/gex_zero/2025-11-14.
_NAMED = (
    re.compile(r"\d{4}-\d\d-\d\d_(?P<ticker>[A-Za-z0-9_.^-]+?)_(?:classic|state|orderflow)_(?P<endpoint>\w+)[.\w]*$"),
    re.compile(r"/hist/(?P<ticker>[^/]+)/(?:classic|state|orderflow)/(?P<endpoint>\w+)(?:/|$)"),
)

# IPv6 addresses that end in the IPv4 address which is reached: compatible, mapped, translated (SIIT), NAT64.
_IPV4_INSIDE = [ipaddress.ip_network(net) for net in ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96")]

# Of IPv6, what is handed out for the whole internet: not site-local, not a translator's of the local network.
_GLOBAL = ipaddress.ip_network("2000::/3")

# Protocol assignments (of which older Pythons take some for public), relays of 6to4, Teredo.
_NOT_PUBLIC = [ipaddress.ip_network(net) for net in ("192.0.0.0/24", "192.88.99.0/24", "2001::/32")]


class DownloadFailed(Exception):
    """It could not be fetched; the text says why, without the address's query."""


class Refused(DownloadFailed):
    """It may not be fetched: scheme, host, address or size."""


class Fetched(NamedTuple):
    """The whole file; new: it was fetched now, rather than found unchanged."""

    path: pathlib.Path
    size: int
    new: bool


class Limits(NamedTuple):
    """bytes: of the file; connect, read: seconds for a connection, and without a byte; total: seconds for all.

    least: bytes a second over each `window` of seconds; less is a server that only keeps others waiting.
    """

    bytes: int = 4 << 30
    connect: float = 10.0
    read: float = 30.0
    total: float = 3600.0
    least: float = 1024.0
    window: float = 30.0


def folder(data_dir: pathlib.Path, ticker: str, endpoint: str) -> pathlib.Path:
    """Where the files of a ticker and endpoint are kept."""
    return DataFolder(data_dir).source / folder_name(ticker) / folder_name(endpoint)


def named_in(link: str) -> tuple[str, str]:
    """The ticker and endpoint that a link's or a file's name tells; empty texts where it does not."""
    path = link.split("?", 1)[0]
    found = next(filter(None, (pattern.search(path) for pattern in _NAMED)), None)
    return (found["ticker"].upper(), found["endpoint"]) if found else ("", "")


class Download:
    """One file: `Download(url, folder, hosts).run()`, which another thread may `cancel`.

    It is written to `NAME.part` in `folder` and renamed to NAME when whole;
    NAME comes from the last step of the address's path.  An interrupted one is
    resumed if the server still has the same file (Range and If-Range), and a
    whole one is fetched again only if the server has another.  An answer
    `{"url": …}` is followed like a redirect.  api_key: for API_HOSTS.
    """

    def __init__(
        self,
        url: str,
        folder: pathlib.Path,
        hosts: tuple[str, ...],
        limits: Limits = Limits(),
        progress: Callable[[int, int | None], None] | None = None,
        api_key: str = "",
    ):
        self.url, self.folder, self.hosts, self.limits = url, folder, hosts, limits
        self._api_key = api_key
        self._received = 0
        self._progress = progress or (lambda done, whole: None)
        self._socket: socket.socket | None = None
        self._ended = ""  # why it was ended from outside
        self._lock = threading.Lock()  # guards the two above

    def cancel(self, why: str = "stopped") -> None:
        """Make `run` raise DownloadFailed soon, whatever it waits for."""
        with self._lock:
            self._ended = self._ended or why
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    # Not TLS's own shutdown: another thread is using it.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def run(self) -> Fetched:
        """Fetch it; raises DownloadFailed, Refused, and OSError for the disk."""
        done = threading.Event()
        deadline = threading.Thread(target=self._watch, args=[done], name="download-deadline", daemon=True)
        deadline.start()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _alone(self.folder):
                return self._follow()
        finally:
            done.set()
            deadline.join()

    def _watch(self, done: threading.Event) -> None:
        """Cancel what takes too long in all, or is too slow now."""
        until, known = time.monotonic() + self.limits.total, 0
        while not done.wait(min(self.limits.window, max(until - time.monotonic(), 0))):
            if time.monotonic() >= until:
                return self.cancel(f"not done after {self.limits.total:g} s")
            if self._received - known < self.limits.least * self.limits.window:
                return self.cancel(f"slower than {self.limits.least:g} bytes a second")
            known = self._received

    def _follow(self) -> Fetched:
        url = self.url
        for _ in range(REDIRECTS + 1):
            parts = checked(url, self.hosts)
            files = _Files(self.folder, parts)
            with contextlib.closing(self._connect(parts)) as connection:
                try:
                    headers = files.request_headers(_host_header(parts))
                    key = self._api_key if parts.scheme == "https" and parts.hostname in API_HOSTS else ""
                    if key:
                        headers["Authorization"] = f"Bearer {key}"
                    connection.request("GET", _target(parts, key), headers=headers)
                    with contextlib.closing(connection.getresponse()) as answer:
                        if answer.status in (301, 302, 303, 307, 308) and answer.headers.get("Location"):
                            url = urljoin(url, answer.headers["Location"])
                            continue
                        fetched = self._receive(answer, files)
                    link = _link_in(fetched)
                    if not link:
                        return fetched
                    files.drop()
                    url = urljoin(url, link)
                except (OSError, http.client.HTTPException, ValueError) as problem:
                    raise DownloadFailed(self._ended or _plain(problem)) from None
                finally:
                    with self._lock:
                        self._socket = None
        raise DownloadFailed(f"more than {REDIRECTS} redirects")

    def _connect(self, parts: SplitResult) -> http.client.HTTPConnection:
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        problem: Exception = DownloadFailed("no address")
        for address in _addresses(host, port, self.hosts):
            with self._lock:
                if self._ended:
                    raise DownloadFailed(self._ended)
            try:
                plain = socket.create_connection((address, port), self.limits.connect)
            except OSError as failed:
                problem = failed
                continue
            plain.settimeout(self.limits.read)
            with self._lock:
                self._socket = plain
            connection = http.client.HTTPConnection(host, port)
            try:
                connection.sock = _tls(plain, host) if parts.scheme == "https" else plain
            except (OSError, ValueError) as failed:
                plain.close()
                problem = failed
                continue
            with self._lock:
                self._socket = connection.sock
            return connection
        raise DownloadFailed(self._ended or f"cannot connect to {ascii(host)}: {_plain(problem)}")

    def _receive(self, answer: http.client.HTTPResponse, files: "_Files") -> Fetched:
        if answer.status == 304 and files.whole.exists():
            return Fetched(files.whole, files.whole.stat().st_size, False)
        start = files.start_of(answer)
        length = answer.headers.get("Content-Length", "")
        whole = start + int(length) if length.isascii() and length.isdigit() else None
        if whole is not None and whole > self.limits.bytes:
            files.forget()
            raise Refused(f"{whole} bytes are more than the {self.limits.bytes} allowed")
        files.note(answer, start)
        with open(files.part, "r+b" if start else "wb") as out:
            out.truncate(start)
            out.seek(start)
            size = start
            while block := answer.read1(BLOCK):
                if self._ended:
                    break
                size += len(block)
                self._received += len(block)
                if size > self.limits.bytes:
                    files.forget()
                    raise Refused(f"more than the {self.limits.bytes} bytes allowed")
                out.write(block)
                self._progress(size, whole)
            out.flush()
            os.fsync(out.fileno())
        if self._ended or whole is not None and size != whole:
            raise DownloadFailed(self._ended or f"cut short: {size} of {whole} bytes")
        files.finish(size)
        return Fetched(files.whole, size, True)


class _Files:
    """The files of one download: NAME, NAME.part, and `.NAME.json`, which says what the part or the whole is of."""

    def __init__(self, folder: pathlib.Path, parts: SplitResult):
        address = f"{parts.scheme}://{_host_header(parts)}{parts.path}"
        self._of = hashlib.sha256(address.encode("utf-8", "surrogatepass")).hexdigest()
        plain = folder_name(unquote(parts.path.rstrip("/").rsplit("/", 1)[-1]) or "history")
        # Another address whose path ends alike gets a name of its own.
        for name in (plain[:150], f"{plain[:150]}~{self._of[:12]}"):
            self.whole, self.part, self._about = folder / name, folder / f"{name}.part", folder / f".{name}.json"
            self.about = self._read()
            if self.about.get("of") in (None, self._of):
                break
        if self.about.get("of") != self._of:
            self.about = {}

    def _read(self) -> dict[str, Any]:
        try:
            about = json.loads(self._about.read_bytes())
            return about if isinstance(about, dict) else {}
        except (OSError, ValueError):
            return {}

    def request_headers(self, host: str) -> dict[str, str]:
        headers = {
            "Host": host,
            "User-Agent": f"gex-bridge/{__version__}",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        mark = self.about.get("mark")
        if mark and self.about.get("whole") and self.whole.exists():
            headers["If-None-Match" if mark.startswith('"') else "If-Modified-Since"] = mark
        elif mark and self.part.exists() and self.part.stat().st_size:
            headers["Range"], headers["If-Range"] = f"bytes={self.part.stat().st_size}-", mark
        return headers

    def start_of(self, answer: http.client.HTTPResponse) -> int:
        """Where in the file the answer's body belongs; raises DownloadFailed for an answer that has no file."""
        if answer.status == 200:
            return 0
        if answer.status == 206 and self.part.exists():
            size = self.part.stat().st_size
            if answer.headers.get("Content-Range", "").startswith(f"bytes {size}-"):
                return size
        if answer.status in (206, 416):
            self.forget()  # the next try starts anew
        raise DownloadFailed(f"the server answered {answer.status}")

    def note(self, answer: http.client.HTTPResponse, start: int) -> None:
        """Remember of which version the part is, before the first byte of it is there."""
        if start:
            return
        etag = answer.headers.get("ETag", "")
        mark = etag if etag.startswith('"') else answer.headers.get("Last-Modified", "")
        self.about = {"of": self._of, "mark": mark if mark.isascii() and mark.isprintable() else "", "whole": False}
        self.part.unlink(missing_ok=True)
        atomic.replace(self._about, json.dumps(self.about).encode())

    def finish(self, size: int) -> None:
        os.replace(self.part, self.whole)
        atomic.fsync_folder(self.whole.parent)
        atomic.replace(self._about, json.dumps({**self.about, "whole": True, "size": size}).encode())

    def drop(self) -> None:
        """It was no history; nothing of it stays."""
        self.whole.unlink(missing_ok=True)
        self.forget()

    def forget(self) -> None:
        self.part.unlink(missing_ok=True)
        if not self.whole.exists():
            self._about.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """Be the only one of all processes that downloads to this folder; raises DownloadFailed if there is another."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise DownloadFailed("another download for this ticker and endpoint is going on") from None
    finally:
        os.close(fd)


def checked(url: str, hosts: tuple[str, ...]) -> SplitResult:
    """The parts of an address that may be asked for, by its looks alone; raises Refused."""
    if any(c <= " " or c == "\x7f" for c in url):
        raise Refused("the address has spaces or control characters")
    try:
        parts = urlsplit(url)
        host = normal(parts.hostname or "")
        _ = parts.port, host.encode("idna")  # both raise where they are none
    except ValueError:
        raise Refused("not an address") from None
    if parts.scheme not in ("http", "https") or not host:
        raise Refused("only http:// and https:// addresses with a host are fetched")
    if parts.username is not None or parts.password is not None:
        raise Refused("the address has a user name or password")
    names = [normal(name) for name in hosts]
    if "*" not in names and not any(host == name or host.endswith("." + name) for name in names):
        raise Refused(f"host {ascii(host)} is not in HISTORY_ALLOWED_HOSTS")
    return parts


def normal(host: str) -> str:
    """A host's name in the one form in which names are compared."""
    return host.lower().strip("[]").rstrip(".")


def _link_in(fetched: Fetched) -> str:
    """The address that a file names instead of being history; empty if it is history."""
    if fetched.size > LINK_BYTES:
        return ""
    try:
        said = json.loads(fetched.path.read_bytes())
    except (ValueError, RecursionError):
        return ""
    link = said.get("url") if isinstance(said, dict) and "timestamp" not in said else None
    return link if isinstance(link, str) else ""


def _addresses(host: str, port: int, hosts: tuple[str, ...]) -> list[str]:
    """The host's addresses that may be connected to; raises Refused, DownloadFailed."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as problem:
        raise DownloadFailed(f"host {ascii(host)} is not known: {_plain(problem)}") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    named = {normal(name) for name in hosts} - set(DEFAULT_HOSTS)
    if normal(host) in named:
        return addresses
    public = [address for address in addresses if _is_public(address)]
    if not public:
        raise Refused(f"host {ascii(host)} has a private address, and is not itself in HISTORY_ALLOWED_HOSTS")
    return public


def _is_public(address: str) -> bool:
    """Whether everybody on the internet can reach it; of an IPv6 form of an IPv4 address that one is judged."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if ip.version == 6:
        if any(ip in network for network in _IPV4_INSIDE):
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        elif ip not in _GLOBAL:
            return False
        else:
            ip = ip.sixtofour or ip
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NOT_PUBLIC)


def _tls(plain: socket.socket, host: str) -> ssl.SSLSocket:
    return ssl.create_default_context().wrap_socket(plain, server_hostname=host)


def _host_header(parts: SplitResult) -> str:
    host = parts.hostname or ""
    host = host if host.isascii() else host.encode("idna").decode()
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{parts.port}" if parts.port else host


def _target(parts: SplitResult, key: str = "") -> str:
    query = "&".join(filter(None, (parts.query, key and "key=" + quote(key, safe=""))))
    target = (parts.path or "/") + (f"?{query}" if query else "")
    return "".join(chr(b) if b < 128 else f"%{b:02X}" for b in target.encode("utf-8", "surrogatepass"))


def _plain(problem: Exception) -> str:
    """An exception as text that cannot hold the address: the system's word for it, or its kind."""
    if isinstance(problem, TimeoutError):
        return "timed out"
    if isinstance(problem, ssl.SSLCertVerificationError):
        return f"certificate: {problem.verify_message}"
    if isinstance(problem, OSError) and problem.strerror:
        return problem.strerror
    return type(problem).__name__
