"""What GET serves: how the server is, for people, load balancers and Prometheus.

`Pages` is asked by the handler and knows no HTTP beyond status, content type
and body.  Nothing in an answer is secret, but it is nobody else's business
either: a web page of another site can neither read it (no CORS header) nor
reach it under a name of its own (`may_ask`).
"""

import heapq
import ipaddress
import json
import os
import re
import time
from collections.abc import Callable
from typing import Any

from data_pipeline import __version__
from data_pipeline.bridge import Bridge
from data_pipeline.config import Settings
from data_pipeline.http_server import metrics
from data_pipeline.payloads import times
from data_pipeline.payloads.store import TickerState
from data_pipeline.repository.repository import Repository

# path -> method of Pages
ROUTES = {"/health": "_health", "/ready": "_ready", "/status": "_status", "/metrics": "_metrics"}

JSON = "application/json"
IDLE = 60.0  # s for which records may wait without the loader trying to load them
MOST_TICKERS = 1000  # in /status: those that were heard of last
LONGEST_TEXT = 200  # characters of a client's text in /status
PROBE_INTERVAL = 1.0  # s between two looks at whether the disk takes a file

_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^\s:\[\]/@]+))(?::[0-9]*)?")


class Pages:
    """The four pages.

    repository: has `probe()`; bridge: its store and when each ticker was
    heard; stats: returns what every part counts.
    """

    def __init__(
        self,
        settings: Settings,
        repository: Repository,
        bridge: Bridge,
        stats: Callable[[], dict[str, Any]],
    ):
        self._settings = settings
        self._repository = repository
        self._bridge = bridge
        self._stats = stats
        self._started = time.monotonic()
        self._names = {"localhost", *(name.lower() for name in settings.allowed_hosts)}
        self._origins = {origin.lower() for origin in settings.allowed_origins}
        self._probed = (-PROBE_INTERVAL, "")  # when, and what was wrong

    def may_ask(self, hosts: list[str]) -> bool:
        """Whether a request with these Host headers is meant for this server.

        A browser sends the name that stands in its address bar.  A site that
        lets its own name point to this machine (DNS rebinding) would count as
        the same origin and could read the answers; it cannot do that with an
        IP address, nor with localhost.
        """
        return all(self._is_ours(host) for host in hosts)

    def may_send(self, origins: list[str]) -> bool:
        """Whether a POST with these Origin headers is taken; what is no web page sends none."""
        return "*" in self._origins or all(origin.strip().lower() in self._origins for origin in origins)

    def _is_ours(self, host: str) -> bool:
        found = _HOST.fullmatch(host.strip())
        if not found:
            return False
        address, name = found.groups()
        if address is None and name.lower().removesuffix(".") in self._names:
            return True
        try:
            return ipaddress.ip_address(address or name).version == (6 if address else 4)
        except ValueError:
            return False

    def get(self, route: str) -> tuple[int, str, bytes]:
        """Status, content type and body of one of ROUTES."""
        answer: tuple[int, str, bytes] = getattr(self, ROUTES[route])()
        return answer

    def status(self) -> dict[str, Any]:
        """Everything there is to know; see README, `/status`."""
        stats = self._stats()
        problems = self.problems(stats)
        importer, queue = stats.pop("history", {}), stats["loader"].pop("queue", {})
        tickers = self._bridge.store.tickers()
        return {
            "version": __version__,
            "uptime_seconds": time.monotonic() - self._started,
            "ready": not problems,
            "problems": problems,
            **stats,
            "history": queue,
            "importer": importer,
            "disk": {"free_bytes": self._free_bytes()},
            "ticker_count": len(tickers),
            "tickers": self._tickers(tickers),
        }

    def problems(self, stats: dict[str, Any]) -> list[str]:
        """Why the server is not ready, a line each; [] where it is.

        A database that another process has is none as long as what waits for
        the loader, the files or the depth files is not older than MAX_LAG: that is what the journal is for.
        """
        loader, found = stats["loader"], []
        if problem := self._journal_problem():
            found.append(f"the journal cannot be written: {problem}")
        if not stats["writer"]["running"]:
            found.append("the process that writes tables and files is down; it is being started again")
        if missing := stats["server"]["missing_threads"]:
            found.append(f"threads have ended and are being started again: {', '.join(missing)}")
        if loader["idle_seconds"] > IDLE:
            found.append(
                f"the loader is stuck: records wait and it has tried nothing for {loader['idle_seconds']:.0f} s"
            )
        for name, subject in (
            ("loader", "the loader is"),
            ("files", "the files are"),
            ("depth", "the depth files are"),
        ):
            reader = stats[name]
            if reader["lag_seconds"] > self._settings.max_lag:
                because = f": {reader['trouble']}" if reader.get("trouble") else ""
                found.append(f"{subject} {reader['lag_seconds']:.0f} s behind{because}")
        if self._free_bytes() < self._settings.min_free_bytes:
            found.append(f"the disk is nearly full: {self._free_bytes()} bytes are free")
        return found

    def _health(self) -> tuple[int, str, bytes]:
        return self._json(200, {"status": "ok"})

    def _ready(self) -> tuple[int, str, bytes]:
        problems = self.problems(self._stats())
        if problems:
            return self._json(503, {"status": "not ready", "reasons": problems})
        return self._json(200, {"status": "ready"})

    def _status(self) -> tuple[int, str, bytes]:
        return self._json(200, self.status())

    def _metrics(self) -> tuple[int, str, bytes]:
        return 200, metrics.content_type(), metrics.render(self.status())

    @staticmethod
    def _json(status: int, answer: dict[str, Any]) -> tuple[int, str, bytes]:
        return status, JSON, json.dumps(answer).encode("ascii")

    def _journal_problem(self) -> str:
        """What is wrong with the disk below the journal, looked at no more than once a second."""
        when, problem = self._probed
        if time.monotonic() - when >= PROBE_INTERVAL:
            try:
                self._repository.probe()
                problem = ""
            except OSError as error:
                problem = error.strerror or str(error)
            self._probed = (time.monotonic(), problem)
        return problem

    def _free_bytes(self) -> int:
        found = os.statvfs(self._settings.data_dir)
        return found.f_bavail * found.f_frsize

    def _tickers(self, snapshots: list[TickerState]) -> dict[str, Any]:
        heard, found = self._bridge.heard, {}
        for s in heapq.nlargest(MOST_TICKERS, snapshots, key=lambda s: heard.get(s.ticker, 0.0)):
            age, source = _age(heard.get(s.ticker), s.received_at)
            found[s.ticker[:LONGEST_TEXT]] = {
                "kind": s.last_payload_kind,
                "endpoint": _short(s.last_endpoint),
                "received_at": _short(s.received_at),
                "age_seconds": age,
                "age_since": source,
            }
        return found


def _age(heard: float | None, received_at: object) -> tuple[float | None, str | None]:
    """Seconds since a ticker's last payload, and since what: its arrival, or before the last start its own time."""
    if heard is not None:
        return time.monotonic() - heard, "arrival"
    received = times.parse_iso(received_at) if isinstance(received_at, str) else None
    age = time.time() - received.timestamp() if received else -1.0
    return (age, "received_at") if age >= 0 else (None, None)


def _short(value: object) -> str | None:
    return value[:LONGEST_TEXT] if isinstance(value, str) else None
