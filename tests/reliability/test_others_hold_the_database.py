"""The database open elsewhere costs time, and nothing else."""

import json
import threading
import time

from tests.helpers.support import RunningBridge, eventually, gex_payload, read
from tests.reliability.load import Load, check_everything_once
from tests.reliability.others import hold


def test_while_another_process_has_it_open_for_writing_requests_go_on_and_the_rows_come_later(tmp_path):
    with RunningBridge(tmp_path / "data", LOAD_INTERVAL="0.05") as bridge:
        assert bridge.post("/gex", gex_payload()) == 202
        eventually(lambda: bridge.rows("SELECT count(*) FROM gex_bridge_snapshots")[0][0] == 1)
        holder = hold(bridge.database)
        load = Load(bridge, clients=4).start()
        eventually(lambda: load.count > 300)
        # The files do not wait for the database.
        eventually(lambda: "T3" in json.loads((bridge.data_dir / "raw/gex/latest.json").read_text()))
        load.stop()
        assert not load.refused
        eventually(lambda: "records wait in the journal" in bridge.log, "the log says so")
        holder.communicate("\n")
        eventually(lambda: bridge.rows("SELECT count(*) FROM universal_webhooks")[0][0] == len(load.acknowledged["uw"]))
        assert bridge.stop() == 0
    load.acknowledged["gex"].append(("SPX", 1762700000))
    check_everything_once(bridge, load.acknowledged)
    assert bridge.log.count("records wait in the journal") == 1


def test_a_bridge_that_starts_and_stops_while_another_process_holds_the_database_loses_nothing(tmp_path):
    bridge = RunningBridge(tmp_path / "data", STOP_TIMEOUT="2")
    with bridge:
        assert bridge.post("/uw", {"serial": "before"}) == 200
    holder = hold(bridge.database)
    with bridge:
        assert bridge.post("/uw", {"serial": "during"}) == 200
        assert bridge.stop() == 0
    holder.communicate("\n")
    assert "it is in the journal and is done at the next start" in bridge.log
    with bridge:
        pass
    assert read(
        bridge.database, "SELECT id, json_extract_string(payload_json, '$.serial') FROM universal_webhooks ORDER BY id"
    ) == [(1, "before"), (2, "during")]


def test_readers_get_in_while_the_server_works_and_never_see_a_half_loaded_payload(tmp_path):
    with RunningBridge(tmp_path / "data", LOAD_INTERVAL="0.05") as bridge:
        load = Load(bridge, clients=4).start()
        eventually(lambda: load.count > 20)
        seen = []
        until = time.monotonic() + 3

        def reader():
            while time.monotonic() < until:
                seen.append(
                    bridge.rows(
                        "SELECT count(*), count(*) FILTER (WHERE s.strikes_count <> coalesce(k.n, 0))"
                        " FROM gex_bridge_snapshots s LEFT JOIN (SELECT ticker, timestamp, endpoint, count(*) AS n"
                        " FROM gex_bridge_strikes GROUP BY ALL) k USING (ticker, timestamp, endpoint)"
                    )[0]
                )

        threads = [threading.Thread(target=reader) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        load.stop()
        assert not load.refused
        assert len(seen) > 10 and seen[-1][0] > seen[0][0]
        assert all(halves == 0 for _, halves in seen)
        assert bridge.stop() == 0
    check_everything_once(bridge, load.acknowledged)
