"""The queue of history links from the row to the lake: real downloads, real child processes, a real database."""

import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from data_pipeline.history.importer import HistoryImporter
from data_pipeline.history.queue import HistoryQueue
from data_pipeline.lake import scan_snapshots, scan_strikes
from data_pipeline.repository.database import Database
from tests.helpers.history_files import DAY_START, day
from tests.helpers.support import eventually
from tests.helpers.web import Web


@pytest.fixture
def path(tmp_path):
    return tmp_path / "raw" / "gex" / "gex_history.duckdb"


def add(path, *links, status="pending", attempts=0, updated="2025-01-01 00:00:00"):
    with Database(path).session(30) as con:
        for url, ticker, endpoint in links:
            con.execute(
                "INSERT INTO gex_history_queue (id, url, ticker, endpoint, status, attempts, updated_at)"
                " SELECT coalesce(max(id), 0) + 1, ?, ?, ?, ?, ?, ? FROM gex_history_queue",
                [url, ticker, endpoint, status, attempts, updated],
            )


def states(path):
    return [(r["id"], r["status"], r["attempts"], r["last_error"]) for r in HistoryQueue(path).rows()]


def importer(path, tmp_path):
    return HistoryImporter(HistoryQueue(path), tmp_path, ("127.0.0.1",), 1 << 30)


def worked_off(path, tmp_path):
    """Let an importer work until nothing is due."""
    queue = HistoryQueue(path)
    one = HistoryImporter(queue, tmp_path, ("127.0.0.1",), 1 << 30)
    while (job := queue.take(one._refusal)) is not None:
        one.work(job)
    return states(path)


def test_jobs_are_taken_oldest_first_and_one_by_one(path):
    add(path, ("u1", "A", "e"), ("u2", "B", "e"), ("u3", "C", "e"))
    queue = HistoryQueue(path)
    jobs = [queue.take(), queue.take()]
    assert [(j.id, j.url, j.ticker, j.attempts) for j in jobs] == [(1, "u1", "A", 1), (2, "u2", "B", 1)]
    queue.finish(1, "completed", None)
    queue.finish(2, "failed", "x" * 5000)
    assert [(s[0], s[1]) for s in states(path)] == [(1, "completed"), (2, "failed"), (3, "pending")]
    assert queue.take().id == 3
    assert queue.take() is None  # the failed one has a pause before it
    assert len(states(path)[1][3]) == 1000


def test_what_a_crash_left_started_is_taken_again_but_not_for_ever(path):
    add(path, ("u1", "A", "e"), status="started", attempts=1)
    add(path, ("u2", "B", "e"), status="started", attempts=3)
    queue = HistoryQueue(path)
    job = queue.take()
    assert (job.id, job.attempts) == (1, 2)
    assert queue.take() is None
    assert states(path)[1] == (2, "failed", 3, "interrupted each time")


@pytest.mark.parametrize(
    "attempts, ago, due", [(1, 30, False), (1, 90, True), (2, 90, False), (2, 400, True), (3, 10**6, False)]
)
def test_a_failed_job_is_taken_up_to_three_times_with_growing_pauses(path, attempts, ago, due):
    updated = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(time.time() - ago))
    add(path, ("u1", "A", "e"), status="failed", attempts=attempts, updated=updated)
    assert (HistoryQueue(path).take() is not None) == due


def test_retry_makes_a_job_as_new(path):
    add(path, ("u1", "A", "e"), status="failed", attempts=3)
    queue = HistoryQueue(path)
    assert queue.retry(1) and not queue.retry(2)
    assert states(path) == [(1, "pending", 0, None)]
    assert queue.take().attempts == 1


def test_links_become_rows_in_the_lake(path, tmp_path, web, caplog):
    caplog.set_level(logging.INFO, "webhook")
    web.files["/a.json"] = json.dumps(day(5)).encode()
    web.files["/b.json"] = b"\n".join(json.dumps(c).encode() for c in day(5, start=DAY_START + 100)) + b"\n{broken"
    web.files["/c.json"] = b"[]"
    add(path, *((f"{web.url}/{n}.json?sig=SECRET", "SPX", "gex_zero") for n in "abcd"))
    add(
        path,
        ("http://evil.example/x?sig=SECRET", "SPX", "gex_zero"),
        (f"{web.url}/a.json", "X" * 300, "e"),
        ("123", "45", "6"),
    )
    assert worked_off(path, tmp_path) == [
        (1, "completed", 1, None),
        (2, "completed", 1, "1 of 6 records skipped: record 6: not JSON, or longer than 4 MiB with its rows"),
        (3, "failed", 1, "no records in the file"),
        (4, "failed", 1, "the server answered 404"),
        (5, "failed", 3, "host 'evil.example' is not in HISTORY_ALLOWED_HOSTS"),
        (6, "failed", 3, f"'{'X' * 40}' is too long for a partition of the lake"),
        (7, "failed", 3, "only http:// and https:// addresses with a host are fetched"),
    ]
    assert scan_snapshots("SPX", data_dir=tmp_path).collect().height == 10
    assert scan_strikes("SPX", data_dir=tmp_path).collect().height == 30
    assert "history job 1 completed" in caplog.text and "SECRET" not in caplog.text


def test_links_that_may_not_be_fetched_keep_no_other_waiting_and_are_not_tried_again(path, tmp_path, web, caplog):
    web.files["/a.json"] = json.dumps(day(2)).encode()
    add(path, (f"{web.url}/a.json", "SPX", "gex_zero"))
    with Database(path).session(30) as con:  # before and after it, and some whose pause is over
        con.execute(
            "INSERT INTO gex_history_queue (id, url, ticker, endpoint, status, attempts, updated_at)"
            " SELECT n, 'http://evil.example/' || n, 'SPX', 'e', if(n < 0, 'pending', 'failed'), n % 2, '2025-01-01'"
            " FROM range(-1500, 1600) t(n) WHERE n < 0 OR n > 1 AND n % 2 = 1"
        )
    one = importer(path, tmp_path)
    queue = one._queue
    assert queue.take(one._refusal) is None and queue.take(one._refusal).id == 1  # a thousand at a time
    while one.stats()["failed"] < 1500 + 799:
        assert queue.take(one._refusal) is None
    ends = {s[1:] for s in states(path) if s[0] != 1}
    assert ends == {("failed", 3, "host 'evil.example' is not in HISTORY_ALLOWED_HOSTS")}
    assert "history job -1500 failed after 0.0 s" in caplog.text


def test_a_refusal_that_only_the_server_causes_is_final_too(path, tmp_path, web):
    web.answers["/away"] = (302, {"Location": "http://evil.example/"}, b"")
    add(path, (f"{web.url}/away", "SPX", "gex_zero"), ("http://evil.example/", "SPX", "gex_zero"))
    one = importer(path, tmp_path)
    assert one.work(one._queue.take()) == "failed"
    assert one.work(one._queue.start(2)) == "failed"  # as the command does, unasked
    said = "host 'evil.example' is not in HISTORY_ALLOWED_HOSTS"
    assert states(path) == [(1, "failed", 3, said), (2, "failed", 3, said)]


def test_the_thread_goes_from_what_it_refuses_to_what_it_fetches_at_once(path, tmp_path, web, monkeypatch):
    monkeypatch.setattr("data_pipeline.history.importer.LOOK_EVERY", 3600.0)
    monkeypatch.setattr("data_pipeline.history.queue.AT_ONCE", 3)
    web.files["/a.json"] = json.dumps(day(2)).encode()
    add(path, *[("http://evil.example/", "SPX", "gex_zero")] * 7, (f"{web.url}/a.json", "SPX", "gex_zero"))
    one = importer(path, tmp_path)
    one.start()
    eventually(lambda: one.stats()["completed"] == 1)
    assert one.stop(10) and one.stats()["failed"] == 7


def test_an_address_longer_than_what_is_looked_at_is_fetched_whole(path, tmp_path, web):
    long = "/a.json?" + "s" * 10_000
    web.files["/a.json"] = json.dumps(day(2)).encode()
    add(path, (web.url + long, "SPX", "gex_zero"))
    assert worked_off(path, tmp_path) == [(1, "completed", 1, None)]
    assert web.seen[0][0].endswith(long)


def test_the_same_file_again_is_neither_fetched_nor_imported_twice(path, tmp_path, web):
    web.files["/a.json"] = json.dumps(day(5)).encode()
    add(path, (f"{web.url}/a.json?sig=1", "SPX", "gex_zero"), (f"{web.url}/a.json?sig=2", "SPX", "gex_zero"))
    queue = HistoryQueue(path)
    one = HistoryImporter(queue, tmp_path, ("127.0.0.1",), 1 << 30)
    one.work(queue.take())
    files = {p: p.stat().st_ino for p in (tmp_path / "lake").rglob("*.parquet")}
    one.work(queue.take())
    assert [s[1] for s in states(path)] == ["completed", "completed"]
    assert "If-None-Match" in web.seen[1][1]
    assert files == {p: p.stat().st_ino for p in (tmp_path / "lake").rglob("*.parquet")}


@pytest.mark.parametrize("ticker", ["-x", "--json", "$(touch x)", "a b'c\"d", "Ü", "../..", "'; DROP TABLE x; --"])
def test_a_ticker_is_a_value_wherever_it_goes(path, tmp_path, web, ticker):
    web.files["/a.json"] = json.dumps(day(2)).encode()
    add(path, (f"{web.url}/a.json", ticker, ticker))
    said = "2 of 2 records name another ticker, as 'SPX'"
    assert worked_off(path, tmp_path) == [(1, "completed", 1, said)]
    assert scan_snapshots(ticker, data_dir=tmp_path).collect()["endpoint"].to_list() == [ticker] * 2
    assert not (tmp_path / "x").exists() and not list(tmp_path.parent.glob("*.parquet"))


def test_the_thread_works_when_woken_and_stops_in_time(path, tmp_path, web, monkeypatch):
    web.files["/a.json"] = json.dumps(day(2)).encode()
    monkeypatch.setattr("data_pipeline.history.importer.LOOK_EVERY", 3600.0)
    one = HistoryImporter(HistoryQueue(path), tmp_path, ("127.0.0.1",), 1 << 30)
    one.start()
    add(path, (f"{web.url}/a.json", "SPX", "gex_zero"))
    one.wake()
    eventually(lambda: one.stats()["completed"] == 1)
    assert one.stop(10)
    assert states(path) == [(1, "completed", 1, None)]


def test_stop_ends_a_download_and_the_job_is_pending_again(path, tmp_path, web):
    web.answers["/held"] = (200, {"Content-Length": "100"}, b"x")
    add(path, (f"{web.url}/held", "SPX", "gex_zero"))
    one = importer(path, tmp_path)
    one.start()
    eventually(lambda: list(tmp_path.rglob("held.part")))
    assert one.stop(10)
    assert states(path) == [(1, "pending", 1, None)]


def test_stop_ends_an_import_and_the_job_is_pending_again(path, tmp_path, web):
    web.files["/a.json"] = json.dumps(day(3000, strikes=40)).encode()
    add(path, (f"{web.url}/a.json", "SPX", "gex_zero"))
    one = importer(path, tmp_path)
    one.start()
    eventually(lambda: list((tmp_path / "lake").glob(".import-*")))
    assert one.stop(10)
    assert states(path) == [(1, "pending", 1, None)]
    assert worked_off(path, tmp_path) == [(1, "completed", 2, None)]
    assert scan_snapshots(data_dir=tmp_path).collect().height == 3000


def test_a_host_that_sends_nothing_holds_up_no_links_but_its_own(path, tmp_path, web, monkeypatch):
    monkeypatch.setattr("data_pipeline.history.importer.LOOK_EVERY", 3600.0)
    monkeypatch.setattr("data_pipeline.history.queue.AT_ONCE", 3)
    web.answers["/held"] = (200, {"Content-Length": "100"}, b"x")
    with Web() as quick:
        there = quick.url.replace("127.0.0.1", "localhost")
        quick.files["/a.json"] = quick.files["/b.json"] = json.dumps(day(2)).encode()
        add(path, *[(f"{web.url}/held?{n}", f"T{n}", "gex_zero") for n in range(10)])
        add(path, (f"{there}/b.json", "T0", "gex_zero"), (f"{there}/a.json", "SPX", "gex_zero"))
        add(path, (f"{there}/a.json", "NDX", "gex_zero"))
        one = HistoryImporter(HistoryQueue(path), tmp_path, ("127.0.0.1", "localhost"), 1 << 30)
        one.start()
        eventually(lambda: one.stats() == {"completed": 2, "failed": 0, "current": [1]})
        assert [asked.split("?")[0] for asked, _ in web.seen] == ["/held"], "one at a time of the slow host"
        assert [asked for asked, _ in quick.seen] == ["/a.json"] * 2, "the folder of T0 has a download"
        assert one.stop(10)
    assert {s[0] for s in states(path) if s[1] == "completed"} == {12, 13}
    assert {s[1] for s in states(path) if s[0] < 12} == {"pending"}


def test_two_threads_that_wait_for_links_stop_at_once_each_time(path, tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.history.importer.LOOK_EVERY", 3600.0)
    for _ in range(20):
        one = importer(path, tmp_path)
        one.start()
        one.wake()
        assert one.stop(10)


def test_a_database_that_is_held_costs_nothing_but_time(path, tmp_path, web, monkeypatch, caplog):
    monkeypatch.setattr("data_pipeline.history.importer.LOOK_EVERY", 0.05)
    web.files["/a.json"] = json.dumps(day(2)).encode()
    add(path, (f"{web.url}/a.json", "SPX", "gex_zero"))
    code = f"import duckdb, sys; c = duckdb.connect({str(path)!r}); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "open\n"
        one = HistoryImporter(HistoryQueue(path, wait=0.01), tmp_path, ("127.0.0.1",), 1 << 30)
        one.start()
        eventually(lambda: "cannot be read" in caplog.text)
        holder.stdin.close()
    eventually(lambda: one.stats()["completed"] == 1)
    assert one.stop(10)


def test_an_import_that_is_killed_is_a_failure_and_the_next_try_is_whole(path, tmp_path, web):
    web.files["/a.json"] = json.dumps(day(3000, strikes=40)).encode()
    add(path, (f"{web.url}/a.json", "SPX", "gex_zero"))
    one = importer(path, tmp_path)
    one.start()
    eventually(lambda: one._child is not None and list((tmp_path / "lake").glob(".import-*")))
    os.kill(one._child.pid, signal.SIGKILL)
    eventually(lambda: one.stats()["failed"] == 1)
    assert one.stop(10)
    assert states(path) == [(1, "failed", 1, "the import ended with code -9")]
    assert HistoryQueue(path).retry(1)
    assert worked_off(path, tmp_path)[0][1] == "completed"
    assert scan_strikes(data_dir=tmp_path).collect().height == 120_000
