import base64
import json
import os
import threading

import pytest

from data_pipeline.payloads.records import Webhook
from data_pipeline.repository import segments
from data_pipeline.repository.attempts import Attempts
from data_pipeline.repository.journal import Journal
from data_pipeline.repository.journal_reader import Cache, DurablePosition, JournalReader, SetAside
from tests.helpers.support import PATIENCE

AT = "2025-11-09T15:16:17.123456"


def webhook(n=1) -> Webhook:
    return Webhook(AT, "127.0.0.1", "", b'{"n": %d}' % n)


class Rig:
    """A journal and the two readers that the writer process has."""

    def __init__(self, root):
        self.journal = Journal(root / "journal")
        self.journal.open()
        self.progress = DurablePosition()
        self.aside = SetAside(root / "journal" / "set-aside.jsonl")
        self.cache = Cache()
        self.first, self.second = (
            JournalReader(self.journal.folder, self.progress, self.cache, self.aside, names) for names in (True, False)
        )

    def append(self, *payloads):
        for payload in payloads:
            self.journal.append(lambda: (payload, None))
        self.progress.advance(self.journal.durable)

    @property
    def kept(self):
        return (
            [json.loads(line) for line in self.aside.path.read_text().splitlines()] if self.aside.path.exists() else []
        )


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path)
    yield made
    made.journal.close()


def test_both_readers_get_every_record_decoded_once_for_both(rig):
    rig.append(*(webhook(n).encode() for n in range(1, 6)))
    first, second = rig.first.read(0, 3), rig.second.read(0, 100)
    assert first == [(n, webhook(n)) for n in (1, 2, 3)]
    assert second == [(n, webhook(n)) for n in range(1, 6)]
    assert all(ours is theirs for (_, ours), (_, theirs) in zip(first, second))
    assert rig.first.read(3, 100) == second[3:]
    assert rig.first.read(5, 100) == []


def test_nothing_is_read_that_was_not_said_to_be_durable(rig):
    rig.append(webhook(1).encode())
    rig.journal.append(lambda: (webhook(2).encode(), None))
    assert [n for n, _ in rig.first.read(0, 100)] == [1]
    rig.progress.advance(2)
    assert [n for n, _ in rig.first.read(1, 100)] == [2]


def test_a_reader_may_begin_again_anywhere(rig):
    rig.append(*(webhook(n).encode() for n in range(1, 6)))
    assert len(rig.first.read(0, 100)) == 5
    assert [n for n, _ in rig.first.read(2, 100)] == [3, 4, 5]


def test_what_is_none_of_ours_comes_as_none_and_is_named_once(rig, caplog):
    rig.append(b"none of ours", webhook(2).encode())
    assert rig.first.read(0, 100) == rig.second.read(0, 100) == [(1, None), (2, webhook(2))]
    (line,) = rig.kept
    assert (line["record"], base64.b64decode(line["raw"])) == (1, b"none of ours")
    assert "record 1 of the journal is set aside" in caplog.text


def test_damaged_bytes_are_kept_and_named_once_and_readers_go_on_behind_them(rig):
    rig.append(*(webhook(n).encode() for n in (1, 2, 3)))
    path = segments.list_segments(rig.journal.folder)[0]
    raw = bytearray(path.read_bytes())
    at = raw.index(b'{"n": 2}')
    raw[at] ^= 0xFF
    path.write_bytes(raw)
    for source in (rig.first, rig.second):
        assert source.read(0, 100) == [(1, webhook(1)), (3, webhook(3))]
    (line,) = rig.kept
    assert line["record"] == 2 and path.name in line["reason"]
    assert bytes(raw[at : at + 8]) in base64.b64decode(line["raw"])


def test_readers_get_behind_a_torn_tail_without_a_record_to_come(rig):
    """Else they would wait for it for ever, and a stop would never be complete."""
    rig.append(*(webhook(n).encode() for n in (1, 2)))
    path = segments.list_segments(rig.journal.folder)[0]
    path.write_bytes(path.read_bytes()[:-1])
    for source in (rig.first, rig.second):
        assert source.read(0, 100) == [(1, webhook(1)), (2, None)]
        assert source.read(2, 100) == []
    assert len(rig.kept) == 1


def test_a_record_can_be_set_aside_with_its_bytes(rig, caplog):
    rig.append(webhook(1).encode())
    rig.first.read(0, 100)
    rig.first.set_aside(1, "for a\nreason \ud800")
    (line,) = rig.kept
    assert base64.b64decode(line["raw"]) == webhook(1).encode()
    assert "for a\nreason" not in caplog.text and "for a\\nreason \\ud800" in caplog.text
    assert rig.aside.count == 1


def test_what_is_set_aside_is_durable_and_behind_half_a_line_has_one_of_its_own(rig, monkeypatch):
    rig.append(webhook(1).encode())
    rig.aside.path.write_bytes(b'{"at": "2025-1')
    synced, real = [], os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))
    rig.first.read(0, 100)
    assert rig.first.set_aside(1, "a reason")
    torn, line = rig.aside.path.read_text().splitlines()
    assert torn == '{"at": "2025-1' and json.loads(line)["record"] == 1
    assert synced == [str(rig.aside.path)]


def test_whoever_waits_is_woken_by_news_and_by_the_end():
    progress, woken = DurablePosition(), []

    def wait(number):
        progress.wait_beyond(number)
        woken.append(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in (0, 5)]
    for thread in threads:
        thread.start()
    progress.advance(5)
    threads[0].join(PATIENCE)
    assert woken == [0]
    progress.advance(3)
    assert progress.durable == 5
    progress.end()
    threads[1].join(PATIENCE)
    assert woken == [0, 5]
    progress.wait_beyond(1000)


def test_the_shared_cache_is_bounded_in_records_and_in_bytes():
    """One reader may be far ahead while the other waits for the database."""
    cache = Cache()
    for number in range(1, 2 * Cache.SIZE):
        cache.decode(segments.Record(number, webhook(number).encode()))
    assert len(cache._records) == Cache.SIZE
    large = Webhook(AT, "::1", "", b" " * (Cache.BYTES // 4)).encode()
    for number in range(2000, 2010):
        cache.decode(segments.Record(number, large))
        cache.decode(segments.Record(number, large))
        cache.decode(segments.Record(number, large))
    assert cache._bytes == sum(size for _, size in cache._records.values()) <= Cache.BYTES
    assert list(cache._records) == [2007, 2008, 2009]


def test_only_three_deaths_on_a_record_alone_condemn_it(tmp_path):
    def life(first: int, last: int) -> Attempts:
        """A process that dies while it works on these records."""
        attempts = Attempts(tmp_path / "attempt")
        attempts.begin(first, last)
        return attempts

    for first, last in ((5, 20), (5, 8), (5, 5), (5, 5)):
        life(first, last)
    assert not Attempts(tmp_path / "attempt").is_deadly(5)  # four deaths, but two of them alone
    life(5, 5)
    assert Attempts(tmp_path / "attempt").is_deadly(5)
    assert not Attempts(tmp_path / "attempt").is_deadly(6)
