"""The dashboard hand-over against real local servers that behave well and badly."""

import contextlib
import json
import socket
import threading
import time

import pytest

from data_pipeline.integrations.dashboard import Dashboard

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Service:
    """A TCP server; `behave(connection, request)` answers each whole request."""

    def __init__(self, behave):
        self.requests, self.behave = [], behave
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        self.closing = threading.Event()
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self):
        while True:
            connection, _ = self.listener.accept()
            if self.closing.is_set():
                connection.close()
                return
            self.threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self.threads[-1].start()

    def _serve(self, connection):
        with connection, contextlib.suppress(OSError):
            head, body = b"", b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(65536)
            head, body = head.split(b"\r\n\r\n", 1)
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            while len(body) < length:
                body += connection.recv(65536)
            self.requests.append((head, body))
            self.behave(connection, self)

    def close(self):
        self.closing.set()
        socket.create_connection(self.listener.getsockname()).close()
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()
        self.listener.close()


@pytest.fixture
def serve():
    with contextlib.ExitStack() as stack:

        def start(behave):
            service = Service(behave)
            stack.callback(service.close)
            return service

        yield start


def no_exchange_is_left():
    until = time.monotonic() + 5
    while any(t.name == "DashboardOffer" for t in threading.enumerate()):
        assert time.monotonic() < until, "an exchange outlives its limit"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def no_thread_is_left_behind():
    yield
    no_exchange_is_left()


def answer(text: bytes):
    return lambda connection, service: connection.sendall(text)


def hang(connection, service):
    service.closing.wait(10)


def drip(connection, service):
    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 1000:
        connection.sendall(bytes([byte]))
        if service.closing.wait(0.05):
            return


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return "http://127.0.0.1:%d" % listener.getsockname()[1]


@pytest.mark.parametrize(
    "status, taken", [(200, True), (202, True), (201, False), (204, False), (302, False), (404, False), (500, False)]
)
def test_only_200_and_202_mean_that_the_dashboard_took_the_link(serve, status, taken):
    service = serve(answer(b"HTTP/1.1 %d X\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n" % status))
    assert Dashboard(service.url).offer("u", "T", "e") is taken
    assert len(service.requests) == 1, "a redirect was followed"


def test_the_values_arrive_as_the_client_sent_them(serve):
    service = serve(answer(OK))
    values = {"url": "http://x/é\ud800\0", "ticker": ["spx", 1], "endpoint": {"a": None}}
    assert Dashboard(service.url + "/base/").offer(**values)
    head, body = service.requests[0]
    assert head.startswith(b"POST /base/api/ingest/history HTTP/1.1\r\n")
    assert b"\r\nContent-Type: application/json" in head
    assert json.loads(body) == values


def test_a_value_that_is_no_json_is_not_offered(serve):
    service = serve(answer(OK))
    deep = []
    for _ in range(100_000):
        deep = [deep]
    dashboard = Dashboard(service.url)
    assert not dashboard.offer("u", "T", float("nan"))
    assert not dashboard.offer("u", "T", deep)
    assert service.requests == []
    while deep:
        deep = deep.pop()


def test_credentials_of_the_address_go_into_a_header(serve):
    service = serve(answer(OK))
    assert Dashboard(service.url.replace("://", "://me:p%40ss@")).offer("u", "T", "e")
    assert b"\r\nAuthorization: Basic bWU6cEBzcw==" in service.requests[0][0]


def test_a_proxy_of_the_environment_is_not_used(serve, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, closed_port())
    assert Dashboard(serve(answer(OK)).url).offer("u", "T", "e")


@pytest.mark.parametrize("behave", [hang, drip], ids=["hangs", "drips"])
def test_a_dashboard_that_does_not_finish_costs_its_limit_and_no_more(serve, behave):
    dashboard = Dashboard(serve(behave).url, limit=0.4)
    began = time.monotonic()
    assert not dashboard.offer("u", "T", "e")
    assert 0.3 < time.monotonic() - began < 2
    assert dashboard.stats()["down"]
    no_exchange_is_left()  # though the service still drips


@pytest.mark.parametrize(
    "text",
    [b"", b"HTTP/1.1 20", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf"],
    ids=["nothing", "half a status line", "garbage", "half a body"],
)
def test_an_answer_cut_short_is_no_answer_but_the_dashboard_is_up(serve, text):
    dashboard = Dashboard(serve(answer(text)).url)
    assert not dashboard.offer("u", "T", "e")
    assert not dashboard.stats()["down"]


def test_a_dashboard_that_is_down_is_remembered_and_then_tried_by_one(serve):
    url = closed_port()
    dashboard = Dashboard(url, down_for=0.5)
    assert not dashboard.offer("u", "T", "e")
    began = time.monotonic()
    assert not any(dashboard.offer("u", "T", "e") for _ in range(100))
    if time.monotonic() - began < 0.5:
        assert dashboard.stats()["skipped_down"] == 100

    up = serve(answer(OK))
    dashboard._port = int(up.url.rsplit(":", 1)[1])
    until = time.monotonic() + 5
    while not dashboard.offer("u", "T", "e"):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert not dashboard.stats()["down"]


def test_while_one_call_tries_a_dashboard_that_was_down_the_others_do_not_wait(serve):
    service = serve(hang)
    dashboard = Dashboard(service.url, limit=0.3, down_for=0.01)
    assert not dashboard.offer("u", "T", "e")
    dashboard._limit = 1.0
    time.sleep(0.02)
    threads = [threading.Thread(target=dashboard.offer, args=("u", "T", "e")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(service.requests) == 2


def test_only_so_many_wait_at_once_and_the_others_are_told_at_once(serve):
    service = serve(hang)
    dashboard = Dashboard(service.url, limit=1.0, waiting=4)
    took = []

    def offer():
        began = time.monotonic()
        dashboard.offer("u", "T", "e")
        took.append(time.monotonic() - began)

    threads = [threading.Thread(target=offer) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(service.requests) <= 4
    assert sum(t > 0.5 for t in took) <= 4
    assert dashboard.stats()["busy"] >= 12


def test_no_log_line_shows_the_address_or_the_values(caplog):
    Dashboard(closed_port().replace("://", "://me:hush@")).offer("http://secret/", "TICK", "e")
    assert "Dashboard not reachable" in caplog.text
    assert not any(word in caplog.text for word in ("hush", "secret", "TICK"))
