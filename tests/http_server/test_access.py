"""Beyond this machine the page and the API are for who has the token."""

import http.client

import pytest

from data_pipeline.http_server.access import is_loopback
from tests.helpers.support import RunningBridge


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.5", False), ("example.org", False)],
)  # fmt: skip
def test_what_is_reached_from_this_machine_only(host, expected):
    assert is_loopback(host) is expected


def get(bridge: RunningBridge, path: str, **headers: str) -> tuple[int, str | None]:
    client = http.client.HTTPConnection("127.0.0.1", bridge.port, timeout=30)
    client.request("GET", path, headers=headers)
    answer = client.getresponse()
    answer.read()
    return answer.status, answer.headers.get("Set-Cookie")


def test_without_a_token_a_bridge_that_others_reach_shows_nothing_and_takes_posts_as_ever(tmp_path):
    with RunningBridge(tmp_path / "data", "--host", "0.0.0.0") as bridge:
        assert bridge.post("/gex", {"ticker": "A", "kind": "snapshot", "data": {}}) == 202
        for path in ("/", "/page/page.js", "/api/state", "/?token="):
            assert get(bridge, path)[0] == 403
        assert get(bridge, "/health")[0] == 200


def test_the_token_opens_by_address_once_then_by_cookie_and_by_header(tmp_path):
    with RunningBridge(tmp_path / "data", "--host", "0.0.0.0", "--debug", API_TOKEN="s3cret; x=1") as bridge:
        assert get(bridge, "/api/state")[0] == 403
        assert get(bridge, "/?token=wrong") == (403, None)
        status, cookie = get(bridge, "/?token=s3cret%3B+x%3D1")
        assert status == 200 and "HttpOnly" in cookie and "SameSite=Strict" in cookie
        assert get(bridge, "/api/state", Cookie=cookie.split("; HttpOnly")[0]) == (200, None)
        assert get(bridge, "/api/state", Authorization="Bearer s3cret; x=1")[0] == 200
        assert get(bridge, "/api/state", Cookie="gex_bridge_token=other; a=b")[0] == 403
        assert "s3cret" not in bridge.log
