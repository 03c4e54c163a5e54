"""A real bridge for tests: its own process, port and data folder."""

import contextlib
import json
import os
import pathlib
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple

import duckdb

from data_pipeline.repository.segments import record_head

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECORDINGS = ROOT / "tests" / "recordings"
PATIENCE = 30.0  # s, for anything that is awaited; only a broken test needs them


def eventually(condition, what: str = "", patience: float = PATIENCE):
    """Wait for `condition()` to be truthy; returns its value."""
    until = time.monotonic() + patience
    while not (value := condition()):
        if time.monotonic() > until:
            raise AssertionError(f"not within {patience} s: {what or condition}")
        time.sleep(0.02)
    return value


def raw_exchange(port: int, request: bytes, timeout: float = PATIENCE) -> bytes:
    """Send bytes, return every byte that comes back until the server closes."""
    return exchange(port, request, timeout=timeout)[0]


def exchange(port: int, raw: bytes, half_close: bool = False, timeout: float = PATIENCE) -> tuple[bytes, bool]:
    """Send bytes, and then the end if half_close; what comes back until it is closed, and whether by a reset.

    Raises TimeoutError for neither.
    """
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as sock:
        try:
            sock.sendall(raw)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
            while part := sock.recv(65536):
                answer += part
        except (ConnectionResetError, BrokenPipeError):
            return answer, True
    return answer, False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


class Done(NamedTuple):
    """A command that ended."""

    returncode: int
    stdout: str
    stderr: str


def gex_bridge(*arguments: object, **environment: str) -> Done:
    """Run the command line to its end, without the settings of whoever runs the tests."""
    known = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("GEX", "DISCORD", "HISTORY", "ALT_")) and k != "DATA_DIR"
    }
    done = subprocess.run(
        [sys.executable, "-m", "data_pipeline", *map(str, arguments)],
        cwd=ROOT,
        env={**known, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def slow_reader(port: int) -> socket.socket:
    """A client for which the system holds no more than some KB of what it does not read."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 88)
    client.settimeout(PATIENCE)
    client.connect(("127.0.0.1", port))
    return client


def make_status_long(bridge: "RunningBridge") -> None:
    """More than a slow reader is sent at once."""
    for number in range(60):
        name = f"{number}" + "\U0001f600" * 150
        assert bridge.post("/gex", {"ticker": name, "kind": "majors", "endpoint": name, "data": {}}) == 202


@contextlib.contextmanager
def files_limited_to(size: int):
    """A real failure of write(2): no file of this process may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def request(path: str, body: bytes, method: str = "POST", headers: str = "") -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{headers}"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode("latin-1") + body


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


class RunningBridge:
    """`run_server.py` as systemd would start it."""

    def __init__(self, data_dir: pathlib.Path, *flags: str, **environment: str):
        self.data_dir = pathlib.Path(data_dir)
        self.flags = flags
        self.environment = environment
        self.wrapper: tuple[str, ...] = ()  # a command that runs the one behind it
        self.port = 0
        self.lines: list[str] = []
        self.process: subprocess.Popen | None = None
        self._log = None

    @property
    def database(self) -> pathlib.Path:
        return self.data_dir / "raw" / "gex" / "gex_history.duckdb"

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def complaints(self) -> str:
        """What the log says beside the requests."""
        return "".join(line for line in self.log.splitlines(keepends=True) if " INFO " not in line)

    @property
    def log_path(self) -> pathlib.Path:
        return self.data_dir.parent / f"{self.data_dir.name}.log"

    def launch(self) -> "RunningBridge":
        """Start the process; does not wait for it to listen."""
        known = {key: value for key, value in os.environ.items() if not key.startswith(("GEX", "DISCORD", "HISTORY"))}
        with open(self.log_path, "ab") as log:
            self._from = log.tell()
            self.process = subprocess.Popen(
                [*self.wrapper, sys.executable, str(ROOT / "run_server.py"), "--port", "0", *self.flags],
                env={
                    **known,
                    "TZ": "UTC",
                    "DATA_DIR": str(self.data_dir),
                    "DASHBOARD_URL": "http://127.0.0.1:9",
                    "STOP_TIMEOUT": str(PATIENCE),
                    **self.environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
            )
        return self

    def start(self) -> "RunningBridge":
        """Start it and wait until it listens."""
        self.launch()
        found = eventually(self._listening, "the bridge listens")
        self.port = int(found.group(1))
        return self

    def _listening(self):
        if self.process.poll() is not None:
            raise AssertionError(f"the bridge ended with {self.process.returncode}:\n{self.log[self._from :][-2000:]}")
        return re.search(r"Starting GEX bridge on \S+:(\d+)", self.log[self._from :])

    def send(self, raw: bytes) -> bytes:
        return raw_exchange(self.port, raw)

    def post(self, path: str, payload) -> int:
        """Post JSON; returns the status, 0 where no answer came."""
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        return status_of(self.send(request(path, body)))

    def stop(self, number: int = signal.SIGTERM, patience: float = PATIENCE) -> int:
        """Signal it and wait; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(patience)

    def kill(self) -> None:
        """kill -9, the server first and alone: the writer must find out by itself."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def rows(self, query: str, *parameters) -> list[tuple]:
        """Ask the database from this process, as a notebook would while the server runs."""
        return read(self.database, query, *parameters)

    def __enter__(self) -> "RunningBridge":
        return self.start()

    def __exit__(self, *exc) -> None:
        if self.process.poll() is None:
            self.stop()


def read(database: pathlib.Path, query: str, *parameters) -> list[tuple]:
    def attempt():
        if not database.exists():
            return None
        try:
            with duckdb.connect(str(database), read_only=True) as con:
                return [con.execute(query, list(parameters)).fetchall()]
        except (duckdb.IOException, duckdb.CatalogException):  # the loader has it, or has yet to make the tables
            return None

    return eventually(attempt, f"the database can be read: {query}")[0]


def journal_record(number: int, payload: bytes) -> bytes:
    """A record as it stands in a segment."""
    return record_head(number, payload) + payload


def gex_payload(ticker="SPX", timestamp=1762700000, kind="snapshot", strikes=3, endpoint="gex_zero", **data) -> dict:
    """A payload as the browser sends it."""
    values = {
        "timestamp": timestamp,
        "ticker": ticker.upper(),
        "spot": 5300.25,
        "zero_gamma": 5310.5,
        "major_pos_vol": 5325,
        "major_neg_vol": 5275,
        "sum_gex_vol": -12.5,
        "sum_gex_oi": 7.25,
        "strikes": [[5300 + 5 * n, 1.5 * n, -2.5 * n, [0.5, 1, 2, 3, n]] for n in range(strikes)],
        "max_priors": [[5300, 1.5]] * 6,
        **data,
    }
    return {"ticker": ticker, "kind": kind, "endpoint": endpoint, "received_at": "2025-11-09T15:00:00Z", "data": values}
