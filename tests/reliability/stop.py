"""SIGTERM under load: exit code 0 within 5 s, requests in flight answered, nothing lost, everything flushed or kept."""

import pathlib
import random
import time

from tests.helpers.support import RunningBridge, eventually
from tests.reliability.load import Load, acknowledgements, add, check_everything_once

ROUNDS, SHORT = 100, 3
IN_TIME = 5.0  # s


def run(rounds: int, folder: pathlib.Path, seed: int = 5) -> str:
    chance = random.Random(seed)
    bridge = RunningBridge(folder / "data", LOAD_INTERVAL="0.05")
    acknowledged = acknowledgements()
    slowest, left = 0.0, 0
    for number in range(rounds):
        bridge.start()
        with Load(bridge, clients=8, first=number * 1_000_000) as load:
            wanted = chance.randint(1, 300)
            eventually(lambda: load.count >= wanted)
            began = time.monotonic()
            code = bridge.stop()
            took = time.monotonic() - began
        slowest = max(slowest, took)
        assert code == 0, f"exit code {code}: {bridge.complaints}"
        assert took <= IN_TIME, f"the stop took {took:.1f} s"
        assert not load.refused, f"refused with {set(load.refused)}"
        add(acknowledged, load.acknowledged)
    left = bridge.complaints.count("not everything was flushed")
    bridge.environment["STOP_TIMEOUT"] = "60"
    bridge.start()
    eventually(lambda: bridge.rows("SELECT 1 FROM bridge_journal"))
    assert bridge.stop() == 0
    assert "Traceback" not in bridge.complaints
    check_everything_once(bridge, acknowledged)
    return (
        f"{rounds} stops under load: exit code 0 each time, the slowest after {slowest:.1f} s,"
        f" {left} left something for the"
        f" next start; {sum(map(len, acknowledged.values())):,} acknowledged, 0 lost, 0 doubled"
    )
