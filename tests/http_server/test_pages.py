"""What GET serves, asked over real sockets while real things go wrong."""

import contextlib
import datetime
import json
import os
import re
import resource
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers.support import RunningBridge, eventually, gex_payload, request, status_of
from tests.reliability.others import hold

PAGES = ("/health", "/ready", "/status", "/metrics")


@pytest.fixture(scope="module")
def bridge(tmp_path_factory):
    """One bridge for the tests that do it no harm."""
    with RunningBridge(tmp_path_factory.mktemp("pages") / "data", ALLOWED_HOSTS="bridge.lan, Desk") as running:
        yield running


def get(bridge, path: str, host: str | None = "127.0.0.1") -> tuple[int, str, bytes]:
    """Status, head and body of a GET."""
    line = "" if host is None else f"Host: {host}\r\n"
    head, _, body = bridge.send(f"GET {path} HTTP/1.1\r\n{line}\r\n".encode("latin-1")).partition(b"\r\n\r\n")
    return status_of(head), head.decode("latin-1"), body


def ready(bridge) -> tuple[int, str]:
    """The status of /ready and its reasons in one text."""
    status, _, body = get(bridge, "/ready")
    return status, " ".join(json.loads(body).get("reasons", []))


def becomes_ready(bridge) -> None:
    eventually(lambda: ready(bridge)[0] == 200, "the bridge is ready")


def status(bridge) -> dict:
    return json.loads(get(bridge, "/status")[2])


def writer_of(bridge) -> int:
    """Its process id, once it is there."""
    command = ["pgrep", "-P", str(bridge.process.pid), "-f", "data_pipeline.writer"]
    return int(eventually(lambda: subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.split())[0])


@contextlib.contextmanager
def held_database(bridge):
    """Another process has it open for writing."""
    holder = hold(bridge.database)
    try:
        yield holder
    finally:
        holder.communicate("\n")


@pytest.mark.parametrize("path", PAGES)
def test_the_answer_has_the_headers_of_any_answer_but_no_permission_for_other_sites(bridge, path):
    code, head, body = get(bridge, path)
    names = [line.partition(":")[0] for line in head.split("\r\n")[1:]]
    assert (code, names) == (200, ["Server", "Date", "Content-Type"])
    assert head.startswith("HTTP/1.0 200 OK\r\nServer: GEXBridge/1.0 Python/")
    assert "Content-Type: " + ("text/plain" if path == "/metrics" else "application/json") in head
    assert body


def test_health_says_ok(bridge):
    assert get(bridge, "/health")[2] == b'{"status": "ok"}'
    assert get(bridge, "/health//")[2] == b'{"status": "ok"}'


@pytest.mark.parametrize(
    "path",
    [
        "/gex",
        "/uw",
        "/gex_history_url",
        "/healthz",
        "/Health",
        "/health?x=1",
        "/status?",
        "/ready#x",
        "/metrics/x",
        "/./health",
        "/%68ealth",
    ],
)
def test_get_of_anything_else_is_still_an_unsupported_method(bridge, path):
    code, head, body = get(bridge, path)
    assert head.startswith("HTTP/1.0 501 Unsupported method ('GET')\r\n")
    assert b"Error code explanation: 501" in body


def test_a_post_of_a_web_page_that_is_not_listed_gets_403(tmp_path):
    origins = "https://www.gexbot.com, http://desk:8080"
    with RunningBridge(tmp_path / "data", ALLOWED_ORIGINS=origins) as bridge:

        def post(*headers: str) -> bytes:
            lines = "".join(f"Origin: {origin}\r\n" for origin in headers)
            return bridge.send(request("/uw", b'{"topic": "x"}', headers=lines))

        for taken in ([], ["https://www.gexbot.com"], ["HTTPS://WWW.GEXBot.com"], ["http://desk:8080"]):
            assert status_of(post(*taken)) == 200
        refused = [
            "https://gexbot.com",
            "http://www.gexbot.com",
            "https://www.gexbot.com:8443",
            "http://desk",
            "null",
            "",
        ]
        for origin in [*refused, "https://www.gexbot.com.evil.example", "*"]:
            assert post(origin).startswith(b"HTTP/1.0 403 Origin is not allowed\r\n")
        assert status_of(post("https://www.gexbot.com", "https://evil.example")) == 403
        assert status(bridge)["requests"]["/uw"] == {"200": 4, "403": 9}


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_other_methods_do_not_know_the_pages(bridge, method):
    assert status_of(bridge.send(request("/health", b"", method))) == 501


def test_post_and_options_do_not_know_the_pages(bridge):
    assert bridge.post("/health", {"a": 1}) == 404
    assert status_of(bridge.send(request("/health", b"", "OPTIONS"))) == 404


@pytest.mark.parametrize(
    "host",
    [
        None,
        "127.0.0.1",
        "127.0.0.1:8877",
        "192.168.1.20:80",
        "[::1]",
        "[::1]:8877",
        "localhost",
        "LOCALHOST:8877",
        "localhost.",
        "bridge.lan",
        "Bridge.LAN:8877",
        "desk:",
        " 10.0.0.1 ",
    ],
)
def test_whoever_asks_under_an_address_or_a_known_name_is_answered(bridge, host):
    assert get(bridge, "/status", host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8877",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "127.0.0.1@evil.example",
        "evil.example#127.0.0.1",
        "",
        "[::1",
        "[evil.example]",
        "[127.0.0.1]",
        "2130706433",
        "127.1",
        "0x7f000001",
        "127.0.0.1:80:80",
        "127.0.0.1:x",
        "xlocalhost",
        "127.0.0.1, evil.example",
    ],
)
@pytest.mark.parametrize("path", PAGES)
def test_whoever_asks_under_another_name_is_told_nothing(bridge, path, host):
    code, head, body = get(bridge, path, host)
    assert code == 421 and "ALLOWED_HOSTS" in head
    assert b"version" not in body and b"gexbridge" not in body


def test_one_good_host_beside_a_bad_one_is_not_enough(bridge):
    assert get(bridge, "/status", "127.0.0.1\r\nHost: evil.example")[0] == 421


def test_posts_are_open_to_any_host_as_they_always_were(bridge):
    raw = request("/uw", b'{"n": 1}').replace(b"Host: 127.0.0.1", b"Host: evil.example")
    assert status_of(bridge.send(raw)) == 200


def test_the_status_tells_what_came_and_where_it_is(tmp_path):
    with RunningBridge(tmp_path / "data") as bridge:
        assert bridge.post("/gex", gex_payload("spx")) == 202
        assert bridge.post("/gex", {"ticker": "ndx", "kind": "majors", "data": {}, "received_at": "x" * 256}) == 202
        assert bridge.post("/gex", {"ticker": "L" * 256, "kind": "majors", "data": {}}) == 202
        assert bridge.post("/gex", {}) == 400
        assert bridge.post("/gex_history_url", {"url": "https://x/y", "ticker": "SPX", "endpoint": "e"}) == 202
        eventually(lambda: status(bridge)["loader"].get("records") == 4 and status(bridge)["files"]["position"] == 4)
        found = eventually(lambda: (s := status(bridge))["history"] and s)
        assert bridge.stop() == 0
    assert found["ready"] is True and found["problems"] == []
    assert found["requests"]["/gex"] == {"202": 3, "400": 1} and found["requests"]["/gex_history_url"] == {"202": 1}
    assert found["journal"]["position"] == found["loader"]["position"] == 4
    assert found["journal"]["healthy"] is True and found["journal"]["bytes"] > 0
    for reader in ("loader", "files"):
        assert (found[reader]["lag_records"], found[reader]["lag_seconds"]) == (0, 0.0)
    assert {"lag_records", "lag_seconds"} <= found["depth"].keys()
    assert found["history"] == {"pending": 1} and set(found["importer"]) == {"completed", "failed", "current"}
    assert found["dashboard"]["offered"] == 1
    assert found["writer"] == {"running": True, "restarts": 0}
    assert found["ticker_count"] == 3 and set(found["tickers"]) == {"SPX", "NDX", "L" * 200}
    spx = found["tickers"]["SPX"]
    assert (spx["kind"], spx["endpoint"], spx["received_at"]) == ("snapshot", "gex_zero", "2025-11-09T15:00:00Z")
    assert 0 <= spx["age_seconds"] <= found["uptime_seconds"] and spx["age_since"] == "arrival"
    assert found["tickers"]["NDX"]["received_at"] == "x" * 200


def test_after_a_restart_an_age_is_that_of_the_payload_s_own_time_where_it_names_one(tmp_path):
    with RunningBridge(tmp_path / "data") as bridge:
        assert bridge.post("/gex", gex_payload("spx")) == 202
        assert bridge.post("/gex", {"ticker": "ndx", "kind": "majors", "data": {}, "received_at": "soon"}) == 202
        assert bridge.post("/gex", {"ticker": "qqq", "kind": "majors", "data": {}, "received_at": "2999-01-01"}) == 202
        assert bridge.stop() == 0
        bridge.start()
        found = status(bridge)["tickers"]
    sent = datetime.datetime.fromisoformat(found["SPX"]["received_at"]).timestamp()
    assert found["SPX"]["age_since"] == "received_at" and abs(time.time() - sent - found["SPX"]["age_seconds"]) < 60
    for ticker in ("NDX", "QQQ"):
        assert (found[ticker]["age_seconds"], found[ticker]["age_since"]) == (None, None)


def test_the_status_names_no_more_tickers_than_it_should_and_the_youngest(tmp_path):
    with RunningBridge(tmp_path / "data") as bridge:
        payloads = [{"ticker": f"T{number}", "kind": "majors", "data": {}} for number in range(1010)]
        with ThreadPoolExecutor(8) as clients:  # in order enough: the oldest ten are the first sixty's
            assert set(clients.map(lambda payload: bridge.post("/gex", payload), payloads)) == {202}
        found = status(bridge)
        metrics = get(bridge, "/metrics")[2].decode()
    assert found["ticker_count"] == 1010 and len(found["tickers"]) == 1000
    assert "T1009" in found["tickers"] and "T0" not in found["tickers"]
    assert "gexbridge_tickers 1010.0" in metrics and "T1009" not in metrics


def test_the_metrics_are_what_the_status_says(bridge):
    eventually(lambda: "position" in status(bridge)["loader"])
    text = get(bridge, "/metrics")[2].decode()
    found = {(s.name, *s.labels.values()): s.value for f in text_string_to_metric_families(text) for s in f.samples}
    assert found["gexbridge_requests_total", "/metrics", "200"] >= 1
    assert found["gexbridge_ready",] == found["gexbridge_journal_healthy",] == found["gexbridge_writer_running",] == 1
    assert found["gexbridge_disk_free_bytes",] > 1 << 20
    assert found["gexbridge_build_info", status(bridge)["version"]] == 1


def test_looking_after_the_server_is_logged_only_with_debug(bridge, tmp_path):
    get(bridge, "/health")
    get(bridge, "/nope")
    eventually(lambda: "GET /nope" in bridge.log)
    assert '"GET /health HTTP/1.1" 200' not in bridge.log
    with RunningBridge(tmp_path / "data", "--debug") as talking:
        get(talking, "/health")
        eventually(lambda: '127.0.0.1 - "GET /health HTTP/1.1" 200' in talking.log)


def test_a_server_is_not_ready_while_its_journal_cannot_be_written(tmp_path):
    with RunningBridge(tmp_path / "data") as bridge:
        assert bridge.post("/uw", {"n": 1}) == 200
        becomes_ready(bridge)
        resource.prlimit(bridge.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        assert bridge.post("/uw", {"n": 2}) == 500
        code, reasons = eventually(lambda: (found := ready(bridge))[0] == 503 and found)
        assert "journal cannot be written: File too large" in reasons
        assert get(bridge, "/health")[0] == 200
        resource.prlimit(bridge.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        becomes_ready(bridge)
        assert bridge.post("/uw", {"n": 3}) == 200
        assert not list((bridge.data_dir / "journal").glob(".probe*"))
        assert bridge.stop() == 0


def test_a_server_is_not_ready_when_the_disk_is_nearly_full(tmp_path):
    with RunningBridge(tmp_path / "data", MIN_FREE_BYTES=str(1 << 60)) as bridge:
        code, reasons = ready(bridge)
        assert code == 503 and re.search(r"the disk is nearly full: \d+ bytes are free", reasons)
        assert status(bridge)["ready"] is False


def test_a_server_is_not_ready_while_its_writer_is_down_and_is_again_after(tmp_path):
    with RunningBridge(tmp_path / "data") as bridge:
        assert bridge.post("/uw", {"n": 1}) == 200
        becomes_ready(bridge)
        os.kill(writer_of(bridge), signal.SIGKILL)
        eventually(lambda: ready(bridge)[0] == 503 and "is down" in ready(bridge)[1])
        becomes_ready(bridge)
        assert status(bridge)["writer"]["restarts"] == 1
        assert bridge.stop() == 0


def test_a_loader_that_hangs_or_is_far_behind_makes_the_server_not_ready(tmp_path):
    with RunningBridge(tmp_path / "data", MAX_LAG="0.6") as bridge:
        assert bridge.post("/uw", {"n": 1}) == 200
        readers = ("loader", "files", "depth")
        eventually(lambda: (s := status(bridge)) and all(s[reader].get("position") == 1 for reader in readers))
        writer = writer_of(bridge)
        os.kill(writer, signal.SIGSTOP)
        try:
            assert bridge.post("/uw", {"n": 2}) == 200
            code, reasons = eventually(lambda: (found := ready(bridge))[1].count("behind") == 3 and found)
            assert re.search(r"the loader is \d+ s behind", reasons)
            assert re.search(r"the files are \d+ s behind", reasons)
            assert re.search(r"the depth files are \d+ s behind", reasons)
            assert "gexbridge_depth_lag_records 1.0" in get(bridge, "/metrics")[2].decode()
            found = status(bridge)["loader"]
            assert found["lag_records"] == 1
            assert 0.6 < found["lag_seconds"] and abs(found["idle_seconds"] - found["lag_seconds"]) < 1
        finally:
            os.kill(writer, signal.SIGCONT)
        becomes_ready(bridge)
        assert bridge.stop() == 0


def test_a_database_that_another_process_has_for_a_while_is_no_reason_not_to_be_ready(tmp_path):
    with RunningBridge(tmp_path / "data", STOP_TIMEOUT="20") as bridge:
        assert bridge.post("/uw", {"n": 1}) == 200
        eventually(lambda: status(bridge)["loader"].get("records") == 1)
        with held_database(bridge):
            assert bridge.post("/uw", {"n": 2}) == 200
            found = eventually(lambda: (s := status(bridge))["loader"]["busy_retries"] >= 2 and s)
            assert found["ready"] and found["loader"]["lag_records"] == 1 and found["loader"]["trouble"]
            assert found["loader"]["idle_seconds"] < found["loader"]["lag_seconds"]
        eventually(lambda: status(bridge)["loader"]["lag_records"] == 0)
        assert bridge.stop() == 0
