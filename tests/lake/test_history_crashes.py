"""Imports and archives killed with SIGKILL at every stage: partitions are whole, and in the end all is there once."""

import json
import pathlib
import random
import subprocess
import sys
import time

import duckdb
import polars as pl
import pytest

from data_pipeline.lake import scan_snapshots, scan_strikes
from data_pipeline.repository.database import Database
from tests.helpers.history_files import DAY_START, day
from tests.lake.test_archive import everything, fill

ROOT = pathlib.Path(__file__).resolve().parents[2]
DAYS, PER_DAY, STRIKES = 4, 40, 30


def command(*args):
    return subprocess.Popen(
        [sys.executable, "-m", "data_pipeline", *map(str, args), "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def killed_when(child, reached) -> bool:
    """Kill the child as soon as `reached()`; False if it ended first."""
    while child.poll() is None:
        if reached():
            child.kill()
            break
    _, err = child.communicate()
    assert child.returncode in (0, -9), err.decode()
    return child.returncode == -9


def completed(*args):
    child = command(*args)
    _, err = child.communicate()
    assert child.returncode == 0, err.decode()


def any_of(folder, pattern):
    return lambda: next(folder.glob(pattern), None) is not None


IMPORT_STAGES = {
    "while it reads": lambda lake: any_of(lake, ".import-*/strikes.arrow"),
    "while it writes the strikes": lambda lake: any_of(lake, ".staging/*/strikes.parquet"),
    "while it writes the snapshots": lambda lake: any_of(lake, ".staging/*/snapshots.parquet"),
    "when the first strikes are in place": lambda lake: any_of(lake, "strikes/*/*/*/*.parquet"),
    "when the first snapshots are in place": lambda lake: any_of(lake, "snapshots/*/*/*/*.parquet"),
    "when the last day is in place": lambda lake: any_of(lake, "snapshots/*/*/date=2025-01-05/*.parquet"),
    "when it is noted as imported": lambda lake: any_of(lake, ".imported/*.json"),
}


def whole(data_dir, versions):
    """Each day is there as one of the versions or not at all, in each of the two files, for any reader."""
    for kind, rows in (("snapshots", PER_DAY), ("strikes", PER_DAY * STRIKES)):
        for path in (data_dir / "lake" / kind).glob("**/*.parquet"):
            found = pl.read_parquet(path, hive_partitioning=False)
            assert (
                found.height == rows and found.select("timestamp", *["strike"] * (kind == "strikes")).is_unique().all()
            )
            column = "spot" if kind == "snapshots" else "gamma_now"
            seen = set(found[column])
            assert any(seen <= version[kind] for version in versions), path
        if any((data_dir / "lake" / kind).glob("**/*.parquet")):
            with duckdb.connect() as con:
                assert con.execute(
                    f"SELECT count(*) % {rows} FROM '{data_dir}/lake/{kind}/**/*.parquet'"
                ).fetchall() == [(0,)]


def version(chains):
    return {"snapshots": {c["spot"] for c in chains}, "strikes": {s[1] for c in chains for s in c["strikes"]}}


def chains_of(seed):
    return [c for d in range(DAYS) for c in day(PER_DAY, start=DAY_START + 86400 * d, strikes=STRIKES, seed=seed)]


@pytest.mark.parametrize("stage", IMPORT_STAGES)
def test_an_import_killed_is_whole_days_and_the_next_one_finishes_it(tmp_path, stage):
    data_dir, lake = tmp_path / "data", tmp_path / "data" / "lake"
    versions, files = [], []
    for seed in (1, 2):
        path = tmp_path / f"{seed}.json"
        path.write_text(json.dumps(chains_of(seed)))
        versions.append(version(chains_of(seed)))
        files.append(path)
    args = ["--ticker", "SPX", "--endpoint", "gex_zero", "--data-dir", data_dir]
    killed_when(command("import", files[0], *args), IMPORT_STAGES[stage](lake))
    whole(data_dir, versions)
    completed("import", files[0], *args)
    whole(data_dir, versions[:1])
    # Over a lake that is full, the moment is found by time: any, in the whole run.
    random.seed(stage)
    begun, delay = time.monotonic(), random.uniform(0.2, 0.9)
    killed_when(command("import", files[1], *args), lambda: time.monotonic() - begun > delay)
    whole(data_dir, versions)
    completed("import", files[1], *args)
    whole(data_dir, versions[1:])
    assert scan_snapshots(data_dir=data_dir).collect().height == DAYS * PER_DAY
    assert scan_strikes(data_dir=data_dir).collect().height == DAYS * PER_DAY * STRIKES
    assert sorted(p.name for p in lake.iterdir()) == [".imported", ".lock", "snapshots", "strikes"]


ARCHIVE_STAGES = {
    "while it writes the strikes": lambda lake: any_of(lake, ".staging/*/strikes.parquet"),
    "while it writes the snapshots": lambda lake: any_of(lake, ".staging/*/snapshots.parquet"),
    "when the first strikes are in place": lambda lake: any_of(lake, "strikes/*/*/*/*.parquet"),
    "when the first snapshots are in place": lambda lake: any_of(lake, "snapshots/*/*/*/*.parquet"),
    "while the first day is deleted": lambda lake: any_of(lake, "snapshots/*/*/date=2025-01-02/*.parquet"),
    "while the second day is written": lambda lake: any_of(lake, "strikes/*/*/date=2025-01-03/*.parquet"),
    "when the second day is in place": lambda lake: any_of(lake, "snapshots/*/*/date=2025-01-03/*.parquet"),
}


@pytest.mark.parametrize("stage", [*ARCHIVE_STAGES, *(f"after {n} ms" for n in (400, 600))])
def test_an_archive_killed_loses_and_doubles_nothing_and_the_next_one_finishes_it(tmp_path, stage):
    database = Database(tmp_path / "raw" / "gex" / "gex_history.duckdb")
    fill(database, tmp_path, days=2, per_day=10, strikes=100)
    before = everything(database)
    if stage in ARCHIVE_STAGES:
        reached = ARCHIVE_STAGES[stage](tmp_path / "lake")
    else:
        begun = time.monotonic()
        reached = lambda: (time.monotonic() - begun) * 1000 > int(stage.split()[1])  # noqa: E731
    killed_when(command("archive", "--keep-days", 0, "--data-dir", tmp_path), reached)
    assert everything(database) == before
    assert scan_strikes(data_dir=tmp_path).collect().height == 2000
    completed("archive", "--keep-days", 0, "--data-dir", tmp_path)
    assert everything(database) == before
    with database.session(30) as con:
        assert con.execute(
            "SELECT (SELECT count(*) FROM gex_bridge_snapshots), (SELECT count(*) FROM gex_bridge_strikes)"
        ).fetchone() == (0, 0)
