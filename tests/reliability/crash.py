"""Kill -9: whatever was acknowledged is in tables and files, once, and no file is ever half of one.

Server, writer or both are killed at a random moment under mixed load, or end
themselves at a marked system call: in the middle of the write of a record or
of the database, before or after an fsync, a rename, an unlink.  So does an
archive run, which moves the load's past days to the lake meanwhile.  After
each kill every view is read as it lies there, the bridge is started again and
the time to the first accepted post taken; in the end everything is counted.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

from tests.helpers.support import ROOT, RunningBridge, eventually
from tests.reliability import shim
from tests.reliability.load import Load, acknowledgements, add, check_everything_once

ROUNDS, SHORT = 1000, 8
IN_TIME = 5.0  # s, from the start of the process to the first post that it accepts
CHECK_EVERY = 50  # rounds
# Each round's timestamps begin that much later, so a day, and a partition of the lake, has some rounds; and with
# majors, whose timestamp is in the keys of the snapshots behind them.
SECONDS_A_ROUND = 4800
FIRST = 2
ENDPOINTS = 4
ARCHIVED = 300.0  # s, in which an archive run must end

# Whom, where and how often at most before: rules of shim.c without the count.
SERVER_STAGES = (
    ("write .journal half", 20),
    ("write .journal before", 20),
    ("fsync .journal before", 20),
    ("fsync .journal after", 20),
    ("rename .journal before", 1),
    ("rename .journal after", 1),
    ("fsync data/journal before", 4),
)
WRITER_STAGES = (
    ("write gex_history.duckdb half", 8),
    ("fsync gex_history.duckdb before", 8),
    ("fsync gex_history.duckdb after", 8),
    ("write .duckdb.wal half", 20),
    ("fsync .duckdb.wal before", 20),
    ("fsync .duckdb.wal after", 20),
    ("unlink .duckdb.wal before", 2),
    ("unlink .duckdb.wal after", 2),
    ("unlink .journal before", 1),
    ("unlink .journal after", 1),
    ("write latest.json half", 3),
    ("rename latest.json before", 3),
    ("rename latest.json after", 3),
    ("rename snapshot.csv before", 8),
    ("write spot_series half", 5),
    ("fsync spot_series before", 5),
    ("rename files.position before", 5),
    ("rename depth.position after", 5),
    ("write depth/T half", 5),
)
ARCHIVE_STAGES = (
    ("write strikes.parquet half", 3),
    ("fsync strikes.parquet before", 3),
    ("fsync strikes.parquet after", 3),
    ("write snapshots.parquet half", 3),
    ("fsync snapshots.parquet before", 3),
    ("fsync snapshots.parquet after", 3),
    ("rename strikes.parquet before", 3),
    ("rename strikes.parquet after", 3),
    ("rename snapshots.parquet before", 3),
    ("rename snapshots.parquet after", 3),
    ("write .duckdb.wal half", 3),
    ("fsync .duckdb.wal before", 3),
    ("fsync .duckdb.wal after", 3),
    ("write gex_history.duckdb half", 3),
    ("fsync gex_history.duckdb before", 3),
    ("unlink .duckdb.wal before", 2),
)
STAGES = {
    "server stage": SERVER_STAGES,
    "writer stage": WRITER_STAGES,
    "writer stage at stop": WRITER_STAGES,
    "archive stage": ARCHIVE_STAGES,
}


def writer_of(bridge: RunningBridge) -> int:
    """The writer's process id; 0 while there is none."""
    found = subprocess.run(
        ["pgrep", "-P", str(bridge.process.pid), "-f", "data_pipeline.writer"], stdout=subprocess.PIPE
    )
    return int(found.stdout.split()[0]) if found.stdout else 0


class Crashes:
    """One data folder through many kills."""

    def __init__(self, data_dir: pathlib.Path, seed: int):
        self.chance = random.Random(seed)
        self.bridge = RunningBridge(data_dir, LOAD_INTERVAL="0.05", STOP_TIMEOUT="600")
        self.acknowledged = acknowledgements()
        self.kills = self.at_stages = self.archives = 0
        self.slowest = 0.0
        try:
            shim.library()
            self.ways: tuple[str, ...] = (
                "random",
                "server stage",
                "writer stage",
                "writer stage at stop",
                "archive",
                "archive stage",
            )
        except shim.Unable:
            self.ways = ("random", "archive")

    def round(self, number: int) -> None:
        way = self.chance.choice(self.ways)
        rule, at_most = self.chance.choice(STAGES[way]) if way in STAGES else ("", 0)
        dies = shim.environment(f"{rule} {self.chance.randint(1, at_most)}") if rule else {}
        if not way.startswith("archive"):
            self.bridge.environment.update(dies)
        began = time.monotonic()
        if not self._start(dies):
            return
        load = Load(self.bridge, clients=4, first=FIRST + number * SECONDS_A_ROUND, endpoints=ENDPOINTS).start()
        try:
            if way != "server stage":
                eventually(lambda: load.count, "the first post is accepted")
                self.slowest = max(self.slowest, time.monotonic() - began)
            if way.startswith("archive"):
                self._archive_dies(dies)
            else:
                self._end(way, load)
        finally:
            self.bridge.kill()
            load.stop()
        assert not load.refused, f"{rule}: refused with {set(load.refused)}"
        add(self.acknowledged, load.acknowledged)
        self._has_died()

    def _start(self, dies: dict[str, str]) -> bool:
        """False where it died at its stage before it listened."""
        try:
            self.bridge.start()
        except AssertionError:
            if not dies or self.bridge.process.poll() != -signal.SIGKILL:
                raise
            self.at_stages += 1
            self._has_died()
            return False
        return True

    def _has_died(self) -> None:
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

    def _archive_dies(self, environment: dict[str, str]) -> None:
        """An archive run beside the load, which dies at its stage, or soon, or is through before."""
        eventually(self.bridge.database.exists)
        run = self._archive(environment)
        try:
            run.wait(ARCHIVED if environment else self.chance.uniform(0.3, 2.0))
        except subprocess.TimeoutExpired:
            assert not environment, f"the archive run did not end within {ARCHIVED:.0f} s"
        run.kill()
        _, said = run.communicate()
        assert run.returncode in (0, -signal.SIGKILL), said
        died = run.returncode != 0
        self.archives += died
        self.kills += died
        self.at_stages += died and bool(environment)

    def _archive(self, environment: dict[str, str]) -> subprocess.Popen:
        command = [
            sys.executable,
            "-m",
            "data_pipeline",
            "archive",
            "--keep-days",
            "0",
            # Its days are small, and must not wait.
            "--least-rows",
            "1",
            "--data-dir",
            str(self.bridge.data_dir),
        ]
        return subprocess.Popen(
            command,
            env={**os.environ, **environment},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

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
        said = (run := self._archive({})).communicate(timeout=ARCHIVED)
        assert run.returncode == 0, said
        assert self.bridge.stop(patience=600) == 0, self.bridge.complaints[-3000:]
        log = self.bridge.complaints
        # A torn tail of the journal is set aside; nothing else may be.
        assert all("damaged bytes" in line for line in log.splitlines() if "set aside" in line)
        assert "is damaged" not in log and "Traceback" not in log, log[-3000:]
        check_everything_once(self.bridge, self.acknowledged)
        left = [
            p
            for p in (self.bridge.data_dir / "lake").rglob("*")
            if p.is_file() and (p.suffix != ".parquet" or "/." in str(p))
        ]
        assert [p.name for p in left] in ([], [".lock"]), left


def run(rounds: int, folder: pathlib.Path, seed: int = 20) -> str:
    crashes = Crashes(folder / "data", seed)
    for number in range(rounds):
        crashes.round(number)
        if number % CHECK_EVERY == CHECK_EVERY - 1:
            crashes.check()
    if rounds % CHECK_EVERY:
        crashes.check()
    assert rounds < 20 or crashes.archives, "no archive run was killed; nothing is shown of them"
    assert crashes.slowest <= IN_TIME, f"the first post after a start took {crashes.slowest:.1f} s"
    return (
        f"{crashes.kills:,} kills, {crashes.archives:,} of them of an archive run,"
        f" {crashes.at_stages:,} at a marked system call,"
        f" {sum(map(len, crashes.acknowledged.values())):,} acknowledged, 0 lost, 0 doubled, 0 broken files,"
        f" first post after a start at most {crashes.slowest:.1f} s"
    )
