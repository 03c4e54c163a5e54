"""The whole server from outside: start, limits, many clients at once, payloads that break things."""

import contextlib
import ctypes
import http.client
import json
import os
import pathlib
import resource
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import duckdb
import pytest

from data_pipeline import config
from data_pipeline.http_server import connection, handler, kept_threads, server
from data_pipeline.http_server.connection import Limits
from data_pipeline.http_server.pages import Pages
from tests.helpers.support import (
    PATIENCE,
    ROOT,
    RunningBridge,
    eventually,
    gex_payload,
    make_status_long,
    raw_exchange,
    read,
    request,
    slow_reader,
    status_of,
)
from tests.reliability.load import Load, check_everything_once
from tests.reliability.others import hold


def refused_start(tmp_path, *flags, **environment) -> tuple[int, str]:
    """Exit code and standard error of a bridge that cannot start."""
    known = {key: value for key, value in os.environ.items() if key != "DATA_DIR"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_server.py"), *flags],
        env={**known, "DATA_DIR": str(tmp_path / "data"), **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "flags, environment, named",
    [
        (["--port", "99999"], {}, "--port"),
        (["--port", "http"], {}, "--port"),
        (["--poll-interval", "0"], {}, "--poll-interval"),
        ([], {"LOAD_INTERVAL": "soon"}, "LOAD_INTERVAL"),
        ([], {"DASHBOARD_URL": "ftp://x"}, "DASHBOARD_URL"),
        ([], {"GEX_STATUS_SYMBOLS": "SPX"}, "GEXBOT_API_KEY"),
    ],
)
def test_a_wrong_setting_ends_the_start_with_one_line_and_code_2(tmp_path, flags, environment, named):
    code, error = refused_start(tmp_path, *flags, **environment)
    assert code == 2
    assert named in error and len(error.splitlines()) == 1
    assert not (tmp_path / "data").exists()


def test_an_unknown_flag_is_refused_with_code_2(tmp_path):
    code, error = refused_start(tmp_path, "--prot", "1")
    assert code == 2 and "--prot" in error


def test_a_port_in_use_is_one_line_and_code_1(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, error = refused_start(tmp_path, "--port", str(port))
    assert code == 1
    assert f"127.0.0.1:{port}" in error and len(error.splitlines()) == 1


def test_a_data_folder_that_cannot_be_made_is_one_line_and_code_1(tmp_path):
    (tmp_path / "data").write_text("in the way")
    code, error = refused_start(tmp_path, "--port", "0")
    assert code == 1
    assert str(tmp_path / "data") in error and len(error.splitlines()) == 1


def test_an_sqlite_file_in_the_databases_place_gets_a_hint_at_migration(tmp_path):
    path = tmp_path / "data" / "raw" / "gex" / "gex_history.duckdb"
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as con:
        con.execute("CREATE TABLE t (a)")
    con.close()
    before = path.read_bytes()
    code, error = refused_start(tmp_path, "--port", "0")
    assert code == 1
    assert "gex-bridge migrate" in error and len(error.splitlines()) == 1
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "data" / "raw" / "gex" / "gex_history.duckdb"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"something else entirely")
    code, error = refused_start(tmp_path, "--port", "0")
    assert code == 1 and "not a DuckDB database" in error
    assert path.read_bytes() == b"something else entirely"


def test_a_second_bridge_on_the_same_data_is_refused(tmp_path, bridge):
    code, error = refused_start(tmp_path, "--port", "0")
    assert code == 1 and "another bridge is running" in error


def test_a_second_signal_ends_it_at_once(tmp_path):
    with RunningBridge(tmp_path / "data", STOP_TIMEOUT="60") as bridge:
        assert bridge.post("/uw", {"n": 1}) == 200
        eventually(lambda: bridge.rows("SELECT count(*) FROM universal_webhooks")[0][0] == 1)
        holder = hold(bridge.database)
        assert bridge.post("/uw", {"n": 2}) == 200
        bridge.process.send_signal(signal.SIGTERM)
        eventually(lambda: "Stopping GEX bridge" in bridge.log)
        assert bridge.process.poll() is None
        assert bridge.stop(signal.SIGINT) == 128 + signal.SIGINT
        holder.communicate("\n")
    with bridge:
        pass
    assert read(bridge.database, "SELECT count(*) FROM universal_webhooks") == [(2,)]


def test_nothing_heavy_is_imported_before_it_listens():
    heavy = {"duckdb", "pyarrow", "polars", "requests", "prometheus_client", "tqdm", "numpy"}
    code = "import sys, data_pipeline.application; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert not heavy & set(done.stdout.split())


def test_at_rest_it_uses_next_to_no_processor_time(tmp_path):
    with RunningBridge(tmp_path / "data") as bridge:
        assert bridge.post("/gex", gex_payload()) == 202
        children = lambda: subprocess.run(
            ["pgrep", "-P", str(bridge.process.pid)], stdout=subprocess.PIPE, text=True
        ).stdout.split()
        eventually(lambda: bridge.rows("SELECT count(*) FROM gex_bridge_snapshots")[0][0] == 1)

        def ticks():
            total = 0
            for pid in [bridge.process.pid, *map(int, children())]:
                fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
            return total

        before, began = ticks(), time.monotonic()
        eventually(lambda: time.monotonic() - began > 3)
        used = (ticks() - before) / os.sysconf("SC_CLK_TCK")
        assert used / (time.monotonic() - began) < 0.05


def test_64_clients_of_all_endpoints_get_no_5xx_and_everything_is_there(tmp_path):
    with RunningBridge(tmp_path / "data", STOP_TIMEOUT="60") as bridge:
        load = Load(bridge, clients=64).start()
        eventually(lambda: load.count > 3000)
        load.stop()
        assert not load.refused
        assert bridge.stop() == 0
    check_everything_once(bridge, load.acknowledged)


POISON = [
    pytest.param({"spot": 2**70, "timestamp": 1}, id="an integer beyond 64 bits"),
    pytest.param({"timestamp": 2**70, "spot": 1}, id="a timestamp beyond 64 bits"),
    pytest.param({"timestamp": 10**400}, id="an integer beyond any float"),
    pytest.param({"timestamp": float("nan"), "spot": float("inf")}, id="NaN and infinity"),
    pytest.param({"timestamp": 5, "spot": {"a": 1}, "zero_gamma": [1], "strikes": {"a": 1}}, id="objects for numbers"),
    pytest.param(
        {"timestamp": 6, "note": "half \ud800 of a pair", "strikes": [["\udfff", 1], [1, "x"]]}, id="lone surrogates"
    ),
    pytest.param({"timestamp": 7, "note": "nul \u0000 inside"}, id="a NUL character"),
    pytest.param({"timestamp": True, "spot": False}, id="booleans for numbers"),
    pytest.param(
        {"timestamp": [], "strikes": [[[]], [None, None], [{}, {}], [1, 2, {}, {}], [1e308, -1e308]]},
        id="strikes of nonsense",
    ),
    pytest.param({"timestamp": 8, "max_priors": "x" * 100_000, "strikes": "y"}, id="text for lists"),
    pytest.param({"timestamp": "1e999", "spot": "1e999"}, id="numeric text beyond any float"),
    pytest.param({"timestamp": "9999-12-31T23:59:59+14:00"}, id="a date at the end of time"),
    pytest.param({"timestamp": -1e300}, id="a timestamp before time"),
]


@pytest.mark.parametrize("data", POISON)
def test_a_poisoned_payload_holds_nothing_up(tmp_path, data):
    with RunningBridge(tmp_path / "data") as bridge:
        for ticker in ("GOOD", "BAD\ud800", "BAD"):
            values = {"timestamp": 1762700000, "spot": 1} if ticker == "GOOD" else data
            for path, key in (("/gex", "data"), ("/uw", "payload")):
                payload = {"topic": "gex", "ticker": ticker, "kind": "snapshot", "received_at": "\udc00", key: values}
                assert bridge.post(path, payload) in (200, 202)
        assert bridge.post("/uw", {"topic": "option_trades_super_algo", "alert": data, "executions": [data]}) == 200
        assert bridge.post("/gex_history_url", {"url": "\ud800", "ticker": str(data), "endpoint": data}) == 202
        assert bridge.post("/gex", gex_payload("AFTER")) == 202
        assert bridge.stop() == 0
    assert "set aside" not in bridge.log and "Traceback" not in bridge.log
    assert "cannot be made" not in bridge.log and "not everything was flushed" not in bridge.log
    assert read(bridge.database, "SELECT count(*) FROM universal_webhooks") == [(4,)]
    assert read(bridge.database, "SELECT count(*) FROM option_trades_events") == [(1,)]
    assert read(bridge.database, "SELECT count(*) FROM gex_history_queue") == [(1,)]
    assert read(bridge.database, "SELECT count(*) FROM gex_bridge_strikes WHERE ticker = 'AFTER'") == [(3,)]
    latest = json.loads((bridge.data_dir / "raw/gex/latest.json").read_text())
    assert set(latest) == {"GOOD", "BAD", "BAD\ud800", "AFTER"}
    depth = [line for file in (bridge.data_dir / "depth").rglob("*.jsonl") for line in file.read_text().splitlines()]
    assert len(depth) == 4 and all(json.loads(line) for line in depth)


@pytest.mark.parametrize("path", ["/gex", "/uw", "/gex_history_url"])
def test_json_nested_deeper_than_sixty_four_is_refused_on_every_path(bridge, path):
    def nested(depth):
        inner = b"[" * (depth - 2) + b"]" * (depth - 2)
        envelope = (
            b'{"url": "u", "topic": "gex", "ticker": "SPX", "kind": "snapshot", "data": {"x": %s}, "payload": {}}'
        )
        return (
            envelope if path != "/uw" else envelope.replace(b"payload", b"other").replace(b"data", b"payload")
        ) % inner

    assert bridge.post(path, nested(64)) in (200, 202)
    for depth in (65, 500, 5_000, 200_000):
        answer = bridge.send(request(path, nested(depth)))
        assert answer.startswith(b"HTTP/1.0 400 JSON payload is nested too deeply\r\n"), depth


def test_a_body_over_the_limit_is_413_and_one_at_the_limit_is_taken(tmp_path):
    with RunningBridge(tmp_path / "data", MAX_BODY_BYTES="1000") as bridge:
        body = json.dumps({"a": "x" * 991}).encode()
        assert len(body) == 1000
        assert bridge.post("/uw", body) == 200
        assert bridge.post("/uw", body + b" ") == 413


def test_a_large_body_in_many_pieces_is_whole(bridge):
    payload = gex_payload(strikes=20_000)
    body = json.dumps(payload).encode()
    assert len(body) > 1 << 19
    with socket.create_connection(("127.0.0.1", bridge.port)) as sock:
        raw = request("/gex", body)
        for start in range(0, len(raw), 100_000):
            sock.sendall(raw[start : start + 100_000])
        assert status_of(sock.recv(1000)) == 202
    assert bridge.stop() == 0
    assert read(bridge.database, "SELECT count(*) FROM gex_bridge_strikes") == [(20_000,)]


def test_slow_clients_are_cut_off_at_their_deadline_and_hold_nobody_up(tmp_path):
    with RunningBridge(tmp_path / "data", HEAD_TIMEOUT="0.5", BODY_TIMEOUT="0.5", HTTP_WORKERS="2") as bridge:
        slow = []
        for part in (b"", b"POST /gex HT", b"POST /gex HTTP/1.1\r\nContent-Length: 10\r\n\r\n{"):
            for _ in range(10):
                sock = socket.create_connection(("127.0.0.1", bridge.port), timeout=10)
                sock.sendall(part)
                slow.append((part, sock))
        assert bridge.post("/gex", gex_payload()) == 202
        for part, sock in slow:
            answer = b"".join(iter(lambda: sock.recv(4096), b""))
            sock.close()
            assert status_of(answer) == (408 if part else 0)


def test_who_drips_without_a_pause_holds_no_worker_either(tmp_path, monkeypatch):
    # A test cannot drip so evenly that no pause is longer than the usual hundredth of a second.
    monkeypatch.setattr(server, "PROMPT", 0.5)
    pages = Pages(config.load(root=tmp_path, environ={}), None, None, dict)
    listening = server.BridgeServer(("127.0.0.1", 0), None, pages, 2, 100, Limits(head_time=60.0))
    clients = [socket.create_connection(("127.0.0.1", listening.port)) for _ in range(4)]
    ended = threading.Event()

    def drip():
        for client in clients:
            client.sendall(b"GET /health HTTP/1.1\r\nX: ")
        while not ended.wait(0.02):
            for client in clients:
                client.sendall(b"x")

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        listening.start()
        answer = raw_exchange(listening.port, b"GET /health HTTP/1.1\r\n\r\n", timeout=20 * server.PROMPT)
        assert status_of(answer) == 200
    finally:
        ended.set()
        dripping.join()
        listening.stop(PATIENCE)
        for client in clients:
            client.close()


@contextlib.contextmanager
def served(tmp_path, workers: int = 2, patience: float = PATIENCE, **more):
    """A server of this process, without what is behind it."""
    pages = Pages(config.load(root=tmp_path, environ={}), None, None, dict)
    listening = server.BridgeServer(("127.0.0.1", 0), None, pages, workers, 100, Limits(**more))
    listening.start()
    try:
        yield listening
    finally:
        listening.stop(patience)


def test_big_bodies_are_parsed_one_at_a_time_and_small_ones_do_not_wait_for_them(tmp_path):
    big = request("/uw", b"[" + b"1," * handler.BIG_BODY)
    small = request("/uw", b"[1,")
    with served(tmp_path, workers=4) as listening, ThreadPoolExecutor(2) as clients:
        with handler._one_big_body:  # as while another is parsed
            waiting = [clients.submit(raw_exchange, listening.port, big) for _ in range(2)]
            eventually(lambda: listening._busy == 2)
            assert b" 400 Invalid JSON payload\r\n" in raw_exchange(listening.port, small)
            assert not any(each.done() for each in waiting)
        for each in waiting:
            assert b" 400 Invalid JSON payload\r\n" in each.result()


# What the thread had in its hands as it ended is lost, a socket say.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["Worker-1", "SlowWorker-1", "WaitingRoom"])
def test_a_thread_that_ends_is_named_missed_and_started_again(tmp_path, caplog, monkeypatch, name):
    monkeypatch.setattr(kept_threads, "LOOK_EVERY", 0.3)
    with served(tmp_path, workers=1, patience=0.1) as listening:
        thread = listening._threads._threads[name]
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))

        def missed():
            """Nothing ends in a system call: a request wakes the thread."""
            with socket.create_connection(("127.0.0.1", listening.port)) as client:
                client.sendall(b"GET /health HTTP/1.1\r\n")
                if name != "Worker-1":
                    time.sleep(2 * server.PROMPT)  # until it waits in the waiting room
                client.sendall(b"\r\n")
                return listening.stats()["missing_threads"] or listening.stats()["restarted_threads"]

        eventually(missed)
        eventually(lambda: listening.stats() == {"missing_threads": [], "restarted_threads": 1})
        assert f"the thread {name} failed" in caplog.text
        assert f"the thread {name} had ended and is started again" in caplog.text
        assert status_of(raw_exchange(listening.port, b"GET /health HTTP/1.1\r\n\r\n")) == 200


def test_whole_requests_that_wait_for_a_slow_worker_at_a_stop_are_cut_off(tmp_path, caplog):
    with handler._one_big_body, served(tmp_path, workers=1, patience=0.1) as listening:
        body = b"[" + b"1," * handler.BIG_BODY
        clients = [socket.create_connection(("127.0.0.1", listening.port)) for _ in range(server.SLOW_WORKERS + 3)]
        for client in clients:
            client.sendall(request("/uw", body)[:-1])
        eventually(lambda: len(listening._waiting_room) == len(clients))
        for client in clients:
            client.sendall(b",")
        eventually(lambda: listening._busy == len(clients))
    for client in clients:
        client.close()
    assert f"{server.SLOW_WORKERS + 3} requests were cut off" in caplog.text


def test_without_descriptors_fewer_connections_are_held_and_one_line_says_why(tmp_path):
    limited = ("prlimit", "--nofile=400:400")
    bridge = RunningBridge(tmp_path / "data", MAX_CONNECTIONS="1000")
    bridge.wrapper = limited
    with bridge:
        idle = [socket.create_connection(("127.0.0.1", bridge.port)) for _ in range(180)]
        assert bridge.post("/uw", {"n": 1}) == 200
        for client in idle:
            client.close()
    room = 400 - 32 - server.SLOW_WORKERS - 100 - server.OTHER_FILES
    assert bridge.log.count("MAX_CONNECTIONS is") == 1
    assert f"MAX_CONNECTIONS is {room} instead of 1000: there are only 400 descriptors" in bridge.log
    assert "cannot accept" not in bridge.log


def test_that_nothing_can_be_accepted_is_said_once_a_minute(tmp_path):
    with RunningBridge(tmp_path / "data") as bridge:
        assert bridge.post("/uw", {"n": 1}) == 200
        before = resource.prlimit(bridge.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(bridge.process.pid, resource.RLIMIT_NOFILE, (3, before[1]))
        with socket.create_connection(("127.0.0.1", bridge.port)) as client:
            eventually(lambda: "cannot accept: [Errno 24]" in bridge.log)
            time.sleep(0.5)  # every worker has tried several times
            resource.prlimit(bridge.process.pid, resource.RLIMIT_NOFILE, before)
            client.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            client.settimeout(PATIENCE)
            assert status_of(client.recv(4096)) == 200
    assert bridge.log.count("cannot accept") == 1


@pytest.mark.parametrize("late", [False, True], ids=["prompt requests", "late requests"])
def test_who_does_not_read_its_answer_holds_nobody_up(tmp_path, late):
    head, end = b"GET /status HTTP/1.1\r\n", b"\r\n"
    with RunningBridge(tmp_path / "data", HTTP_WORKERS="2") as bridge:
        make_status_long(bridge)
        slow = [slow_reader(bridge.port) for _ in range(2 * (2 + server.SLOW_WORKERS))]
        for client in slow:
            client.sendall(head if late else head + end)
        if late:
            assert not select.select(slow, [], [], 10 * server.PROMPT)[0]
            for client in slow:
                client.sendall(end)
        assert select.select(slow, [], [], PATIENCE)[0]
        began = time.monotonic()
        assert status_of(bridge.send(b"GET /health HTTP/1.1\r\n\r\n")) == 200
        with socket.create_connection(("127.0.0.1", bridge.port), timeout=PATIENCE) as client:
            client.sendall(b"GET /health HTTP/1.1\r\n")
            assert not select.select([client], [], [], 10 * server.PROMPT)[0]
            client.sendall(b"\r\n")
            assert status_of(client.recv(1000)) == 200
        assert time.monotonic() - began < connection.SEND_TIME / 2
        for client in slow:
            answer = b"".join(iter(lambda: client.recv(1 << 20), b""))
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["ticker_count"] == 60
            client.close()
        assert bridge.stop() == 0
    assert "were cut off" not in bridge.log


def test_an_answer_on_its_way_at_a_stop_arrives_whole(bridge):
    make_status_long(bridge)
    with slow_reader(bridge.port) as client:
        client.sendall(b"GET /status HTTP/1.1\r\n\r\n")
        answer = client.recv(10)
        bridge.process.send_signal(signal.SIGTERM)
        eventually(lambda: "Stopping GEX bridge" in bridge.log)
        answer += b"".join(iter(lambda: client.recv(1 << 20), b""))
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["ticker_count"] == 60
    assert bridge.process.wait(PATIENCE) == 0 and "were cut off" not in bridge.log


def test_one_connection_too_many_costs_one_and_not_all(tmp_path):
    most = 20
    with RunningBridge(tmp_path / "data", MAX_CONNECTIONS=str(most)) as bridge:
        clients = [socket.create_connection(("127.0.0.1", bridge.port), timeout=PATIENCE) for _ in range(most + 1)]
        for client in clients:
            client.sendall(request("/uw", b"{}")[:-1])
        refused = select.select(clients, [], [], PATIENCE)[0]
        assert [status_of(client.recv(1000)) for client in refused] == [503]
        with pytest.raises(OSError):  # it is drained for a while, and then closed
            while True:
                refused[0].sendall(b" ")
                time.sleep(0.01)
        others = [client for client in clients if client not in refused]
        for client in others:
            client.sendall(b"}")
        assert [status_of(client.recv(1000)) for client in others] == [200] * most
        for client in clients:
            client.close()


def test_the_answer_reaches_a_client_that_sends_more_than_it_should(bridge):
    for path, body in (("/nope", b"x" * 3_000_000), ("/gex", b"{}")):
        raw = request(path, body) + b"y" * 500_000
        assert status_of(raw_exchange(bridge.port, raw)) in (400, 404)


def test_the_standard_librarys_own_client_is_served(bridge):
    client = http.client.HTTPConnection("127.0.0.1", bridge.port, timeout=10)
    for number in range(3):
        client.request("POST", "/uw", json.dumps({"n": number}), {"Content-Type": "application/json"})
        answer = client.getresponse()
        assert (answer.status, answer.version) == (200, 10)
        assert json.load(answer) == {"status": "received", "message": "Universal webhook processed"}
    client.close()


def test_each_request_is_logged_as_the_original_did(bridge):
    bridge.post("/gex", gex_payload())
    bridge.send(b"GET /\x1b[31m\r\nX: y\r\n\r\n")
    eventually(lambda: '127.0.0.1 - "POST /gex HTTP/1.1" 202 -' in bridge.log)
    assert "\x1b" not in bridge.log


def _raise_last_link(database, number) -> bool:
    """As a migration does, while the server runs."""
    try:
        with duckdb.connect(str(database)) as con:
            con.execute("UPDATE bridge_ids SET last_id = ? WHERE table_name = 'gex_history_queue'", [number])
    except duckdb.IOException:
        return False
    return True


def test_numbers_of_links_go_on_after_a_restart_a_lost_journal_and_a_migration(tmp_path):
    link = {"url": "https://x/y", "ticker": "SPX", "endpoint": "e"}

    def queued(bridge):
        return json.loads(
            bridge.send(request("/gex_history_url", json.dumps(link).encode())).partition(b"\r\n\r\n")[2]
        )["id"]

    bridge = RunningBridge(tmp_path / "data")
    with bridge:
        assert [queued(bridge), queued(bridge)] == [1, 2]
    with bridge:
        assert queued(bridge) == 3
    with bridge:  # begins a segment, so that the one with the links goes
        assert bridge.post("/uw", {}) == 200
    assert len(list((bridge.data_dir / "journal").glob("*.journal"))) == 1
    with bridge:
        assert queued(bridge) == 4
    for path in (bridge.data_dir / "journal").iterdir():
        path.unlink()
    with bridge:
        assert queued(bridge) == 5
        eventually(lambda: bridge.rows("SELECT count(*) FROM gex_history_queue") == [(5,)])
        eventually(lambda: _raise_last_link(bridge.database, 70))
        assert bridge.post("/uw", {}) == 200
        eventually(lambda: bridge.rows("SELECT count(*) FROM universal_webhooks") == [(2,)])
        eventually(lambda: queued(bridge) > 70)


def test_the_deepest_payload_that_is_taken_comes_back_after_a_restart(tmp_path):
    def nested(depth):
        return b'{"ticker":"SPX","kind":"snapshot","data":{"timestamp":1,"x":' + b"[" * depth + b"]" * depth + b"}}"

    with RunningBridge(tmp_path / "data") as bridge:
        depth = next(d for d in range(64, 0, -1) if bridge.post("/gex", nested(d)) == 202)
        assert bridge.stop() == 0
    with bridge:
        assert bridge.post("/gex", {"ticker": "SPX", "kind": "majors", "data": {"spot": 2}}) == 202
        assert bridge.stop() == 0
    latest = (bridge.data_dir / "raw/gex/latest.json").read_text()
    assert latest.count("[") >= depth and '"spot": 2' in latest
    assert not (bridge.data_dir / "raw/gex/latest.json.damaged").exists()


@pytest.mark.parametrize("note", ["files.position", "depth.position"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"position": 1}', b"\xff"])
def test_a_note_that_is_not_readable_stops_nothing(tmp_path, note, content):
    with RunningBridge(tmp_path / "data") as bridge:
        assert bridge.post("/gex", gex_payload()) == 202
        assert bridge.stop() == 0
    (bridge.data_dir / "journal" / note).write_bytes(content)
    with bridge:
        assert bridge.post("/gex", gex_payload(timestamp=1762700001)) == 202
        assert bridge.stop() == 0
    assert f"{note}.damaged" in bridge.log
    lines = (bridge.data_dir / "depth/SPX/2025-11-09.jsonl").read_text().splitlines()
    assert {json.loads(line)["timestamp"] for line in lines} == {1762700000, 1762700001}
