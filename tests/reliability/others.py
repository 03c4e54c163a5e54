"""Others read the database while the server works: they wait at most 0.5 s, at P99, for their connection."""

import pathlib
import time

import duckdb

from tests.reliability.load import Load, check_everything_once
from tests.support import RunningBridge, eventually

ROUNDS, SHORT = 2000, 20
P99 = 0.5  # s
BETWEEN = 0.02  # s, between two tries and between two readers


def open_read_only(database: pathlib.Path) -> float:
    """Seconds until it was open and had answered."""
    began = time.monotonic()
    while True:
        try:
            with duckdb.connect(str(database), read_only=True) as con:
                con.execute("SELECT count(*) FROM gex_bridge_snapshots").fetchall()
            return time.monotonic() - began
        except duckdb.IOException:
            time.sleep(BETWEEN)


def run(rounds: int, folder: pathlib.Path) -> str:
    """rounds: how often a reader comes."""
    with RunningBridge(folder / "data", STOP_TIMEOUT="600") as bridge, Load(bridge, clients=4) as load:
        eventually(bridge.database.exists)
        waits = []
        for _ in range(rounds):
            waits.append(open_read_only(bridge.database))
            time.sleep(BETWEEN)
        load.stop()
        assert not load.refused
        assert bridge.stop(patience=600) == 0
    check_everything_once(bridge, load.acknowledged)
    waits.sort()
    p50, p99 = waits[len(waits) // 2], waits[min(len(waits) - 1, int(len(waits) * 0.99))]
    # Of a few readers the longest wait is the P99, and it is the machine's as well.
    assert rounds <= SHORT or p99 <= P99, f"readers waited {p99:.2f} s at P99"
    return (
        f"{rounds:,} readers under full load ({load.count:,} acknowledged): P50 {1e3 * p50:.0f} ms, P99 {1e3 * p99:.0f} ms,"
        f" longest {1e3 * waits[-1]:.0f} ms; 0 lost"
    )
