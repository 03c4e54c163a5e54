"""The doctor beside real bridges, real services and real trouble."""

import email.utils
import json
import os
import re
import socket
import sqlite3
import threading
import time

import pytest

from tests.helpers.support import RunningBridge, eventually, free_port, gex_bridge
from tests.helpers.web import Answer, Service
from tests.http_server.test_pages import held_database

SECRETS = {"GEXBOT_API_KEY": "key-that-nobody-may-see", "DISCORD_BOT_TOKEN": "token-that-nobody-may-see"}


def doctor(data, *flags, port=None, **environment) -> tuple[int, dict[str, list[dict]], str]:
    """Exit code, lines by what they are about, and standard error."""
    known = {"DASHBOARD_URL": "http://127.0.0.1:9", **environment}
    code, out, error = gex_bridge(
        "doctor", "--json", "--data-dir", data, "--port", port or free_port(), *flags, **known
    )
    assert "Traceback" not in error
    lines: dict[str, list[dict]] = {}
    for line in json.loads(out)["lines"]:
        lines.setdefault(line["about"], []).append(line)
    assert json.loads(out)["well"] == (code == 0)
    return code, lines, error


def failed(lines: dict) -> set[str]:
    return {about for about, each in lines.items() if any(line["state"] == "FAIL" for line in each)}


def test_on_a_new_machine_nothing_fails_and_what_is_missing_is_noted(tmp_path):
    code, lines, error = doctor(tmp_path / "data")
    assert (code, error, failed(lines)) == (0, "", set())
    assert {about for about, each in lines.items() if each[0]["state"] == "note"} == {"key", "Discord", "dashboard"}
    assert all(line["todo"] for each in lines.values() for line in each if line["state"] != "ok")
    assert not (tmp_path / "data").exists()


def test_each_line_of_the_text_says_what_to_do(tmp_path):
    code, out, error = gex_bridge("doctor", "--data-dir", tmp_path, "--port", free_port(), MIN_FREE_BYTES=str(1 << 60))
    assert code == 1 and "1 of " in error
    lines = out.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("FAIL  disk "))
    assert lines[at + 1].strip().startswith("-> make room")


def test_beside_a_running_bridge_port_and_folder_are_known_as_its_own(bridge):
    assert bridge.post("/uw", {"n": 1}) == 200
    code, lines, _ = doctor(bridge.data_dir, port=bridge.port)
    assert code == 0
    assert "a bridge answers" in lines["port"][0]["found"] and "where a bridge runs" in lines["data"][0]["found"]


def test_a_bridge_that_listens_on_a_name_is_asked_by_its_address(tmp_path):
    name = socket.gethostname()
    with RunningBridge(tmp_path / "data", "--host", name) as bridge:
        code, lines, _ = doctor(bridge.data_dir, "--host", name, port=bridge.port)
        assert code == 0 and "a bridge answers" in lines["port"][0]["found"]
        code, out, _ = gex_bridge("status", "--host", name, "--port", bridge.port)
        assert code == 0 and ": ready" in out


@pytest.mark.parametrize("status, said", [(404, "an older bridge answers"), (421, "HTTP 421")])
def test_a_bridge_that_does_not_say_how_it_is_fails_with_what_it_said(tmp_path, status, said):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answer = f"HTTP/1.0 {status} No\r\nServer: GEXBridge/1.0\r\n\r\n".encode()
        server = threading.Thread(target=_answer_once, args=(listener, answer))
        server.start()
        code, lines, _ = doctor(tmp_path, port=listener.getsockname()[1])
        server.join()
    assert code == 1 and said in lines["port"][0]["found"]


def test_a_port_that_somebody_else_has_fails(tmp_path):
    with Service(lambda request: Answer(b"hello")) as service:
        code, lines, _ = doctor(tmp_path, port=int(service.url.rpartition(":")[2]))
    assert (
        code == 1 and "another program answers" in lines["port"][0]["found"] and "ss -ltnp" in lines["port"][0]["todo"]
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code, lines, _ = doctor(tmp_path, port=silent.getsockname()[1])
    assert code == 1 and failed(lines) == {"port"}
    code, lines, _ = doctor(tmp_path, "--host", "192.0.2.1")
    assert code == 1 and failed(lines) == {"port"}


def test_who_holds_the_database_is_named(tmp_path):
    with RunningBridge(tmp_path / "data") as bridge:
        assert bridge.post("/uw", {"n": 1}) == 200
        eventually(lambda: bridge.rows("SELECT count(*) FROM universal_webhooks")[0][0] == 1)
        with held_database(bridge) as holder:
            code, lines, _ = doctor(bridge.data_dir, port=bridge.port)
        assert code == 0
        (line,) = lines["database"]
        assert (
            line["state"] == "note"
            and f"process {holder.pid} has it open" in line["found"]
            and "close it" in line["todo"]
        )


@pytest.mark.parametrize("content, said", [("sqlite", "gex-bridge migrate"), ("text", "not a DuckDB database")])
def test_a_file_in_the_databases_place_that_is_none_fails(tmp_path, content, said):
    path = tmp_path / "raw" / "gex" / "gex_history.duckdb"
    path.parent.mkdir(parents=True)
    if content == "sqlite":
        con = sqlite3.connect(path)
        con.execute("CREATE TABLE t (a)")
        con.close()
    else:
        path.write_text("something else entirely")
    code, lines, _ = doctor(tmp_path)
    assert code == 1 and said in lines["database"][0]["found"]


def test_a_data_folder_that_is_a_file_fails(tmp_path):
    (tmp_path / "data").write_text("in the way")
    code, lines, _ = doctor(tmp_path / "data")
    assert code == 1 and failed(lines) == {"data"}


def test_a_download_command_that_is_not_safe_fails(tmp_path):
    code, lines, _ = doctor(tmp_path, HISTORY_DOWNLOAD_COMMAND="sh -c 'fetch {url}'")
    assert code == 1 and failed(lines) == {"download"}


def services(status: int = 200, **headers):
    return Service(lambda request: Answer({"id": "1"}, status=status, headers=headers))


def test_services_that_take_key_and_token_are_well_and_no_secret_is_shown(tmp_path):
    with services() as api, services() as chat, services() as dashboard:
        environment = {
            **SECRETS,
            "GEXBOT_API_URL": api.url,
            "DISCORD_API_URL": chat.url.replace("//", "//user:pass-word@"),
            "DISCORD_CHANNEL_ID": "12/34",
            "DASHBOARD_URL": dashboard.url.replace("//", "//user:pass-word@"),
        }
        code, lines, error = doctor(tmp_path, **environment)
        _, text, _ = gex_bridge("doctor", "--data-dir", tmp_path, "--port", free_port(), **environment)
        asked = [request.path for request in chat.requests]
    assert code == 0 and failed(lines) == set(), lines
    assert lines["GEXBot"][0]["state"] == lines["dashboard"][0]["state"] == "ok" and len(lines["Discord"]) == 2
    assert asked[:2] == ["/users/@me", "/channels/12%2F34"]
    for secret in (*SECRETS.values(), "pass-word"):
        assert secret not in text + json.dumps(lines) + error


@pytest.mark.parametrize("status, state", [(401, "FAIL"), (403, "FAIL"), (404, "FAIL"), (429, "note"), (500, "FAIL")])
def test_what_a_service_answers_is_judged(tmp_path, status, state):
    with services(status) as service:
        code, lines, _ = doctor(
            tmp_path,
            **SECRETS,
            GEXBOT_API_URL=service.url,
            DISCORD_API_URL=service.url,
            ALT_CHANNEL_OPTION_TRADES="1",
        )
    assert {line["state"] for about in ("GEXBot", "Discord") for line in lines[about]} == {state}
    assert code == (state == "FAIL")
    if status == 401:
        assert (
            "refuses GEXBOT_API_KEY" in lines["GEXBot"][0]["found"]
            and "DISCORD_BOT_TOKEN" in lines["Discord"][0]["todo"]
        )


def test_services_that_are_not_there_fail_and_no_secret_is_shown(tmp_path):
    code, out, error = gex_bridge(
        "doctor",
        "--data-dir",
        tmp_path,
        "--port",
        free_port(),
        **SECRETS,
        GEXBOT_API_URL="http://127.0.0.1:9",
        DISCORD_API_URL="http://127.0.0.1:9",
    )
    assert code == 1 and "FAIL  GEXBot" in out and "FAIL  Discord" in out and "Connection refused" in out
    assert not any(secret in out + error for secret in SECRETS.values())


def test_a_token_without_a_channel_fails(tmp_path):
    with services() as service:
        code, lines, _ = doctor(tmp_path, DISCORD_BOT_TOKEN="t", DISCORD_API_URL=service.url)
    assert code == 1 and "no channel is set" in lines["Discord"][-1]["found"]


def _answer_once(listener, answer: bytes) -> None:
    sock, _ = listener.accept()
    with sock:
        sock.recv(65536)
        sock.sendall(answer)


def test_a_clock_that_differs_from_a_services_or_goes_backwards_fails(tmp_path):
    # By hand, as a Service puts a right Date of its own into every answer.
    date = email.utils.formatdate(time.time() - 3600, usegmt=True)
    answer = f"HTTP/1.0 200 OK\r\nDate: {date}\r\n\r\n{{}}".encode()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        service = threading.Thread(target=_answer_once, args=(listener, answer))
        service.start()
        code, lines, _ = doctor(tmp_path, GEXBOT_API_KEY="k", GEXBOT_API_URL=url)
        service.join()
    assert code == 1 and failed(lines) == {"clock"} and re.search(r"360\d s after", lines["clock"][0]["found"])
    latest = tmp_path / "raw" / "gex" / "latest.json"
    latest.parent.mkdir(parents=True)
    latest.write_text("{}")
    os.utime(latest, (time.time() + 7200,) * 2)
    code, lines, _ = doctor(tmp_path)
    assert failed(lines) == {"clock"} and "before the time of latest.json" in lines["clock"][0]["found"]
