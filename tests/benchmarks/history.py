"""`python -m tests.benchmarks.history`: how fast, and in how much memory, a day of history gets into the lake.

The day: a JSON array of 23,400 snapshots of 65 strikes and 5 priors, 122 MB
(made here, once, in --folder).  Each run is a process of its own, as the
importer's child is; start of Python included.  Measured beside it in the same
run: DuckDB counting the records of the same file with read_json, which parses
all of it and keeps nothing.  Memory is the process's peak RSS, also for a file
of twice the size.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from tests.benchmarks.ingest import Run, percentile
from tests.helpers.history_files import DAY_START, write_day
from tests.helpers.support import RunningBridge, read

SNAPSHOTS = 23_400

COUNT = "import duckdb, sys; duckdb.execute('SELECT count(*) FROM read_json(?)', [sys.argv[1]]).fetchall()"


def measured(*command) -> tuple[float, int]:
    """Seconds and peak RSS (MiB) of a process; raises SystemExit if it fails."""
    begun = time.perf_counter()
    child = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{command[:4]} ended with {child.returncode}")
    return time.perf_counter() - begun, usage.ru_maxrss // 1024


def counted(path: pathlib.Path) -> tuple[float, int]:
    return measured("-c", COUNT, path)


def imported(path: pathlib.Path) -> tuple[float, int, int]:
    """Seconds, MiB, and bytes in the lake, which is new each time."""
    with tempfile.TemporaryDirectory(dir=path.parent) as data:
        seconds, memory = measured(
            "-m", "data_pipeline", "import", path, "--ticker=SPX", "--endpoint=gex_zero", f"--data-dir={data}", "--json"
        )
        return seconds, memory, sum(p.stat().st_size for p in pathlib.Path(data).rglob("*.parquet"))


def made(folder: pathlib.Path, snapshots: int) -> pathlib.Path:
    path = folder / f"history-{snapshots}.json"
    if not path.exists():
        print(f"making {path.name} …", flush=True)
        part = path.with_suffix(".part")
        write_day(part, snapshots, DAY_START - 6 * 3600)
        part.rename(path)
    return path


def gex_checks(path: pathlib.Path) -> list[tuple[str, str, str, bool]]:
    """What must hold for `/gex` while an import runs, at the priority it has there: (what, value, must, reached)."""
    with tempfile.TemporaryDirectory(prefix="gex-bench-") as name, RunningBridge(pathlib.Path(name) / "data") as bridge:
        Run(bridge.port, 1, 1)
        read(bridge.database, "SELECT 1 FROM gex_bridge_snapshots")
        alone, beside = [], []
        for _ in range(3):
            alone += Run(bridge.port, 4, 400, pause=0.04).latencies
            child = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "data_pipeline",
                    "import",
                    str(path),
                    "--ticker",
                    "SPX",
                    "--endpoint",
                    "gex_zero",
                    "--again",
                    "--json",
                    "--background",
                    "--data-dir",
                    str(bridge.data_dir),
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            while child.poll() is None:
                beside += Run(bridge.port, 4, 40, pause=0.04).latencies
    before, during = percentile(alone, 0.99), percentile(beside, 0.99)
    print(
        f"P99 of /gex                {before:.1f} ms ({len(alone)} posts),"
        f" {during:.1f} ms while importing ({len(beside)})"
    )
    return [("times P99 of /gex alone", f"{during / before:.2f}", "at most 3", during <= 3 * before)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path(tempfile.gettempdir()) / "gex-bench")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--snapshots", type=int, default=SNAPSHOTS)
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    path, twice = made(args.folder, args.snapshots), made(args.folder, 2 * args.snapshots)
    counts, imports = [], []
    for _ in range(args.runs):  # by turns, so that other load on the machine meets both
        counts.append(counted(path))
        imports.append(imported(path))
    base, ours = statistics.median(c[0] for c in counts), statistics.median(i[0] for i in imports)
    memory, memory_twice = max(i[1] for i in imports), imported(twice)[1]
    size, lake = path.stat().st_size / 1e6, imports[0][2] / 1e6
    print(f"file                       {size:,.0f} MB, {args.snapshots:,} snapshots; lake {lake:,.0f} MB")
    print(f"DuckDB count(*)            {base:.2f} s median of {', '.join(f'{c[0]:.2f}' for c in counts)}")
    print(f"import into the lake       {ours:.2f} s median of {', '.join(f'{i[0]:.2f}' for i in imports)}")
    checks = gex_checks(path) + [
        ("times DuckDB's count", f"{ours / base:.2f}", "at most 4", ours <= 4 * base),
        ("peak memory", f"{memory} MiB", "under 1 GB", memory * 1.048576 < 1000),
        ("peak memory, twice the file", f"{memory_twice} MiB", "not growing", memory_twice <= 1.2 * memory),
    ]
    for what, value, must, good in checks:
        print(f"{what:<27}{value:<10} must be {must}: {'reached' if good else 'MISSED'}")
    return 0 if all(good for *_, good in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
