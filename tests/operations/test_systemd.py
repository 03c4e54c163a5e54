import os
import socket
import subprocess
import sys

import pytest

from data_pipeline.operations import systemd


@pytest.fixture(params=["path", "abstract"])
def listener(request, tmp_path, monkeypatch):
    address = str(tmp_path / "notify") if request.param == "path" else f"\0gex-bridge-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        listening.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address.replace("\0", "@"))
        yield listening


def test_a_state_reaches_the_socket_that_systemd_named(listener):
    assert systemd.notify("READY=1\nSTATUS=listening on 127.0.0.1:8877")
    assert listener.recv(1000) == b"READY=1\nSTATUS=listening on 127.0.0.1:8877"


@pytest.mark.parametrize("address", [None, "", "relative", "/nowhere/notify", "@gex-bridge-nobody-listens"])
def test_where_nobody_listens_nothing_is_sent_and_nothing_raised(monkeypatch, address):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert systemd.notify("READY=1") is False


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [
        ("60000000", None, 60.0),
        ("1500000", "ours", 1.5),
        ("60000000", "1", None),
        (None, None, None),
        ("0", None, None),
        ("soon", None, None),
        ("-5", None, None),
    ],
)
def test_the_watchdog_is_for_the_process_that_systemd_named(monkeypatch, usec, pid, expected):
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value.replace("ours", str(os.getpid())))
    assert systemd.watchdog_interval() == expected


def test_only_the_very_stream_that_systemd_named_is_under_journald(tmp_path, monkeypatch):
    with open(tmp_path / "one", "w") as one, open(tmp_path / "two", "w") as two:
        status = os.fstat(one.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert systemd.under_journald(one) and not systemd.under_journald(two)
        monkeypatch.setenv("JOURNAL_STREAM", "nonsense")
        assert not systemd.under_journald(one)
        monkeypatch.delenv("JOURNAL_STREAM")
        assert not systemd.under_journald(one)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    assert not systemd.under_journald(one) and not systemd.under_journald(None)


def test_importing_it_brings_nothing_heavy():
    heavy = ("duckdb", "pyarrow", "prometheus_client", "requests")
    script = f"""
import sys, data_pipeline.operations.systemd, data_pipeline.operations.logs, data_pipeline.http_server.metrics
print([m for m in {heavy} if m in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "[]\n"
