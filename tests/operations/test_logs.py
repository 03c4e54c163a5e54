import contextlib
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.operations import logs
from tests.helpers.support import PATIENCE, ROOT, eventually, raw_exchange, request, status_of


@pytest.fixture(autouse=True)
def logging_as_before():
    root, webhook = logging.getLogger(), logging.getLogger("webhook")
    before = root.handlers[:], root.level, webhook.level
    yield
    root.handlers[:], root.level, webhook.level = before[0], before[1], before[2]


class Out(io.FileIO):
    """A file that the log goes to."""

    def getvalue(self) -> str:
        logs.flush()
        self.seek(0)
        return self.read().decode()


@pytest.fixture
def out(tmp_path):
    with Out(tmp_path / "log", "w+") as file:
        yield file
        logs.flush()


def log(message: str, *args, **kwargs) -> None:
    logging.getLogger("webhook").info(message, *args, **kwargs)


def test_a_line_has_the_contracts_format(out):
    logs.configure("INFO", False, out)
    log("Starting GEX bridge on %s:%s", "127.0.0.1", 8877)
    expected = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO Starting GEX bridge on 127\.0\.0\.1:8877\n"
    assert re.fullmatch(expected, out.getvalue())


def test_what_a_client_sent_cannot_make_a_line_of_its_own(out):
    logs.configure("INFO", False, out)
    log('1.2.3.4 - "POST /gex\r\n2025-01-01 00:00:00,000 ERROR forged \x1b[31m\x9b\u2028\u202e\ud800 é" 202 -')
    (line,) = out.getvalue().splitlines()
    assert line.endswith(r'"POST /gex\r\n2025-01-01 00:00:00,000 ERROR forged \x1b[31m\x9b\u2028\u202e\ud800 é" 202 -')


@given(st.text(st.characters(codec=None)))
def test_any_text_is_one_line_that_can_be_encoded(text):
    shown = logs.escaped(text)
    assert len(("x" + shown + "x").splitlines()) == 1
    shown.encode("utf-8")


def fail(text: str) -> None:
    raise ValueError(text)


def test_a_traceback_has_its_lines_and_none_that_looks_like_a_message(out):
    logs.configure("INFO", False, out)
    try:
        fail("one\n2025-01-01 00:00:00,000 INFO forged\x1b[0m")
    except ValueError:
        log("failed", exc_info=True)
    lines = out.getvalue().splitlines()
    assert lines[0].endswith("INFO failed") and lines[1] == "Traceback (most recent call last):"
    assert any("in fail" in line for line in lines)
    assert lines[-1] == r"  2025-01-01 00:00:00,000 INFO forged\x1b[0m"


def test_json_lines_are_one_object_each(out):
    logs.configure("INFO", True, out)
    try:
        fail("one\ntwo")
    except ValueError:
        log("failed for %r\n", "SPX", exc_info=True)
    log("next")
    first, second = map(json.loads, out.getvalue().splitlines())
    assert (first["level"], first["message"]) == ("INFO", "failed for 'SPX'\n")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", first["time"])
    assert first["exception"].endswith("ValueError: one\ntwo")
    assert set(second) == {"time", "level", "message"}


def test_debug_is_for_the_bridge_and_not_for_libraries(out):
    logs.configure("DEBUG", False, out)
    logging.getLogger("webhook").debug("payload")
    logging.getLogger("urllib3").debug("GET /?key=secret")
    assert "payload" in out.getvalue() and "secret" not in out.getvalue()
    logs.configure("INFO", False, out)
    logging.getLogger("webhook").debug("second")
    assert "second" not in out.getvalue()


def test_configuring_twice_logs_once(out):
    logs.configure("INFO", False, out)
    logs.configure("INFO", False, out)
    log("once")
    assert out.getvalue().count("once") == 1


def test_under_journald_each_line_has_its_priority():
    script = """
import logging, os, sys
status = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
from data_pipeline.operations import logs
logs.configure("DEBUG", False)
logger = logging.getLogger("webhook")
for level in ("debug", "info", "warning", "error", "critical"):
    getattr(logger, level)(level)
try:
    1 / 0
except ZeroDivisionError:
    logger.exception("divided")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ))
    lines = done.stderr.splitlines()
    assert lines[:6] == [
        "<7>DEBUG debug",
        "<6>INFO info",
        "<4>WARNING warning",
        "<3>ERROR error",
        "<2>CRITICAL critical",
        "<3>ERROR divided",
    ]
    assert len(lines) > 7 and all(line.startswith("<3>") for line in lines[5:])


def test_when_nobody_reads_lines_are_dropped_and_the_next_ones_say_how_many():
    read, write = os.pipe()
    with open(write, "wb", buffering=0) as nobody_reads:
        logs.configure("INFO", False, nobody_reads)
        # The thread may have taken a whole queue's lines out already, for the write that nobody reads.
        lines = 3 * logs.QUEUE_BYTES // 1000
        for _ in range(lines):
            log("x" * 1000)
        assert logs.dropped() > 0
        with open(read, "rb", buffering=0) as reader:
            seen = b""
            while seen.count(b"INFO x") + logs.dropped() < lines:  # the last ones come behind the count
                seen += reader.read(1 << 20)
        assert f"WARNING {logs.dropped()} lines of the log were dropped".encode() in seen
        logs.flush()


def test_a_message_that_does_not_fit_its_arguments_is_a_line(out):
    logs.configure("INFO", False, out)
    log("%d records", "many")
    assert "cannot be written: '%d records'" in out.getvalue()


@pytest.mark.parametrize("level", ["WARNING", "ERROR"])
def test_what_is_below_the_level_is_not_written(out, level):
    logs.configure(level, False, out)
    log("quiet")
    logging.getLogger("library").info("quiet")
    logging.getLogger("webhook").error("loud")
    assert "quiet" not in out.getvalue() and "loud" in out.getvalue()


def full_pipe() -> int:
    _, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 4096)
    os.set_blocking(write, True)
    return write


def pipe_without_a_reader() -> int:
    read, write = os.pipe()
    os.close(read)
    return write


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


@pytest.mark.parametrize("standard_error", [full_pipe, pipe_without_a_reader, full_disk, None])
def test_a_log_that_cannot_be_written_holds_up_no_request_and_no_stop(tmp_path, standard_error):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "run_server.py"), "--port", str(port), "--data-dir", str(tmp_path / "data")]
    fd = standard_error() if standard_error else None
    if fd is None:
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=fd, cwd="/")
    try:
        eventually(lambda: answers(port))
        for number in range(1200):
            assert status_of(raw_exchange(port, request("/uw", b'{"n": %d}' % number))) == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        if fd is not None:
            os.close(fd)


def answers(port: int) -> bool:
    try:
        return status_of(raw_exchange(port, b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")) == 200
    except OSError:
        return False
