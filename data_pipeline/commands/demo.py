"""gex-bridge demo: a bridge on a folder of its own, and a made-up trading day that arrives in it."""

import argparse
import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import webbrowser
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from data_pipeline import BridgeError, config
from data_pipeline.operations.demo_day import MARKETS, Day, Payload

HELP = "show the page with a made-up trading day: no key, no network, a folder of its own"

PAST = 2.5 * 3600  # s of the day that are there at once
PAST_STEP = 30.0  # s between two payloads of the past
STARTS_WITHIN = 20.0  # s
STOPS_WITHIN = 15.0  # s


class DemoFailed(BridgeError):
    """The demonstration's bridge did not start, or its folder is not an empty one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument("--speed", type=_positive, default=1.0, help="payloads a second and ticker (default: 1)")
    parser.add_argument("--seconds", type=_positive, help="end after so many seconds; else with Ctrl-C")
    parser.add_argument("--keep", type=pathlib.Path, metavar="DIR", help="keep the data in this new or empty folder")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError("must be more than 0")
    return value


def run(args: argparse.Namespace, settings: config.Settings) -> int:
    """Run until Ctrl-C, SIGTERM or `--seconds`; returns the exit code."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    if args.keep is not None:
        return _show(args, _empty(args.keep), ended)
    with tempfile.TemporaryDirectory(prefix="gex-demo-") as folder:
        return _show(args, pathlib.Path(folder), ended)


def _empty(folder: pathlib.Path) -> pathlib.Path:
    """The demonstration never mixes with anybody's data."""
    folder = folder.expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DemoFailed(f"{folder} is not an empty folder; name a new one")
    return folder


def _show(args: argparse.Namespace, folder: pathlib.Path, ended: threading.Event) -> int:
    bridge, port = _start(folder)
    try:
        days = {market: Day(market) for market in MARKETS}
        began = time.time()
        with ThreadPoolExecutor(len(days)) as pool:
            list(pool.map(lambda day: _send(port, _past(day, began, ended)), days.values()))
        address = f"http://127.0.0.1:{port}/"
        print(f"{address} shows a made-up day; Ctrl-C ends it", flush=True)
        if args.open:
            webbrowser.open(address)
        until = time.monotonic() + (args.seconds or float("inf"))
        pause = 1 / args.speed
        while not ended.wait(min(pause, max(0.0, until - time.monotonic()))) and time.monotonic() < until:
            for day in days.values():
                _send(port, day.step(round(time.time(), 3), pause))
    except (OSError, http.client.HTTPException):
        if not ended.is_set():
            raise DemoFailed(f"the bridge in {folder} ended; its last words are above") from None
    finally:
        bridge.terminate()
        bridge.wait(STOPS_WITHIN)
    return 0


def _past(day: Day, now: float, ended: threading.Event) -> Iterable[tuple[str, Payload]]:
    for number in range(int(PAST / PAST_STEP)):
        if ended.is_set():
            return
        yield from day.step(float(round(now - PAST + number * PAST_STEP)), PAST_STEP)


def _send(port: int, posts: Iterable[tuple[str, Payload]]) -> None:
    for path, payload in posts:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        client.request("POST", path, json.dumps(payload), {"Content-Type": "application/json"})
        client.getresponse().read()
        client.close()


def _start(folder: pathlib.Path) -> tuple[subprocess.Popen[str], int]:
    """A bridge on that folder and a free port, which sends nothing to anybody; its port is in its first line."""
    package = str(pathlib.Path(__file__).resolve().parents[2])
    ours = {one.name for one in config.SETTINGS if one.env}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {"PYTHONPATH": package, "DATA_DIR": str(folder)}
    # Its working directory is the empty folder: no `.env` of the person's own is read there.
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "data_pipeline", "serve", "--port", "0"],
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    lines: list[str] = []
    found = threading.Event()
    threading.Thread(target=_read_log, args=(process, lines, found), name="DemoLog", daemon=True).start()
    found.wait(STARTS_WITHIN)
    for line in lines:
        if match := re.search(r"Starting GEX bridge on \S+:(\d+)", line):
            return process, int(match[1])
    process.kill()
    raise DemoFailed(f"the bridge did not start: {' '.join(''.join(lines).split()) or 'it says nothing'}")


def _read_log(process: subprocess.Popen[str], lines: list[str], found: threading.Event) -> None:
    """Until it listens its lines are kept; after that only what is worth a look goes on to the terminal."""
    assert process.stderr is not None
    for line in process.stderr:
        if not found.is_set():
            lines.append(line)
            if "Starting GEX bridge" in line:
                found.set()
        elif " INFO " not in line:
            sys.stderr.write(line)
    found.set()
