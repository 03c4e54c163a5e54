"""A disk without space, and one that fails: 500 with a clear text and never a false 2xx; once there is space it serves
again within 5 s, without a restart; everything acknowledged is in tables and files, nothing healthy was moved aside.

First on a small tmpfs that is filled under load, over and over; then with
EIO and ENOSPC from writes, fsyncs and renames of the journal, the database
and the files, injected into the real processes by a preloaded library.
"""

import os
import pathlib
import subprocess
import time
from contextlib import contextmanager

from tests.helpers.support import RunningBridge, eventually, request, status_of
from tests.reliability import shim
from tests.reliability.load import Load, acknowledgements, add, check_everything_once
from tests.reliability.shim import Unable

ROUNDS, SHORT = 20, 1
SIZE = "24m"
IN_TIME = 5.0  # s, from free space to the next 2xx
EIO, ENOSPC = 5, 28
FULL, BROKEN = b"No space left on device", b"Input/output error"

# (rules of shim.c, what a refused client is told); None: no client is to notice.
FAILURES = (
    ((f"fsync .journal {EIO} 1",), BROKEN),
    ((f"fsync .journal {ENOSPC} 1",), FULL),
    ((f"write .journal {ENOSPC} 1", f"truncate .journal {EIO} 1"), FULL),
    ((f"fsync .duckdb {EIO} 1",), None),
    ((f"write .duckdb {ENOSPC} 1", f"write .position {ENOSPC} 1"), None),
    ((f"fsync spot_series {EIO} 1", f"write depth/T {ENOSPC} 1"), None),
    ((f"rename latest.json {EIO} 1", f"fsync .position {EIO} 1"), None),
)


def run(rounds: int, folder: pathlib.Path) -> str:
    """rounds: how often the disk is filled, and each failure turned on."""
    failures = FAILURES if rounds > SHORT else FAILURES[::3]
    slowest, refused = fill(rounds, folder)
    again, failed = fail(failures, rounds, folder)
    return (
        f"filled {rounds} times: {refused:,} refused with 500, 0 false acknowledgements, serving again within"
        f" {slowest:.1f} s; {len(failures) * rounds} injected EIO or ENOSPC: {failed:,} refused with 500, again within"
        f" {again:.1f} s; 0 lost, 0 doubled"
    )


@contextmanager
def tmpfs(folder: pathlib.Path, size: str):
    """A file system of its own at `folder`.  Raises Unable where none may be mounted."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], stderr=subprocess.PIPE
    )
    if mounted.returncode:
        raise Unable("a tmpfs cannot be mounted")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(rounds: int, folder: pathlib.Path) -> tuple[float, int]:
    """The longest wait for a 2xx after space was made, and how many were refused."""
    slowest, refused = 0.0, 0
    acknowledged = acknowledgements()
    with tmpfs(folder / "disk", SIZE) as data_dir:
        filler = data_dir / "filler"
        with RunningBridge(data_dir, LOAD_INTERVAL="0.05", STOP_TIMEOUT="60") as bridge:
            for number in range(rounds):
                with Load(bridge, clients=2, first=number * 1_000_000, pause=0.01) as load:
                    eventually(lambda: load.count > 20)
                    _fill(filler)
                    try:
                        _is_refused(bridge, FULL)
                        more = len(load.refused) + 40
                        eventually(lambda: len(load.refused) > more, "requests are refused")
                    finally:
                        filler.unlink()
                    slowest = max(slowest, _serves_again(bridge))
                    more = load.count + 20
                    eventually(lambda: load.count > more)
                assert set(load.refused) == {500}
                refused += len(load.refused)
                add(acknowledged, load.acknowledged)
            _is_whole(bridge, acknowledged)
    return slowest, refused


def fail(failures: tuple, rounds: int, folder: pathlib.Path) -> tuple[float, int]:
    """The same for failures that are turned on and off again."""
    switch = folder / "switch"
    slowest, refused = 0.0, 0
    for index, (rules, told) in enumerate(failures):
        acknowledged = acknowledgements()
        bridge = RunningBridge(folder / f"failing-{index}", LOAD_INTERVAL="0.05", STOP_TIMEOUT="60")
        bridge.environment.update(shim.environment(*rules, switch=switch))
        with bridge:
            for number in range(rounds):
                with Load(bridge, clients=2, first=number * 1_000_000, pause=0.005) as load:
                    eventually(lambda: load.count > 20 and bridge.database.exists())
                    switch.touch()
                    try:
                        if told:
                            _is_refused(bridge, told)
                        more = load.count + 40
                        eventually(lambda: load.refused if told else load.count > more)
                        if not told:
                            eventually(lambda: "cannot be written" in bridge.complaints, f"the log speaks of {rules}")
                    finally:
                        switch.unlink()
                    slowest = max(slowest, _serves_again(bridge))
                assert set(load.refused) == ({500} if told else set()), rules
                refused += len(load.refused)
                add(acknowledged, load.acknowledged)
            _is_whole(bridge, acknowledged)
    return slowest, refused


def _fill(path: pathlib.Path) -> None:
    piece = 1 << 20
    with open(path, "wb", buffering=0) as file:
        while piece:
            try:
                file.write(bytes(piece))
            except OSError:
                piece //= 4
        os.fsync(file.fileno())


def _probe(bridge: RunningBridge) -> bytes:
    return bridge.send(request("/uw", b'{"topic": "probe", "serial": "%d"}' % time.monotonic_ns()))


def _is_refused(bridge: RunningBridge, told: bytes) -> None:
    answer = eventually(lambda: (a := _probe(bridge)) and status_of(a) != 200 and a, "a request is refused")
    assert status_of(answer) == 500, answer
    assert told in answer.split(b"\r\n", 1)[0], "the status line says what is wrong"


def _serves_again(bridge: RunningBridge) -> float:
    began = time.monotonic()
    eventually(lambda: status_of(_probe(bridge)) == 200, "it serves again")
    took = time.monotonic() - began
    assert took <= IN_TIME, f"{took:.1f} s until it served again"
    return took


def _is_whole(bridge: RunningBridge, acknowledged: dict[str, list]) -> None:
    assert bridge.stop() == 0
    log = bridge.complaints
    assert "is damaged" not in log and "Traceback" not in log and "set aside" not in log, log
    assert "not everything was flushed" not in log, log
    check_everything_once(bridge, acknowledged)
