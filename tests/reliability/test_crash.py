"""kill -9 under load: what was acknowledged is there, once."""

import json
import os
import signal

import pytest

from tests.helpers.support import RunningBridge, eventually, gex_payload
from tests.reliability.crash import writer_of
from tests.reliability.load import Load, check_everything_once


def test_a_killed_writer_is_started_again_and_loses_nothing(tmp_path):
    with RunningBridge(tmp_path / "data", LOAD_INTERVAL="0.05") as bridge:
        load = Load(bridge, clients=4).start()
        for number in range(4):
            more = load.count + 60
            eventually(lambda: load.count >= more)
            if writer := writer_of(bridge):
                os.kill(writer, signal.SIGKILL)
        load.stop()
        assert not load.refused, "the death of the writer is nobody's business but ours"
        eventually(lambda: bridge.rows("SELECT count(*) FROM universal_webhooks")[0][0] >= len(load.acknowledged["uw"]))
        assert bridge.stop() == 0
        assert "it is started again" in bridge.log
        check_everything_once(bridge, load.acknowledged)


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT"])
def test_a_stop_under_load_flushes_everything_and_exits_with_0(tmp_path, signal_name):
    with RunningBridge(tmp_path / "data") as bridge:
        load = Load(bridge, clients=8).start()
        eventually(lambda: load.count > 200)
        assert bridge.stop(getattr(signal, signal_name)) == 0, bridge.log
        load.stop()
        assert not load.refused
        check_everything_once(bridge, load.acknowledged)


def test_the_store_comes_back_after_a_kill(tmp_path):
    with RunningBridge(tmp_path / "data") as bridge:
        assert bridge.post("/gex", gex_payload("SPX", 1762700000)) == 202
        assert bridge.post("/gex", gex_payload("SPX", 1762700001, "maxchange", current=[5300, 2])) == 202
        bridge.kill()
        bridge.start()
        # The majors' row takes strikes and max change from what was posted before the kill.
        majors = {
            "ticker": "spx",
            "kind": "majors",
            "endpoint": "gex_majors",
            "data": {"timestamp": 1762700002, "spot": 1},
        }
        assert bridge.post("/gex", majors) == 202
        assert bridge.stop() == 0
    (row,) = bridge.rows(
        "SELECT spot, zero_gamma, strikes_count, max_change_json FROM gex_bridge_snapshots WHERE timestamp = 1762700002"
    )
    assert row == (1.0, 5310.5, 3, '{"Now": {"strike": 5300, "net_gex": 2}}')
    latest = json.loads((bridge.data_dir / "raw/gex/latest.json").read_text())
    assert latest["SPX"]["metadata"]["last_endpoint"] == "gex_majors"
