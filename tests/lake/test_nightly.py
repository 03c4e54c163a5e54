"""The nightly archive: real runs as a process of their own, and what comes of those that go wrong."""

import datetime
import logging
import os

from data_pipeline.lake.nightly import NightlyArchive, seconds_until_night
from data_pipeline.repository.database import Database
from tests.helpers.history_files import DAY_START
from tests.helpers.support import eventually


def test_a_run_moves_what_is_due_and_one_that_fails_says_why(tmp_path, caplog):
    caplog.set_level(logging.INFO, "webhook")
    nightly = NightlyArchive(tmp_path, 1)
    assert nightly.run() == 1  # there is no database yet
    database = Database(tmp_path / "raw" / "gex" / "gex_history.duckdb")
    with database.session() as con:
        rows = f"SELECT 'A', {DAY_START} + i, 'e' FROM range(1000) of(i)"
        con.execute(f"INSERT INTO gex_bridge_snapshots (ticker, timestamp, endpoint) {rows}")
    assert nightly.run() == 0
    assert nightly.stats() == {"done": 1, "failed": 1} and '"snapshots": 1000' in caplog.text
    for file in (tmp_path / "lake").rglob("*.parquet"):
        file.write_bytes(b"x")
    with database.session() as con:
        rows = f"SELECT 'A', {DAY_START} + i, 'e' FROM range(1000) of(i)"
        con.execute(f"INSERT INTO gex_bridge_snapshots (ticker, timestamp, endpoint) {rows}")
    assert nightly.run() == 1
    assert "ended with 1" in caplog.text and "part-0.parquet is damaged" in caplog.text


def test_a_run_that_cannot_be_started_is_tried_again_next_night(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("data_pipeline.lake.nightly.seconds_until_night", lambda now: 0.05)
    nightly = NightlyArchive(tmp_path, 1)
    command, nightly._command = nightly._command, [str(tmp_path)]  # a folder: the system refuses to run it
    nightly.start()
    eventually(lambda: nightly.stats()["failed"] > 1)
    nightly._command = [command[0], "-c", "print(1)"]
    eventually(lambda: nightly.stats()["done"])
    assert nightly.stop(10)
    assert f"cannot be started, and is tried again next night: {os.strerror(13)}" in caplog.text.replace(
        "[Errno 13] ", ""
    )


def test_the_night_is_the_next_one(tmp_path):
    at = datetime.datetime(2025, 1, 2, 2, 59)
    assert seconds_until_night(at) == 60
    assert seconds_until_night(at + datetime.timedelta(minutes=1)) == 86400
