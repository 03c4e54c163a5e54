"""The long run: after tens of thousands of loader sessions and of requests memory, file and times are as they were.

The sessions are the real Loader's, on a real journal and database, one behind
the other without their pauses.  The requests go to a real bridge.  Memory is
compared between the second tenth of the run and its end, times between the
first and the last tenth, the database with a fresh copy of itself.
"""

import json
import os
import pathlib
import statistics
import time

import duckdb

from data_pipeline.payloads import records, store
from data_pipeline.payloads.store import TickerState
from data_pipeline.repository import segments
from data_pipeline.repository.database import Database
from data_pipeline.repository.journal import Journal
from data_pipeline.repository.journal_reader import Cache, DurablePosition, JournalReader, SetAside
from data_pipeline.repository.loader import Loader
from tests.helpers.support import RunningBridge, eventually, gex_payload
from tests.reliability.crash import writer_of
from tests.reliability.load import Load, check_everything_once

ROUNDS, SHORT = 50_000, 60
REQUESTS = 4  # for each round
TICKERS = 6
MOST_GROWTH = 10 << 20  # bytes of memory
WARM = 100_000  # requests; the writer's memory goes up and down by more than that, and is told of fewer than these only
MOST_SIZE = 2.0  # times a fresh copy
SLACK = 3 << 20  # bytes that a small file may have beyond that: DuckDB grows in blocks of 256 KiB for each table
MOST_SLOWDOWN = 1.5  # the last tenth's median session against the first's
CHECKPOINT_EVERY = 20  # sessions; the loader makes one at least each 30 s


def memory(pid: int) -> int:
    line = next(x for x in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) << 10


def run(rounds: int, folder: pathlib.Path) -> str:
    """rounds: loader sessions; REQUESTS times as many requests."""
    return f"{sessions(rounds, folder / 'sessions')}; {requests(REQUESTS * rounds, folder)}"


def _gex(number: int) -> bytes:
    ticker = f"T{number % TICKERS}"
    body = json.dumps(gex_payload(ticker, 1_700_000_000 + number // TICKERS, strikes=20)).encode()
    part = store.Part(body, "data")
    return records.Gex(
        "2025-11-09T15:00:00.5", "gex_zero", TickerState(ticker).merged("snapshot", part, "gex_zero", None)
    ).encode()


def sessions(count: int, folder: pathlib.Path) -> str:
    """The Loader's own steps, each with one new record, on this thread."""
    journal = Journal(folder / "journal", segment_bytes=1 << 20)
    journal.open()
    progress = DurablePosition()
    source = JournalReader(
        folder / "journal", progress, Cache(), SetAside(folder / "journal" / "set-aside.jsonl"), True
    )
    database = Database(folder / "history.duckdb")
    loader = Loader(database, source, journal.id, 0.01)
    times, early = [], 0
    for number in range(count):
        progress.advance(journal.append(lambda: (_gex(number), None)))
        if number % CHECKPOINT_EVERY == 0:
            loader._checkpoint_due = 0.0  # compressed time: as if its interval had passed
        began = time.process_time()  # what else the machine does is not the loader's doing
        loader._step()
        times.append(time.process_time() - began)
        segments.remove_consumed(folder / "journal", loader.safe)
        if number == count // 10:
            early = memory(os.getpid())
    journal.close()
    grown = memory(os.getpid()) - early
    tenth = max(20, count // 10)
    first, last = statistics.median(times[1 : tenth + 1]), statistics.median(times[-tenth:])
    with database.session() as con:
        assert con.execute("SELECT count(*) FROM gex_bridge_snapshots").fetchall() == [(count,)]
    size, fresh = _sizes(database.path)
    assert grown < MOST_GROWTH, f"the loader's memory grew by {grown / 1e6:.1f} MB"
    assert size <= MOST_SIZE * fresh + SLACK, f"the database has {size / 1e6:.1f} MB, a fresh copy {fresh / 1e6:.1f} MB"
    assert last <= MOST_SLOWDOWN * first, (
        f"a session took {1e3 * first:.1f} ms of CPU at first and {1e3 * last:.1f} ms in the end"
    )
    return (
        f"{count:,} loader sessions: memory {grown / 1e6:+.1f} MB, file {size / 1e6:.1f} MB"
        f" against {fresh / 1e6:.1f} MB of a"
        f" fresh copy, {1e3 * first:.1f} ms of CPU a session at first and {1e3 * last:.1f} ms in the end"
    )


def _sizes(path: pathlib.Path) -> tuple[int, int]:
    """Bytes of the database, and of a copy of what is in it."""
    copy = path.with_name("copy.duckdb")
    with duckdb.connect() as con:
        con.execute(f"ATTACH '{path}' AS old (READ_ONLY)")
        con.execute(f"ATTACH '{copy}' AS new (ROW_GROUP_SIZE 4096, STORAGE_VERSION 'v1.5.0')")
        con.execute("COPY FROM DATABASE old TO new")
    return path.stat().st_size, copy.stat().st_size


def requests(count: int, folder: pathlib.Path) -> str:
    """As fast as four clients can; the journal grows meanwhile, and all of it is flushed in the end."""
    with RunningBridge(folder / "data", STOP_TIMEOUT="3600") as bridge:
        processes = bridge.process.pid, eventually(lambda: writer_of(bridge))
        with Load(bridge, clients=4) as load:
            tenths = [_until(load, count * tenth // 10, processes) for tenth in range(1, 11)]
        assert not load.refused
        # The first tenth has the start in it, and what it takes to be warm.
        (early, first), (late, last) = tenths[1], tenths[-1]
        grown = [now - then for now, then in zip(late, early)]
        assert bridge.stop(patience=3600) == 0, bridge.complaints
        assert "not everything was flushed" not in bridge.complaints
    check_everything_once(bridge, load.acknowledged)
    size, fresh = _sizes(bridge.database)
    assert count < WARM or max(grown) < MOST_GROWTH, f"memory grew by {[round(g / 1e6, 1) for g in grown]} MB"
    assert size <= MOST_SIZE * fresh + SLACK, f"the database has {size / 1e6:.1f} MB, a fresh copy {fresh / 1e6:.1f} MB"
    return (
        f"{load.count:,} requests, {first:,.0f} a second in the second tenth, {last:,.0f} in the last:"
        f" memory of the server"
        f" {grown[0] / 1e6:+.1f} MB, of the writer {grown[1] / 1e6:+.1f} MB,"
        f" file {size / 1e6:.1f} MB against {fresh / 1e6:.1f} MB;"
        " 0 lost, 0 doubled"
    )


def _until(load: Load, count: int, processes: tuple[int, int]) -> tuple[list[float], float]:
    """Until so many requests are acknowledged: the processes' median memory meanwhile, and requests a second."""
    began, before, samples = time.monotonic(), load.count, []
    while not samples or load.count < count:
        time.sleep(0.05)
        samples.append(list(map(memory, processes)))
    return [statistics.median(of_one) for of_one in zip(*samples)], (load.count - before) / (time.monotonic() - began)
