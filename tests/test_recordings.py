"""What the original answered, wrote and kept, replayed over real sockets."""

import datetime
import json
import re

import pytest

from tests.helpers.support import RECORDINGS, RunningBridge, raw_exchange, read

TABLES = {
    "gex_bridge_snapshots": "ticker, timestamp, endpoint",
    "gex_bridge_strikes": "ticker, timestamp, endpoint, strike",
    "gex_history_queue": "id",
    "universal_webhooks": "id",
    "option_trades_events": "id",
}
# Rows that the original wrote under the time of majors that were hours old, over what it had there.
MENDED = {("SPX", 1762785001, "gex_zero"), ("SPX", 1762803002, "gex_zero")}
DATE = re.compile(r"(?m)^Date: [^\r\n]*")
PYTHON = re.compile(r"Python/[0-9.]+[a-z0-9+]*")


def mask_response(raw: bytes) -> str:
    head, separator, body = raw.decode("latin-1").partition("\r\n\r\n")
    return PYTHON.sub("Python/{python}", DATE.sub("Date: {date}", head)) + separator + body


def without_page(response: str) -> str:
    """Error pages are the standard library's own and may differ in another Python."""
    head, _, body = response.partition("\r\n\r\n")
    if body.startswith("<!DOCTYPE"):
        return re.sub(r"(?m)^Content-Length: \d+", "Content-Length: {n}", head)
    return response


def cases(name: str) -> list[dict]:
    return [json.loads(line) for line in (RECORDINGS / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """Responses, files and tables of a bridge that got every recorded request, and was stopped."""
    data = tmp_path_factory.mktemp("replay") / "data"
    with RunningBridge(data) as bridge:
        responses = [
            (case["name"], mask_response(raw_exchange(bridge.port, case["request"].encode("latin-1"))))
            for case in cases("requests.jsonl")
        ]
        assert bridge.stop() == 0, bridge.log
    today = datetime.datetime.now(datetime.UTC)
    days = [(today - datetime.timedelta(days=back)).strftime("%Y-%m-%d") for back in (0, 1)]
    now = re.compile(r"(%s)[T ][0-9:.]+(\+00:00|Z)?" % "|".join(days))
    files = {}
    for sub in ("raw/gex/latest.json", "raw/gex/spot_series.jsonl", "gex", "depth"):
        path = data / sub
        for file in sorted([path] if path.is_file() else path.rglob("*")):
            if file.is_file():
                name = file.relative_to(data).as_posix()
                for day in days:
                    name = name.replace(day, "{today}")
                files[name] = now.sub("{now}", file.read_bytes().decode())
    tables = {
        t: json.loads(now.sub("{now}", json.dumps(read(bridge.database, f"SELECT * FROM {t} ORDER BY {key}"))))
        for t, key in TABLES.items()
    }
    return responses, files, tables


def test_every_recorded_request_gets_the_same_bytes(replayed):
    recorded = [(case["name"], case["response"]) for case in cases("responses.jsonl")]
    assert len(recorded) == 170
    for (name, ours), (_, theirs) in zip(replayed[0], recorded, strict=True):
        assert without_page(ours) == without_page(theirs), name


def test_every_file_has_the_same_text(replayed):
    recorded = json.loads((RECORDINGS / "state.json").read_text())["files"]
    assert sorted(replayed[1]) == sorted(recorded)
    for name, text in recorded.items():
        assert replayed[1][name] == text, name


@pytest.mark.parametrize("table", TABLES)
def test_every_cell_of_every_table_is_equal(replayed, table):
    recorded = json.loads((RECORDINGS / "state.json").read_text())["tables"][table]["rows"]
    mended = {tuple(row[:3]) for row in replayed[2][table]} & MENDED
    assert len(mended) == (len(MENDED) if table in ("gex_bridge_snapshots", "gex_bridge_strikes") else 0)
    assert [row for row in replayed[2][table] if tuple(row[:3]) not in MENDED] == recorded
