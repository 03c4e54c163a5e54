"""What systemd hears of a real server; a socket of the test stands in for systemd."""

import fcntl
import os
import signal
import socket
import threading

import pytest

from data_pipeline.operations.watchdog import Watchdog
from tests.helpers.support import RunningBridge, eventually
from tests.http_server.test_pages import held_database, status, writer_of

LIMIT = 3.0  # s, of the watchdog


class Systemd:
    """The socket that a service of Type=notify talks to; `heard` are its lines."""

    def __init__(self, path):
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def hears(self, what: str) -> bool:
        try:
            while True:
                self.heard += self._socket.recv(4096).decode().split("\n")
        except BlockingIOError:
            return any(what in line for line in self.heard)

    def forget(self) -> None:
        self.hears("")
        self.heard.clear()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path):
    made = Systemd(tmp_path / "notify")
    yield made
    made.close()


@pytest.fixture
def bridge(tmp_path, systemd):
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": str(int(LIMIT * 1e6))}
    with RunningBridge(tmp_path / "data", STOP_TIMEOUT="20", **environment) as running:
        yield running


def test_ready_comes_once_everything_works_and_stopping_at_the_end(bridge, systemd):
    eventually(lambda: systemd.hears("READY=1"))
    assert status(bridge)["writer"]["running"] and "position" in status(bridge)["loader"]
    eventually(lambda: systemd.hears("WATCHDOG=1"))
    assert not systemd.hears("STOPPING=1")
    assert bridge.stop() == 0
    assert systemd.hears("STOPPING=1") and systemd.heard.count("READY=1") == 1


def test_ready_does_not_come_before_the_writer_works(tmp_path, systemd):
    (tmp_path / "data" / "journal").mkdir(parents=True)
    with open(tmp_path / "data" / "journal" / "writer.lock", "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # as a writer has it whose server was killed
        with RunningBridge(tmp_path / "data", NOTIFY_SOCKET=str(tmp_path / "notify")) as bridge:
            assert bridge.post("/uw", {"n": 1}) == 200
            eventually(lambda: status(bridge)["loader"]["idle_seconds"] > 0.3)
            assert not systemd.hears("READY=1")
            fcntl.flock(turn, fcntl.LOCK_UN)
            eventually(lambda: systemd.hears("READY=1"))


def test_a_loader_that_hangs_ends_the_signs_of_life(bridge, systemd):
    assert bridge.post("/uw", {"n": 1}) == 200
    eventually(lambda: status(bridge)["loader"].get("records") == 1 and systemd.hears("WATCHDOG=1"))
    os.kill(writer_of(bridge), signal.SIGSTOP)
    assert bridge.post("/uw", {"n": 2}) == 200
    eventually(lambda: systemd.hears("STATUS=records wait and the loader has tried nothing"))
    systemd.forget()
    eventually(lambda: systemd.hears("STATUS=records wait"))
    assert not systemd.hears("WATCHDOG=1")
    os.kill(writer_of(bridge), signal.SIGCONT)
    eventually(lambda: systemd.hears("WATCHDOG=1"))


def test_a_database_that_is_merely_busy_does_not(bridge, systemd):
    assert bridge.post("/uw", {"n": 1}) == 200
    eventually(lambda: status(bridge)["loader"].get("records") == 1)
    with held_database(bridge):
        assert bridge.post("/uw", {"n": 2}) == 200
        eventually(lambda: status(bridge)["loader"]["lag_seconds"] > LIMIT + 1)
        systemd.forget()
        eventually(lambda: systemd.hears("WATCHDOG=1"))
        assert not systemd.hears("tried nothing")


def test_a_server_that_does_not_answer_itself_gives_no_sign_of_life():
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
    # Nobody listens there any more.
    watchdog = Watchdog(("127.0.0.1", port), lambda: {"loader": {"idle_seconds": 0.0}})
    assert "does not answer itself" in watchdog.problem()


def test_without_systemd_there_is_no_thread(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Watchdog(("127.0.0.1", 1), dict).start()
    assert "Watchdog" not in {thread.name for thread in threading.enumerate()}


def test_counts_that_cannot_be_had_yet_only_put_ready_off(tmp_path, systemd, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    looks = iter([OSError("no such folder"), {}])

    def stats():
        found = next(looks, {"loader": {"position": 0}})
        if isinstance(found, OSError):
            raise found
        return found

    with RunningBridge(tmp_path / "data") as bridge:
        watchdog = Watchdog(("127.0.0.1", bridge.port), stats)
        watchdog.start()
        eventually(lambda: systemd.hears("READY=1"))
        watchdog.stop()
