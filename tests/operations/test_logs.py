import io
import json
import logging
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.operations import logs


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
