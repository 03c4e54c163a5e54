"""What real feeds send, through the whole bridge: sockets, journal, tables and files."""

import json
import urllib.request

from tests.helpers.support import PATIENCE, RunningBridge, eventually, gex_payload, read

TRADE = {
    "option_chain_id": "XYZ260116C00118000",
    "price": "2.80",
    "size": 500,
    "tags": ["ask_side", "bullish"],
    "executed_at": "2026-01-07T20:00:32.287Z",
}
FRAME = [None, None, "option_trades_super_algo", "new_msg", {"data": TRADE}]
AT = 1762700000


def status(bridge: RunningBridge) -> dict:
    with urllib.request.urlopen(f"http://127.0.0.1:{bridge.port}/status", timeout=PATIENCE) as answer:
        return json.loads(answer.read())


def test_frames_become_rows_of_webhooks_and_flow_and_are_refused_without_the_setting(tmp_path):
    with RunningBridge(tmp_path / "off") as bridge:
        assert bridge.post("/uw", FRAME) == bridge.post("/uw", FRAME) == 400
        assert bridge.stop() == 0
        assert bridge.log.count("UW_FRAMES=1") == 1
    with RunningBridge(tmp_path / "on", UW_FRAMES="1") as bridge:
        assert bridge.post("/uw", {"n": 1}) == bridge.post("/uw", FRAME) == bridge.post("/uw", [FRAME, FRAME]) == 200
        assert bridge.post("/uw", [FRAME, 5]) == bridge.post("/gex", FRAME) == 400
        assert bridge.stop() == 0
        assert read(bridge.database, "SELECT count(*) FROM universal_webhooks") == [(4,)]
        flow = read(
            bridge.database,
            "SELECT id, webhook_id, symbol, strike, option_type, expiration, side, size, executed_at FROM option_flow",
        )
        cells = ["XYZ", 118.0, "C", "2026-01-16", "ask", 500, "2026-01-07 20:00:32.287"]
        assert flow == [(1, 2, *cells), (2, 3, *cells), (3, 4, *cells)]
        assert read(bridge.database, "SELECT count(*) FROM option_trades_events WHERE symbol IS NULL") == [(3,)]


def test_with_own_values_majors_are_read_by_their_short_names_and_each_payload_has_its_row(tmp_path):
    snapshot = gex_payload(ticker="QQQ", timestamp=AT, spot=601.0, major_pos_vol=610)
    majors = {"timestamp": AT + 60, "spot": 605.0, "mpos_vol": 620, "mneg_vol": 595, "zero_gamma": float("nan")}
    payloads = [snapshot, {"ticker": "QQQ", "kind": "majors", "endpoint": "gex_zero", "data": majors}]
    change = {"timestamp": AT + 90, "current": [500, -1.5]}
    payloads.append({"ticker": "QQQ", "kind": "maxchange", "endpoint": "gex_zero", "data": change})
    with RunningBridge(tmp_path, VALUES="own") as bridge:
        assert [bridge.post("/gex", payload) for payload in payloads] == [202] * 3
        assert bridge.stop() == 0
        rows = read(
            bridge.database, "SELECT timestamp, spot, major_pos_vol, payload_kind FROM gex_bridge_snapshots ORDER BY 1"
        )
    assert rows == [
        (AT, 601.0, 610.0, "snapshot"),
        (AT + 60, 605.0, 620.0, "majors"),
        (AT + 90, 605.0, 620.0, "maxchange"),
    ]
    text = (tmp_path / "raw/gex/latest.json").read_text()
    assert "NaN" not in text and json.loads(text)["QQQ"]["combined"]["major_pos_vol"] == 620
    assert json.loads((tmp_path / "gex/QQQ/snapshot.json").read_text())["major_pos_strike"] == 620.0


def test_what_makes_no_row_or_no_strikes_is_counted_and_named_once_a_ticker(tmp_path):
    with RunningBridge(tmp_path) as bridge:
        for _ in range(3):
            assert bridge.post("/gex", gex_payload(timestamp="1_000")) == 202
            assert bridge.post("/gex", {"ticker": "ES", "kind": "snapshot", "data": {"timestamp": AT, "zgr": 1}}) == 202
            assert bridge.post("/uw", {"topic": "news"}) == 200
        counts = {"without_time": 0, "unreadable_time": 3, "without_strikes": 3}
        eventually(lambda: status(bridge)["loader"].get("left_out") == counts, "all are counted")
        eventually(lambda: status(bridge)["depth"]["written"] == 6, "the depth lines are written")
        assert status(bridge)["depth"]["enqueued"] == 6, "counts that can be compared"
        assert bridge.stop() == 0
    assert bridge.log.count("names a time that cannot be read") == 1
    assert bridge.log.count("of which no strike can be read") == 1
