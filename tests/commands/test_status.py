import json

from tests.helpers.support import RunningBridge, eventually, free_port, gex_bridge, gex_payload
from tests.helpers.web import Answer, Service


def fed(bridge) -> None:
    assert bridge.post("/gex", gex_payload("SPX")) == 202
    assert bridge.post("/gex", gex_payload("ND\u202eX\x1b[31m", kind="majors")) == 202
    eventually(lambda: bridge.rows("SELECT count(*) FROM gex_bridge_snapshots")[0][0] == 2)


def test_a_running_server_is_asked(bridge):
    fed(bridge)
    code, out, error = gex_bridge("status", "--port", bridge.port, "--data-dir", bridge.data_dir)
    assert (code, error) == (0, "")
    lines = out.splitlines()
    assert f"at http://127.0.0.1:{bridge.port}, up " in lines[0] and lines[0].endswith(": ready")
    assert any(line.startswith("requests  /gex 202: 2") for line in lines)
    assert any(line.startswith("ticker    SPX ") and "gex_zero" in line for line in lines)
    assert "\x1b" not in out and "\u202e" not in out


def test_as_json_it_is_what_the_server_said(bridge):
    fed(bridge)
    code, out, error = gex_bridge("status", "--json", "--url", f"http://127.0.0.1:{bridge.port}")
    found = json.loads(out)
    assert (code, error) == (0, "")
    assert found["ready"] is True and found["requests"]["/gex"] == {"202": 2}
    assert found["tickers"]["SPX"]["kind"] == "snapshot"


def test_a_server_that_is_not_ready_is_code_1_with_the_reason(tmp_path):
    with RunningBridge(tmp_path / "data", MIN_FREE_BYTES=str(1 << 60)) as bridge:
        code, out, _ = gex_bridge("status", "--port", bridge.port)
    assert code == 1
    assert "NOT READY" in out and "problem   the disk is nearly full" in out


def test_without_a_server_the_files_tell(tmp_path):
    with RunningBridge(tmp_path / "data", STOP_TIMEOUT="30") as bridge:
        fed(bridge)
    code, out, error = gex_bridge("status", "--json", "--port", free_port(), "--data-dir", bridge.data_dir)
    found = json.loads(out)
    assert code == 0 and "no bridge answers at" in error
    assert found["running"] is False and found["journal"]["position"] == 2
    assert found["files"] == {"files": 2, "depth": 2} and found["latest"] == {"tickers": 2}
    assert found["tables"]["position"] == 2 and found["tables"]["gex_bridge_strikes"] == 3


def test_a_server_on_another_port_is_pointed_at(bridge):
    code, out, error = gex_bridge("status", "--port", free_port(), "--data-dir", bridge.data_dir)
    assert code == 0 and "running   yes" in out
    assert f"one runs on {bridge.data_dir}" in error


def test_an_address_where_nobody_is_or_somebody_else_is_code_1(tmp_path):
    code, out, error = gex_bridge("status", "--url", f"http://127.0.0.1:{free_port()}")
    assert (code, out) == (1, "") and "no bridge answers" in error
    for answer, said in (
        (Answer({"version": 1}), "not a bridge's"),
        (Answer(status=404), "HTTP 404"),
        (Answer(b"<html>"), ""),
    ):
        with Service(lambda request: answer) as service:
            code, out, error = gex_bridge("status", "--url", service.url)
        assert (code, out) == (1, "") and said in error and "Traceback" not in error


def test_a_name_that_the_server_does_not_know_is_explained(bridge):
    with Service(lambda request: Answer(status=421)) as service:
        code, _, error = gex_bridge("status", "--url", service.url)
    assert code == 1 and "ALLOWED_HOSTS" in error


def test_a_missing_folder_is_code_1_and_an_odd_address_code_2(tmp_path):
    code, _, error = gex_bridge("status", "--port", free_port(), "--data-dir", tmp_path / "none")
    assert code == 1 and "there is no folder" in error
    assert gex_bridge("status", "--url", "ftp://x")[0] == 2
