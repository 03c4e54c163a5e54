"""The repository as a whole, in a server that runs."""

import contextlib
import shutil

import pytest

from tests.helpers.support import PATIENCE, RunningBridge, eventually, read


@pytest.mark.parametrize("moved", ["data", "data/journal"])
def test_a_bridge_whose_folder_was_moved_away_acknowledges_nothing_more_and_ends(tmp_path, moved):
    first, second = RunningBridge(tmp_path / "data", LOAD_INTERVAL="0.05"), RunningBridge(tmp_path / "data")
    with first:
        assert first.post("/uw", {"serial": "before"}) == 200
        eventually(lambda: first.rows("SELECT count(*) FROM universal_webhooks") == [(1,)])
        (tmp_path / moved).rename(tmp_path / "away")
        # The journal's folder is there again, and a stranger's.
        with second:
            assert second.post("/uw", {"serial": "second"}) == 200
            with contextlib.suppress(ConnectionRefusedError):  # it may have ended already
                assert first.post("/uw", {"serial": "lost"}) in (0, 500)
            assert first.process.wait(PATIENCE) == 1
            assert second.stop() == 0
    said = first.log
    assert said.count("was removed or renamed, another bridge may be on that path") == 1 and "Traceback" not in said
    serials = {text for (text,) in read(second.database, "SELECT payload_json FROM universal_webhooks")}
    assert '{"serial": "lost"}' not in serials and '{"serial": "second"}' in serials


def test_a_bridge_whose_folder_was_removed_ends_within_seconds_though_nobody_posts(tmp_path):
    with RunningBridge(tmp_path / "data") as bridge:
        shutil.rmtree(tmp_path / "data" / "journal")
        assert bridge.process.wait(PATIENCE) == 1
    assert "and this one ends" in bridge.log
