"""Kill -9: whatever was acknowledged is in tables and files, once, and no file is ever half of one.

Server, writer or both are killed at a random moment under mixed load, or end
themselves at a marked system call: in the middle of the write of a record or
of the database, before or after an fsync, a rename, an unlink.  After each
kill every view is read as it lies there, the bridge is started again and the
time to the first accepted post taken; in the end everything is counted.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import time

from tests.reliability import shim
from tests.reliability.load import Load, acknowledgements, add, check_everything_once
from tests.support import RunningBridge, eventually

ROUNDS, SHORT = 1000, 8
IN_TIME = 5.0  # s, from the start of the process to the first post that it accepts
CHECK_EVERY = 50  # rounds

# Whom, where and how often at most before: rules of shim.c without the count.
SERVER_STAGES = (
    ("write .journal half", 20), ("write .journal before", 20), ("fsync .journal before", 20), ("fsync .journal after", 20),
    ("rename .journal before", 1), ("rename .journal after", 1), ("fsync data/journal before", 4),
)
WRITER_STAGES = (
    ("write gex_history.duckdb half", 8), ("fsync gex_history.duckdb before", 8), ("fsync gex_history.duckdb after", 8),
    ("write .duckdb.wal half", 20), ("fsync .duckdb.wal before", 20), ("fsync .duckdb.wal after", 20),
    ("unlink .duckdb.wal before", 2), ("unlink .duckdb.wal after", 2), ("unlink .journal before", 1), ("unlink .journal after", 1),
    ("write latest.json half", 3), ("rename latest.json before", 3), ("rename latest.json after", 3),
    ("rename snapshot.csv before", 8), ("write spot_series half", 5), ("fsync spot_series before", 5),
    ("rename files.position before", 5), ("rename depth.position after", 5), ("write depth/T half", 5),
)


def writer_of(bridge: RunningBridge) -> int:
    """The writer's process id; 0 while there is none."""
    found = subprocess.run(["pgrep", "-P", str(bridge.process.pid), "-f", "data_pipeline.writer"], stdout=subprocess.PIPE)
    return int(found.stdout.split()[0]) if found.stdout else 0


class Crashes:
    """One data folder through many kills."""

    def __init__(self, data_dir: pathlib.Path, seed: int):
        self.chance = random.Random(seed)
        self.bridge = RunningBridge(data_dir, LOAD_INTERVAL="0.05", STOP_TIMEOUT="60")
        self.acknowledged = acknowledgements()
        self.kills = self.at_stages = 0
        self.slowest = 0.0
        try:
            shim.library()
            self.ways = ("random", "server stage", "writer stage", "writer stage at stop")
        except shim.Unable:
            self.ways = ("random",)

    def round(self, number: int) -> None:
        way = self.chance.choice(self.ways)
        rule, at_most = self.chance.choice(SERVER_STAGES if way == "server stage" else WRITER_STAGES)
        staged = way != "random"
        self.bridge.environment.update(shim.environment(f"{rule} {self.chance.randint(1, at_most)}") if staged else {})
        began = time.monotonic()
        self.bridge.start()
        load = Load(self.bridge, clients=4, first=number * 1_000_000).start()
        try:
            if way != "server stage":
                eventually(lambda: load.count, "the first post is accepted")
                self.slowest = max(self.slowest, time.monotonic() - began)
            self._end(way, load)
        finally:
            self.bridge.kill()
            load.stop()
        assert not load.refused, f"{rule}: refused with {set(load.refused)}"
        add(self.acknowledged, load.acknowledged)
        self.kills += 1
        for name in ("LD_PRELOAD", "SHIM_RULES"):
            self.bridge.environment.pop(name, None)
        self._read_views()

    def _end(self, way: str, load: Load) -> None:
        """Let load through, and see the process die; it does not where its stage is not met, and then is killed."""
        writer = writer_of(self.bridge)
        wanted = self.chance.randint(1, 150)
        self._until(lambda: load.count >= wanted)
        if way == "random":
            time.sleep(self.chance.random() * 0.05)
            if writer and self.chance.random() < 0.5:
                os.kill(writer, signal.SIGKILL)
                self.kills += 1
                time.sleep(self.chance.random() * 0.3)
            return
        if way == "writer stage at stop":
            self.bridge.process.send_signal(signal.SIGTERM)
        gone = self._until(lambda: not self._alive(writer if way.startswith("writer") else self.bridge.process.pid))
        self.at_stages += bool(gone)

    def _until(self, condition) -> bool:
        until = time.monotonic() + 1.5
        while not (met := condition()) and time.monotonic() < until and self.bridge.process.poll() is None:
            time.sleep(0.005)
        return met or self.bridge.process.poll() is not None

    @staticmethod
    def _alive(pid: int) -> bool:
        try:
            return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    def _read_views(self) -> None:
        for path in self.bridge.data_dir.rglob("*.json"):
            if not path.name.startswith("."):
                json.loads(path.read_bytes())

    def check(self) -> None:
        began = time.monotonic()
        self.bridge.start()
        assert self.bridge.post("/uw", {"topic": "load", "serial": f"last-{time.monotonic_ns()}"}) == 200
        self.slowest = max(self.slowest, time.monotonic() - began)
        assert self.bridge.stop() == 0, self.bridge.complaints
        log = self.bridge.complaints
        # A torn tail of the journal is set aside; nothing else may be.
        assert all("damaged bytes" in line for line in log.splitlines() if "set aside" in line)
        assert "is damaged" not in log and "Traceback" not in log, log
        check_everything_once(self.bridge, self.acknowledged)


def run(rounds: int, folder: pathlib.Path, seed: int = 20) -> str:
    crashes = Crashes(folder / "data", seed)
    for number in range(rounds):
        crashes.round(number)
        if number % CHECK_EVERY == CHECK_EVERY - 1:
            crashes.check()
    if rounds % CHECK_EVERY:
        crashes.check()
    assert crashes.slowest <= IN_TIME, f"the first post after a start took {crashes.slowest:.1f} s"
    return (
        f"{crashes.kills:,} kills, {crashes.at_stages:,} of them at a marked system call,"
        f" {sum(map(len, crashes.acknowledged.values())):,} acknowledged, 0 lost, 0 doubled, 0 broken files,"
        f" first post after a start at most {crashes.slowest:.1f} s"
    )
