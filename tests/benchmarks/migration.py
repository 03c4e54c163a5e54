"""python -m tests.benchmarks.migration [--strikes N] [--rounds N] [--memory N]

How fast an SQLite file of the original's moves over, beside a plain read of it.

Workload: N strike rows (1,000,000) and N/100 snapshots of 1 KB of payload, in
the original's schema.  A round, each in a new process:

* `read`: sqlite3 fetches every row of the file, and throws it away.
* `migrate`: from the SQLite file to the end of the proof, a batch a session
  with pauses, as beside a running server, into a new database with all keys
  and indexes.

Printed: seconds, rows a second, the ratio of the two, and the peak memory of
`migrate` (`VmHWM`) at N/4, N and --memory times N rows.
"""

import argparse
import json
import pathlib
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time

from data_pipeline.migration import export_sqlite

TICKERS = ("NQ_NDX", "ES_SPX", "SPY", "QQQ", "SPX", "NDX")
STRIKES_A_SNAPSHOT = 100
TIME = "2025-11-14 15:00:00"
PAYLOAD = json.dumps({"strikes": "x" * 1000})


def make(path: pathlib.Path, strikes: int) -> None:
    dice = random.Random(1)
    con = sqlite3.connect(path)
    con.execute("PRAGMA synchronous = OFF")
    for statement in export_sqlite.statements():
        con.execute(statement)
    for i in range(strikes // STRIKES_A_SNAPSHOT):
        key = (TICKERS[i % 6], 1_700_000_000 + i // 6, "gex_zero")
        values = [dice.uniform(-1e4, 1e4) for _ in range(9)]
        con.execute(
            f"INSERT INTO gex_bridge_snapshots VALUES ({', '.join('?' * 19)})",
            (*key, "snapshot", TIME, *values, STRIKES_A_SNAPSHOT, "{}", "[]", PAYLOAD, TIME),
        )
        rows = []
        for k in range(STRIKES_A_SNAPSHOT):
            gammas = [dice.uniform(-1e3, 1e3) for _ in range(5)]
            rows.append((*key, 5000.0 + 5 * k, dice.random(), dice.random(), *gammas, json.dumps(gammas)))
        con.executemany(f"INSERT INTO gex_bridge_strikes VALUES ({', '.join('?' * 12)})", rows)
    con.commit()
    con.close()


def read(old: pathlib.Path, target: pathlib.Path) -> tuple[float, float]:
    started, cpu = time.perf_counter(), time.process_time()
    con = sqlite3.connect(old)
    for table in ("gex_bridge_strikes", "gex_bridge_snapshots"):
        for _ in con.execute(f"SELECT * FROM {table}"):
            pass
    con.close()
    return time.perf_counter() - started, time.process_time() - cpu


def migrate(old: pathlib.Path, target: pathlib.Path) -> tuple[float, float]:
    from data_pipeline.migration import migrate as module

    started, cpu = time.perf_counter(), time.process_time()
    results = module.Migration(old, target, show=False).run()
    assert all(r.is_proven for r in results.values())
    return time.perf_counter() - started, time.process_time() - cpu


def child(way: str, old: pathlib.Path) -> dict:
    """Run one way in a new process: {"seconds": …, "cpu": …, "peak_mb": …}."""
    with tempfile.TemporaryDirectory(dir=old.parent) as folder:
        command = [sys.executable, "-m", "tests.benchmarks.migration", "--way", way, str(old), f"{folder}/new.duckdb"]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_mb() -> float:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strikes", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, default=4)
    parser.add_argument("--way", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        way = {"read": read, "migrate": migrate}[args.way[0]]
        seconds, cpu = way(pathlib.Path(args.way[1]), pathlib.Path(args.way[2]))
        print(json.dumps({"seconds": seconds, "cpu": cpu, "peak_mb": peak_mb()}))
        return
    with tempfile.TemporaryDirectory(prefix="gex-migration-") as folder:
        old = pathlib.Path(folder) / "old.db"
        make(old, args.strikes)
        rows = args.strikes + args.strikes // STRIKES_A_SNAPSHOT
        print(f"{rows:,} rows, {old.stat().st_size / 1e6:.0f} MB of SQLite")
        ratios = []
        for _ in range(args.rounds):
            plain, ours = child("read", old), child("migrate", old)
            ratios.append(ours["seconds"] / plain["seconds"])
            for name, one in (("read", plain), ("migrate", ours)):
                speed = f"{rows / one['seconds']:9,.0f} rows/s"
                print(f"  {name:<8}{one['seconds']:6.2f} s {speed}, CPU {one['cpu']:5.2f} s", flush=True)
        print(f"migrate takes {statistics.median(ratios):.1f} times the plain read (median of {args.rounds})")
        sizes = (args.strikes // 4, args.strikes, args.strikes * args.memory) if args.memory else ()
        for strikes in sizes:
            sized = pathlib.Path(folder) / f"{strikes}.db"
            make(sized, strikes)
            one = child("migrate", sized)
            print(f"{strikes:>12,} strike rows: peak memory {one['peak_mb']:.0f} MB, {one['seconds']:.1f} s")
            sized.unlink()


if __name__ == "__main__":
    main()
