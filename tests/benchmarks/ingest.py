"""How fast payloads are taken: `python -m tests.benchmarks.ingest [--requests 2000] [--rounds 3]`.

Workload: POST /gex, a snapshot of 150 strikes (13 KB), each with a key of its
own, one connection a request, from threads of one client process.  The bridge
takes turns with a bare standard-library server that stores nothing and with a
server of the original's architecture, on the same machine in the same run;
the client shares its cores.  Latency is from connect to the last byte.
"""

import argparse
import fcntl
import json
import pathlib
import random
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

from tests.helpers.support import RunningBridge, read

CLIENTS = (1, 8, 32)
STRIKES = 150


class Rival:
    """One of the servers in `rivals`."""

    def __init__(self, *arguments: str):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.rivals", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.port = int(self.process.stdout.readline())

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def bodies(count: int) -> list[bytes]:
    """Payloads whose timestamp, of ten digits, is to be put in for TIMESTAMP."""
    chance = random.Random(7)
    value = lambda: round(chance.uniform(-9e4, 9e4), 3)
    made = []
    for number in range(count):
        strikes = [[5000 + 5 * k, value(), value(), [value() for _ in range(5)]] for k in range(STRIKES)]
        data = {
            "timestamp": "TIMESTAMP",
            "ticker": "SPX",
            "min_dte": 0,
            "sec_min_dte": 1,
            "spot": 5300 + value() / 1e4,
            "zero_gamma": 5310.5,
            "major_pos_vol": 5325,
            "major_neg_vol": 5275,
            "sum_gex_vol": value(),
            "sum_gex_oi": value(),
            "strikes": strikes,
            "max_priors": [[5300, value()] for _ in range(6)],
        }
        payload = {
            "ticker": f"T{number % 6}",
            "kind": "snapshot",
            "endpoint": "gex_zero",
            "data": data,
            "received_at": "2025-11-09T15:00:00.000Z",
        }
        made.append(json.dumps(payload).encode().replace(b'"TIMESTAMP"', b"TIMESTAMP"))
    return made


class Run:
    """`requests` posts from `clients` threads: latencies in seconds, failures, and the wall time.

    pause: seconds that a client waits after each.
    """

    serial = 1_700_000_000
    lock = threading.Lock()
    made = bodies(24)
    path, good = b"/gex", b"HTTP/1.0 202"

    def __init__(self, port: int, clients: int, requests: int, pause: float = 0.0):
        self.pause = pause
        self.latencies: list[float] = []
        self.failed = 0
        threads = [threading.Thread(target=self._client, args=(port, requests // clients)) for _ in range(clients)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.seconds = time.perf_counter() - began

    def _client(self, port: int, requests: int) -> None:
        for _ in range(requests):
            with Run.lock:
                Run.serial += 1
                serial = Run.serial
            body = self.made[serial % len(self.made)].replace(b"TIMESTAMP", b"%d" % serial, 1)
            head = (
                b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            )
            began = time.perf_counter()
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
                    sock.sendall(head % (self.path, len(body)) + body)
                    answer = b""
                    while part := sock.recv(65536):
                        answer += part
                good = answer.startswith(self.good)
            except OSError:
                good = False
            self.latencies.append(time.perf_counter() - began)
            self.failed += not good
            time.sleep(self.pause)


def percentile(values: list[float], share: float) -> float:
    """In milliseconds."""
    return 1e3 * sorted(values)[min(len(values) - 1, int(len(values) * share))]


def throughput(requests: int, rounds: int, folder: pathlib.Path) -> None:
    print(
        f"{'server':<28}{'clients':>8}{'requests/s':>12}{'ratio':>8}{'P50 ms':>9}"
        f"{'P99 ms':>9}{'max ms':>9}{'failed':>8}"
    )
    for clients in CLIENTS:
        bare, sqlite = Rival("bare"), Rival("sqlite", str(folder / f"sqlite-{clients}"))
        servers = {"bare (stores nothing)": bare, "bridge": None, "original's way (SQLite)": sqlite}
        runs: dict[str, list[Run]] = {name: [] for name in servers}
        for number in range(rounds):
            for name, server in servers.items():
                if server is None:
                    # A bridge of its own for each turn, so that what it still has to load disturbs nobody else.
                    with RunningBridge(folder / f"bridge-{clients}-{number}") as bridge:
                        Run(bridge.port, 1, 1)
                        read(bridge.database, "SELECT 1 FROM gex_bridge_snapshots")  # the writer has started, too
                        runs[name].append(Run(bridge.port, clients, requests))
                        bridge.process.kill()
                    time.sleep(0.5)
                else:
                    runs[name].append(
                        Run(server.port, clients, requests if name.startswith("bare") else requests // 10)
                    )
        bare.stop()
        sqlite.stop()
        base = None
        for name, done in runs.items():
            latencies = [latency for run in done for latency in run.latencies]
            rate = len(latencies) / sum(run.seconds for run in done)
            base = base or rate
            print(
                f"{name:<28}{clients:>8}{rate:>12.0f}{rate / base:>8.2f}{percentile(latencies, 0.5):>9.1f}"
                f"{percentile(latencies, 0.99):>9.1f}{1e3 * max(latencies):>9.1f}{sum(run.failed for run in done):>8}"
            )


def sustained(requests: int, folder: pathlib.Path) -> None:
    with RunningBridge(folder / "sustained") as bridge:
        began = time.perf_counter()
        run = Run(bridge.port, 8, requests)
        posted = time.perf_counter() - began
        count = len(run.latencies)
        while read(bridge.database, "SELECT count(*) FROM gex_bridge_snapshots")[0][0] < count:
            time.sleep(0.2)
        seconds = time.perf_counter() - began
    print(
        f"\nsustained: {count} snapshots acknowledged in {posted:.1f} s, all rows visible in the database "
        f"{seconds - posted:.1f} s later: {count / seconds:.0f} snapshots/s from first post to last row"
    )


def availability(seconds: int, folder: pathlib.Path) -> None:
    """Share of the time in which nobody has a lock on the database file, at one post a second."""
    with RunningBridge(folder / "available") as bridge:
        Run(bridge.port, 1, 1)
        read(bridge.database, "SELECT 1 FROM gex_bridge_snapshots")
        free = total = 0
        with open(bridge.database, "rb") as file:
            for _ in range(seconds):
                Run(bridge.port, 1, 1)
                until = time.monotonic() + 1
                while time.monotonic() < until:
                    asked = struct.pack("hhqqi", fcntl.F_RDLCK, 0, 0, 0, 0)
                    found = struct.unpack("hhqqi", fcntl.fcntl(file, fcntl.F_GETLK, asked))
                    free += found[0] == fcntl.F_UNLCK
                    total += 1
                    time.sleep(0.001)
    print(f"at one post a second the database file is free {100 * free / total:.1f} % of the time")


def first_answer(folder: pathlib.Path) -> None:
    taken = []
    for number in range(5):
        bridge = RunningBridge(folder / f"start-{number}", "--port", str(free_port()))
        port = int(bridge.flags[1])
        began = time.perf_counter()
        bridge.launch()
        while True:
            try:
                if Run(port, 1, 1).failed == 0:
                    break
            except ConnectionError:
                pass
            time.sleep(0.005)
        taken.append(time.perf_counter() - began)
        bridge.stop()
    print(f"from start to the first 202: {min(taken):.2f} to {max(taken):.2f} s, {len(taken)} empty starts")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gex-bench-") as name:
        folder = pathlib.Path(name)
        throughput(args.requests, args.rounds, folder)
        sustained(2 * args.requests, folder)
        availability(15, folder)
        first_answer(folder)


if __name__ == "__main__":
    main()
