"""Hostile clients: 500 that drip bytes, or do not read their answers, cost an honest one little, a declared length
costs nothing until bytes come, and whatever is sent, the server answers with headers of its own, leaks no thread and no
descriptor, and goes on.

The fuzzed requests are Hypothesis' own, over raw sockets: heads and bodies
put together from what is nearly right, cut, repeated and overwritten.
"""

import json
import pathlib
import socket
import threading
import time

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.helpers.support import (
    RunningBridge,
    eventually,
    exchange,
    gex_payload,
    make_status_long,
    request,
    slow_reader,
    status_of,
)

ROUNDS, SHORT = 100_000, 300
DRIPPING, READING, ANNOUNCING = 500, 200, 200
ANNOUNCED = 4_000_000  # bytes; more than MAX_BODY_BYTES is refused at once
POSTS = 200
MOST_RATIO = 5.0
LEAST_P99 = 0.01  # s; below that the ratio says more about the machine than about the server
MOST_GROWTH = 64 << 20  # bytes of memory, for 200 connections that declared 6 GB
MOST_THREADS = 60
HEADERS = {
    b"Server",
    b"Date",
    b"Connection",
    b"Content-Type",
    b"Content-Length",
    b"Access-Control-Allow-Origin",
    b"Access-Control-Allow-Methods",
    b"Access-Control-Allow-Headers",
}
BODY = b'{"ticker": "SPX", "kind": "majors", "data": {"spot": 1}}'


class Process:
    """What the system says of the server's process."""

    def __init__(self, bridge: RunningBridge):
        self.folder = pathlib.Path(f"/proc/{bridge.process.pid}")

    def _status(self, name: str) -> int:
        line = next(line for line in (self.folder / "status").read_text().splitlines() if line.startswith(name + ":"))
        return int(line.split()[1])

    @property
    def memory(self) -> int:
        return self._status("VmRSS") << 10

    @property
    def threads(self) -> int:
        return self._status("Threads")

    @property
    def descriptors(self) -> int:
        return len(list((self.folder / "fd").iterdir()))


def run(rounds: int, folder: pathlib.Path) -> str:
    """rounds: fuzzed requests."""
    with RunningBridge(folder / "data", STOP_TIMEOUT="60") as bridge:
        said = f"{drip(bridge)}; {do_not_read(bridge)}; {announce(bridge)}"
        _is_well(bridge)
    with RunningBridge(folder / "fuzzed", HEAD_TIMEOUT="0.2", BODY_TIMEOUT="0.2", STOP_TIMEOUT="60") as bridge:
        said = f"{said}; {fuzz(bridge, rounds)}"
        _is_well(bridge)
    return said


def _is_well(bridge: RunningBridge) -> None:
    assert bridge.post("/gex", gex_payload()) == 202
    assert bridge.stop() == 0
    assert "Traceback" not in bridge.log and "unforeseen" not in bridge.log
    assert all(ord(c) >= 32 or c == "\n" for c in bridge.log), "client bytes reached the log"


def _p99(bridge: RunningBridge) -> float:
    times = []
    for number in range(POSTS):
        began = time.monotonic()
        assert bridge.post("/gex", gex_payload("SPX", 1_762_700_000 + number)) == 202
        times.append(time.monotonic() - began)
    return sorted(times)[int(0.99 * POSTS)]


def _costs_little(usual: float, besieged: float, threads: int) -> None:
    ratio = besieged / max(usual, LEAST_P99)
    assert ratio < MOST_RATIO, f"an honest client's P99 went from {1e3 * usual:.1f} to {1e3 * besieged:.1f} ms"
    assert threads <= MOST_THREADS, f"{threads} threads"


def drip(bridge: RunningBridge) -> str:
    process = Process(bridge)
    usual = _p99(bridge)
    descriptors = process.descriptors
    clients = [socket.create_connection(("127.0.0.1", bridge.port)) for _ in range(DRIPPING)]
    raw, ended, most = request("/gex", BODY), threading.Event(), 0

    def drips():
        for at in range(len(raw)):
            for client in clients:
                if ended.wait(1 / DRIPPING):  # each a byte a second
                    return
                try:
                    client.send(raw[at : at + 1])
                except OSError:  # its time was up
                    pass

    thread = threading.Thread(target=drips, name="Drips")
    thread.start()
    try:
        eventually(lambda: process.descriptors > descriptors + 0.9 * DRIPPING, "all are connected")
        besieged = _p99(bridge)
        most = process.threads
    finally:
        ended.set()
        thread.join()
        for client in clients:
            client.close()
    eventually(lambda: process.descriptors <= descriptors + 2, "their descriptors are closed")
    _costs_little(usual, besieged, most)
    return (
        f"{DRIPPING} dripping clients: P99 of an honest one {1e3 * besieged:.1f} ms instead of {1e3 * usual:.1f} ms,"
        f" {most} threads, all descriptors back"
    )


def do_not_read(bridge: RunningBridge) -> str:
    process = Process(bridge)
    make_status_long(bridge)
    usual, descriptors = _p99(bridge), process.descriptors
    clients = [slow_reader(bridge.port) for _ in range(READING)]
    try:
        for client in clients:
            client.sendall(b"GET /status HTTP/1.1\r\n\r\n")
        eventually(lambda: process.descriptors > descriptors + 0.9 * READING, "all are connected")
        besieged, most = _p99(bridge), process.threads
    finally:
        for client in clients:
            client.close()
    eventually(lambda: process.descriptors <= descriptors + 2, "their descriptors are closed")
    _costs_little(usual, besieged, most)
    return (
        f"{READING} that do not read their answers: P99 {1e3 * besieged:.1f} ms instead of {1e3 * usual:.1f} ms,"
        f" {most} threads"
    )


def announce(bridge: RunningBridge) -> str:
    process = Process(bridge)
    descriptors, before = process.descriptors, process.memory
    head = b"POST /gex HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % ANNOUNCED
    clients = [socket.create_connection(("127.0.0.1", bridge.port)) for _ in range(ANNOUNCING)]
    for client in clients:
        client.sendall(head + b"x" * 1000)
    eventually(lambda: process.descriptors > descriptors + 0.9 * ANNOUNCING)
    assert bridge.post("/gex", gex_payload()) == 202
    grown = process.memory - before
    for client in clients:
        client.close()
    eventually(lambda: process.descriptors <= descriptors + 2, "their descriptors are closed")
    assert grown < MOST_GROWTH, f"{grown >> 20} MB for {ANNOUNCING} connections that only announced"
    return (
        f"{ANNOUNCING} connections that declared {ANNOUNCED // 10**6} MB and sent 1 kB each:"
        f" {max(0, grown) / 1e6:.1f} MB of memory"
    )


_WORDS = st.sampled_from(
    [
        b"POST",
        b"GET",
        b"OPTIONS",
        b"post",
        b"/gex",
        b"/uw",
        b"/gex_history_url",
        b"/",
        b"HTTP/1.1",
        b"HTTP/0.9",
        b" ",
        b"  ",
        b"\t",
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b"\x85",
        b"\xff",
        b":",
        b"Content-Length",
        b"Transfer-Encoding",
        b"chunked",
        b"Host",
        b"Expect",
        b"0",
        b"-1",
        b"+2",
        b"1_0",
        b"99999999999999999999",
        b"{",
        b"}",
        b"[" * 3000,
        b'"',
        b"\\ud800",
        b"%0d%0a",
        b"A" * 5000,
        BODY,
    ]
) | st.binary(max_size=20)
_NAMES = st.sampled_from(
    [b"Content-Length", b"content-length", b"Transfer-Encoding", b"User-Agent", b"X-Y", b"Host", b"", b"X y"]
)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["SPX", "gex", "snapshot", "../x"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "ticker",
                    "kind",
                    "data",
                    "payload",
                    "topic",
                    "url",
                    "alert",
                    "executions",
                    "strikes",
                    "timestamp",
                    "spot",
                ]
            )
            | st.text(max_size=4),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@st.composite
def requests(draw) -> bytes:
    """Bytes that are nearly a request, or not at all."""
    if (kind := draw(st.integers(0, 9))) == 0:
        return b"".join(draw(st.lists(_WORDS, max_size=30)))
    body = draw(
        st.one_of(
            _JSON.map(lambda value: json.dumps(value).encode()),
            st.just(BODY),
            st.lists(_WORDS, max_size=6).map(b"".join),
        )
    )
    if kind > 5:  # only the body is odd
        return request(draw(st.sampled_from(["/gex", "/uw", "/gex_history_url"])), body)
    length = draw(
        st.sampled_from(
            [b"%d" % len(body)] * 6 + [b"", b"0", b"-5", b"+2", b"1_0", b"abc", b"%d" % (len(body) + 9), b"9" * 30]
        )
    )
    path = draw(st.sampled_from([b"/gex", b"/uw", b"/gex_history_url", b"/gex//", b"/gex?x", b"http://h/gex"]) | _WORDS)
    lines = [draw(st.sampled_from([b"POST", b"POST", b"OPTIONS", b"GET"]) | _WORDS) + b" " + path + b" HTTP/1.1"]
    for name, value in draw(st.lists(st.tuples(_NAMES, _WORDS), max_size=4)):
        lines.append(name + draw(st.sampled_from([b": ", b":", b" : ", b"\t", b": a\r\n "])) + value)
    lines.insert(draw(st.integers(1, len(lines))), b"Content-Length: " + length)
    raw = b"\r\n".join(lines) + b"\r\n\r\n" + body
    if draw(st.integers(0, 7)) == 0:
        at = draw(st.integers(0, len(raw)))
        raw = raw[:at] + draw(_WORDS) + raw[at + draw(st.integers(0, 5)) :]
    return raw


def fuzz(bridge: RunningBridge, rounds: int) -> str:
    process = Process(bridge)
    assert bridge.post("/gex", gex_payload()) == 202
    descriptors = process.descriptors
    statuses: dict[int, int] = {}

    @settings(
        max_examples=rounds,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(requests(), st.integers(0, 40).map(bool))
    def one(raw, half_close):
        try:
            answer, _ = exchange(bridge.port, raw, half_close, timeout=10)
        except TimeoutError:
            raise AssertionError(f"neither an answer nor a close for {raw[:200]!r}") from None
        status = status_of(answer)
        statuses[status] = statuses.get(status, 0) + 1
        if answer:
            _is_ours(answer)

    one()
    eventually(lambda: process.descriptors <= descriptors + 2, "no descriptor is left")
    assert process.threads <= MOST_THREADS
    by_status = ", ".join(f"{number:,} {status or 'closed'}" for status, number in sorted(statuses.items()))
    return f"{sum(statuses.values()):,} fuzzed requests ({by_status}): 0 tracebacks, 0 leaks, 0 foreign headers"


def _is_ours(answer: bytes) -> None:
    head, end, _ = answer.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    assert end and first.startswith(b"HTTP/1.0 "), answer[:200]
    assert all(32 <= byte < 127 or byte >= 160 for line in (first, *lines) for byte in line), head
    assert {line.split(b":", 1)[0] for line in lines} <= HEADERS, head
    assert [line.split(b":", 1)[0] for line in lines[:2]] == [b"Server", b"Date"], head
