import datetime
import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.config import DataFolder
from data_pipeline.files import depth
from data_pipeline.files.depth import FLUSH_EVENTS, RETRY_PAUSE, DepthEvent, DepthPersistor, depth_event
from data_pipeline.files.growing import GrowingFiles
from data_pipeline.payloads.records import Gex
from data_pipeline.payloads.store import Part, TickerState
from tests.helpers import strategies
from tests.helpers.support import PATIENCE, eventually

AT = "2025-11-09T15:16:17.123456"
JOURNAL = "0123456789abcdef" * 2
A, B = "depth/A/day.jsonl", "depth/B/day.jsonl"


def record(data, ticker="SPX", endpoint="gex_zero", kind="snapshot") -> Gex:
    part = Part(json.dumps({"data": data}).encode(), "data")
    return Gex(AT, endpoint, TickerState(ticker).merged(kind, part, endpoint, None))


own = st.sampled_from(["SPX", "gex_zero", "", "snapshot", AT]) | strategies.values
payloads = strategies.some_of(timestamp=own, ticker=own, endpoint=own, payload_kind=own)


@given(payloads, st.sampled_from(["SPX", "\ud800"]), st.sampled_from(["gex_zero", "", None]))
def test_a_line_is_the_data_with_its_four_fields_set(data, ticker, endpoint):
    made = record(data, ticker, endpoint)
    data = made.data  # what the parser made of it: two keys may have become one
    timestamp = AT if data.get("timestamp") is None else data["timestamp"]
    expected = json.dumps(
        {**data, "timestamp": timestamp, "ticker": ticker, "endpoint": endpoint or "", "payload_kind": "snapshot"}
    )
    assert depth_event(7, made).line == expected.encode("ascii") + b"\n"


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"timestamp": 1},
        {"timestamp": None},
        {"timestamp": float("nan")},
        {"ticker": "SPX"},
        {"ticker": "spx"},
        {"endpoint": "gex_zero", "spot": 1},
        {"endpoint": 0},
        {"payload_kind": True},
        {"spot": "\ud800", "timestamp": 0},
    ],
)
def test_fields_keep_their_place_and_the_missing_ones_come_last(data):
    sets = {
        "timestamp": AT if data.get("timestamp") is None else data["timestamp"],
        "ticker": "SPX",
        "endpoint": "gex_zero",
        "payload_kind": "snapshot",
    }
    assert depth_event(7, record(data)).line.decode() == json.dumps({**data, **sets}) + "\n"


@pytest.mark.parametrize(
    "timestamp, day",
    [
        (1762732799, "2025-11-09"),
        (1762732800, "2025-11-10"),
        (1762732800000, "2025-11-10"),
        ("2025-11-10T00:30:00+01:00", "2025-11-09"),
        ("2025-11-10T00:30:00", "2025-11-10"),
        ("1762732800", "2025-11-10"),
        (None, "2025-11-09"),
        ("../../x", "2025-11-09"),
        ([], "2025-11-09"),
        (10**400, "2025-11-09"),
    ],
)
def test_the_file_is_the_tickers_and_the_timestamps_day(timestamp, day):
    assert depth_event(7, record({"timestamp": timestamp})).name == f"depth/SPX/{day}.jsonl"


def test_a_ticker_cannot_leave_the_folder():
    assert depth_event(7, record({"timestamp": 0}, "../../ETC")).name == "depth/..%2F..%2FETC/1970-01-01.jsonl"


class Clock:
    """Time that passes when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def persistor(tmp_path):
    files = GrowingFiles(tmp_path, tmp_path / "journal" / "position", JOURNAL)
    files.open()
    made = DepthPersistor(files, Clock())
    yield made
    if made._thread.is_alive():
        assert made.stop(PATIENCE)


class Feeder:
    """Offers numbered events; FLUSH_EVENTS of them are written at once."""

    def __init__(self, persistor):
        self.persistor = persistor
        self.number = persistor.files.position
        self.waiting = 0
        self.sent: dict[str, bytes] = {}

    def offer(self, name="", count=1):
        for _ in range(count):
            self.number += 1
            line = f'{{"n": {self.number}}}\n'.encode() if name else b""
            assert self.persistor.enqueue(DepthEvent(self.number, name, line))
            self.sent[name] = self.sent.get(name, b"") + line
            self.waiting += bool(line)

    def flush(self, name):
        """Fill the batch up, and wait until it is dealt with."""
        self.offer(name, FLUSH_EVENTS - self.waiting)
        self.waiting = 0
        eventually(lambda: self.persistor._last == self.number, "the batch is written")

    def text(self, name):
        return (self.persistor.files.root / name).read_bytes()


def blocked(root, name):
    """Make a file impossible to write: a folder has its name."""
    (root / name).mkdir(parents=True)


def test_fifty_events_are_written_at_once(persistor):
    feeder = Feeder(persistor)
    persistor.start()
    feeder.flush(A)
    assert feeder.text(A) == feeder.sent[A]
    assert (persistor.written, persistor.enqueued, persistor.dropped) == (50, 50, 0)
    assert persistor.files.position == 50


def test_fewer_events_are_written_after_a_while(persistor, monkeypatch):
    monkeypatch.setattr(depth, "FLUSH_INTERVAL", 0.1)
    feeder = Feeder(persistor)
    persistor.start()
    feeder.offer(A)
    feeder.offer(None)
    eventually(lambda: persistor.files.noted == 2, "the position is noted when all is quiet")
    assert feeder.text(A) == feeder.sent[A]


def test_stop_writes_what_is_queued(persistor):
    feeder = Feeder(persistor)
    feeder.offer(A, 120)
    feeder.offer(B, 7)
    feeder.offer(None, 3)
    persistor.start()
    assert persistor.stop(PATIENCE)
    assert (feeder.text(A), feeder.text(B)) == (feeder.sent[A], feeder.sent[B])
    assert persistor.files.noted == persistor.files.position == 130
    assert persistor.stats()["queue"] == 0


def test_an_event_that_finds_no_room_is_dropped_and_counted_after_the_wait(persistor, monkeypatch):
    monkeypatch.setattr(depth, "PUT_WAIT", 0.01)
    feeder = Feeder(persistor)
    feeder.offer(A, depth.QUEUE_SIZE)
    assert not persistor.enqueue(DepthEvent(feeder.number + 1, A, b"no room\n"))
    assert (persistor.dropped, persistor.enqueued) == (1, depth.QUEUE_SIZE)


def test_an_event_that_gets_room_during_the_wait_is_taken(persistor, monkeypatch):
    monkeypatch.setattr(depth, "PUT_WAIT", PATIENCE)
    feeder = Feeder(persistor)
    feeder.offer(A, depth.QUEUE_SIZE)
    waiting = threading.Thread(target=feeder.offer, args=(A,))
    waiting.start()
    persistor.start()
    waiting.join(PATIENCE)
    assert persistor.stop(PATIENCE)
    assert feeder.text(A) == feeder.sent[A]
    assert persistor.dropped == 0


def test_a_file_that_fails_is_tried_again_after_the_pause_and_keeps_its_order(persistor, tmp_path, caplog):
    blocked(tmp_path, A)
    feeder = Feeder(persistor)
    persistor.start()
    feeder.offer(A)
    feeder.flush(B)
    assert feeder.text(B) == feeder.sent[B]
    assert (persistor.written, persistor.retried) == (FLUSH_EVENTS - 1, 0)
    assert persistor.files.position == 0, "the journal must keep the event that is nowhere"
    assert A in caplog.text
    (tmp_path / A).rmdir()
    feeder.offer(A, 2)
    feeder.flush(B)
    assert not (tmp_path / A).exists(), "what comes later waits behind what failed"
    persistor.clock.now += RETRY_PAUSE
    feeder.flush(B)
    eventually(lambda: persistor.retried == 1 and persistor.files.position == feeder.number)
    assert feeder.text(A) == feeder.sent[A]
    assert feeder.text(B) == feeder.sent[B]


def test_after_three_tries_the_events_are_kept_as_dead_letters(persistor, tmp_path):
    blocked(tmp_path, A)
    feeder = Feeder(persistor)
    persistor.start()
    feeder.offer(A, 2)
    feeder.flush(B)
    for tries in (1, 2, 3):
        persistor.clock.now += RETRY_PAUSE - 1
        feeder.flush(B)
        assert persistor.retried == tries - 1
        assert persistor.files.position == 0
        persistor.clock.now += 1
        feeder.flush(B)
        eventually(lambda: persistor.retried == tries)
    eventually(lambda: persistor.files.position == feeder.number)
    letters = [json.loads(line) for line in (tmp_path / DataFolder.DEAD_LETTERS).read_text().splitlines()]
    assert [(letter["file"], letter["event"]) for letter in letters] == [(A, {"n": 1}), (A, {"n": 2})]
    assert all("directory" in letter["error"] for letter in letters)
    assert persistor.dead_lettered == 2
    (tmp_path / A).rmdir()
    feeder.offer(A)
    feeder.flush(B)
    assert feeder.text(A) == b'{"n": %d}\n' % (feeder.number - FLUSH_EVENTS + 1)


def test_where_dead_letters_cannot_be_kept_the_journal_keeps_the_events(persistor, tmp_path):
    blocked(tmp_path, A)
    blocked(tmp_path, DataFolder.DEAD_LETTERS)
    feeder = Feeder(persistor)
    persistor.start()
    feeder.offer(A)
    feeder.flush(B)
    for tries in range(1, 6):
        persistor.clock.now += RETRY_PAUSE
        feeder.flush(B)
        eventually(lambda: persistor.retried >= tries)
    assert (persistor.dead_lettered, persistor.files.position) == (0, 0)
    assert persistor.stop(PATIENCE)
    assert persistor.files.position == 0


def test_what_waits_for_another_try_is_bounded_and_the_rest_stays_in_the_queue(persistor, tmp_path, monkeypatch):
    monkeypatch.setattr(depth, "RETRY_BYTES", 100)
    blocked(tmp_path, A)
    feeder = Feeder(persistor)
    persistor.start()
    feeder.flush(A)
    feeder.offer(B, 2 * FLUSH_EVENTS)
    eventually(lambda: persistor._queue.qsize() == 2 * FLUSH_EVENTS)
    assert sum(len(waiting.events) for waiting in persistor._retries.values()) == FLUSH_EVENTS
    (tmp_path / A).rmdir()
    persistor.clock.now += RETRY_PAUSE
    eventually(lambda: persistor.files.position == feeder.number)
    assert (feeder.text(A), feeder.text(B)) == (feeder.sent[A], feeder.sent[B])


def test_what_waits_at_the_end_gets_a_last_chance(persistor, tmp_path):
    blocked(tmp_path, A)
    feeder = Feeder(persistor)
    persistor.start()
    feeder.offer(A, 3)
    feeder.flush(B)
    (tmp_path / A).rmdir()
    assert persistor.stop(PATIENCE)
    assert feeder.text(A) == feeder.sent[A]
    assert persistor.files.position == feeder.number


def test_what_is_nowhere_at_the_end_comes_again_from_the_journal_once(persistor, tmp_path):
    blocked(tmp_path, A)
    feeder = Feeder(persistor)
    persistor.start()
    feeder.offer(A, 3)
    feeder.flush(B)
    assert persistor.stop(PATIENCE)
    (tmp_path / A).rmdir()
    files = GrowingFiles(tmp_path, tmp_path / "journal" / "position", JOURNAL)
    assert files.open() == 0
    second = DepthPersistor(files)
    again = Feeder(second)
    again.offer(A, 3)
    again.offer(B, FLUSH_EVENTS - 3)
    second.start()
    assert second.stop(PATIENCE)
    assert (again.text(A), again.text(B)) == (feeder.sent[A], feeder.sent[B])


def test_events_wait_in_order_while_the_note_cannot_be_written(persistor, tmp_path, caplog):
    (tmp_path / "journal").write_bytes(b"a file where the note's folder should be")
    feeder = Feeder(persistor)
    persistor.start()
    feeder.offer(A, FLUSH_EVENTS + 3)
    eventually(lambda: "wait in the journal" in caplog.text)
    assert not (tmp_path / A).exists()
    (tmp_path / "journal").unlink()
    assert persistor.stop(PATIENCE)
    assert feeder.text(A) == feeder.sent[A]
    assert persistor.files.position == feeder.number


def test_trouble_with_dead_letters_writes_nothing_twice(persistor, tmp_path, caplog):
    """The batch that was just written must not be put back because of what came after it."""
    blocked(tmp_path, A)
    feeder = Feeder(persistor)
    persistor.start()
    feeder.offer(A)
    feeder.flush(B)
    for tries in (1, 2):
        persistor.clock.now += RETRY_PAUSE
        feeder.flush(B)
        eventually(lambda: persistor.retried == tries)
    note = tmp_path / "journal" / "position"
    note.unlink()
    blocked(tmp_path, "journal/position/in-the-way")
    persistor.clock.now += RETRY_PAUSE
    feeder.flush(B)
    eventually(lambda: "wait in the journal" in caplog.text)
    (note / "in-the-way").rmdir()
    note.rmdir()
    assert persistor.stop(PATIENCE)
    assert feeder.text(B) == feeder.sent[B]
    assert (persistor.dead_lettered, persistor.files.position) == (1, feeder.number)


def test_a_file_a_day(persistor, tmp_path):
    feeder_number = 0
    for day in (9, 10):
        for hour in (0, 23):
            feeder_number += 1
            at = datetime.datetime(2025, 11, day, hour, tzinfo=datetime.UTC)
            assert persistor.enqueue(depth_event(feeder_number, record({"timestamp": at.timestamp()})))
    persistor.start()
    assert persistor.stop(PATIENCE)
    assert sorted(p.name for p in (tmp_path / "depth" / "SPX").iterdir()) == ["2025-11-09.jsonl", "2025-11-10.jsonl"]
    for path in (tmp_path / "depth" / "SPX").iterdir():
        assert len(path.read_text().splitlines()) == 2
