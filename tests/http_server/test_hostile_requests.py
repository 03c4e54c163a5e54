"""Requests that no honest client sends: an answer or a clean close in time, and a server that goes on."""

import pytest

from tests.helpers.hostile_requests import CLOSED, REQUESTS
from tests.helpers.support import RunningBridge, exchange, gex_payload


@pytest.fixture(scope="module")
def hardened(tmp_path_factory):
    with RunningBridge(tmp_path_factory.mktemp("hostile") / "data", HEAD_TIMEOUT="0.7", BODY_TIMEOUT="0.7") as bridge:
        yield bridge
        assert bridge.post("/gex", gex_payload()) == 202
        assert bridge.stop() == 0
        assert "Traceback" not in bridge.log
        unprintable = [c for c in bridge.log if ord(c) < 32 and c != "\n" or 127 <= ord(c) < 160]
        assert not unprintable, "client bytes reached the log"


@pytest.mark.parametrize("raw, half_close, expected", [r[1:] for r in REQUESTS], ids=[r[0] for r in REQUESTS])
def test_it_is_answered_or_closed_cleanly(hardened, raw, half_close, expected):
    answer, reset = exchange(hardened.port, raw, half_close, timeout=5)
    if not answer:
        assert CLOSED in expected and not reset
        return
    assert answer.startswith(b"HTTP/1.0 ")
    assert int(answer[9:12]) in expected
    head = answer.partition(b"\r\n\r\n")[0]
    assert all(32 <= byte < 127 or byte >= 160 or byte in b"\r\n" for byte in head)
    assert [line.split(b":")[0] for line in head.split(b"\r\n")[1:3]] == [b"Server", b"Date"]
