import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from data_pipeline.repository import journal as journal_module
from data_pipeline.repository import segments
from data_pipeline.repository.journal import FolderInUse, Journal, NotDurable
from data_pipeline.repository.segments import Reader, Record
from tests.helpers.support import PATIENCE, ROOT, eventually, files_limited_to, journal_record


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path / "journal")
    opened.open()
    yield opened
    opened.close()


def append(journal, payload=b"x", undo=None) -> int:
    return journal.append(lambda: (payload, undo))


def read_all(folder, upto, after=0):
    reader, found = Reader(folder, after), []
    while part := reader.read(upto):
        found += part
    return found


def reopened(journal) -> Journal:
    journal.close()
    again = Journal(journal.folder)
    again.open()
    return again


def in_threads(count, work):
    """Run work(n) in that many threads that begin together; returns what they returned."""
    begin, results = threading.Barrier(count), [None] * count

    def run(n):
        begin.wait(PATIENCE)
        results[n] = work(n)

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    return results


def test_a_record_is_on_disk_when_append_returns(journal):
    assert append(journal, b"one") == 1
    assert append(journal, "zwei é".encode()) == 2
    assert journal.durable == journal.position == 2
    assert read_all(journal.folder, 2) == [Record(1, b"one"), Record(2, "zwei é".encode())]


def test_many_threads_get_dense_ascending_numbers_and_what_they_wrote_is_read_back(journal):
    order = []

    def work(n):
        mine = []
        for i in range(50):
            payload = f"{n}:{i}".encode()
            number = journal.append(lambda: (order.append(payload), (payload, None))[1])
            assert journal.durable >= number
            mine.append((number, payload))
        return mine

    acknowledged = dict(pair for mine in in_threads(16, work) for pair in mine)
    assert sorted(acknowledged) == list(range(1, 801))
    found = read_all(journal.folder, journal.durable)
    assert {record.number: record.payload for record in found} == acknowledged
    assert [record.payload for record in found] == order, "the order of the builds is the journal's"


def test_threads_that_wait_together_share_one_fsync(journal, monkeypatch):
    """The leader is held in its first fdatasync until all others wait: they are written at once."""
    calls, real = [], os.fdatasync

    def slow(fd):
        calls.append(fd)
        if len(calls) == 1:
            eventually(lambda: journal.position == 9)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    in_threads(9, lambda n: append(journal))
    assert journal.durable == 9
    assert len(calls) <= 2


def test_what_waits_to_be_written_is_bounded(journal, monkeypatch):
    monkeypatch.setattr(journal_module, "MOST_PENDING", 3000)
    made, seen = [], []

    def build(number):
        made.append(number)
        seen.append(journal._pending_bytes)
        return b"%4d" % number * 250, None

    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (time.sleep(0.01), real(fd)))
    in_threads(16, lambda n: [journal.append(lambda: build(n)) for _ in range(5)])
    assert len(made) == 80 and max(seen) in range(2000, 3001)
    assert len(read_all(journal.folder, 80)) == 80


def test_on_durable_never_names_a_record_that_is_not_on_disk(journal):
    told, whole = [], []

    def on_durable(number):
        told.append(number)
        whole.append(len(read_all(journal.folder, number)) == number)

    journal.on_durable = on_durable
    in_threads(4, lambda n: [append(journal) for _ in range(10)])
    assert max(told) == 40
    assert all(whole)


def test_a_reader_beside_the_writer_sees_every_record_once_and_never_more_than_it_asked_for(journal):
    reader, seen, done = Reader(journal.folder, 0), [], threading.Event()
    journal.segment_bytes = 2000

    def read():
        while True:
            last = done.is_set()
            upto = journal.durable
            for part in reader.read(upto):
                assert isinstance(part, Record) and part.number <= upto
                seen.append(part.number)
            if last and reader.position == journal.durable:
                return

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    in_threads(4, lambda n: [append(journal, b"x" * 100) for _ in range(50)])
    done.set()
    reading.join(PATIENCE)
    assert seen == list(range(1, 201))
    assert len(segments.list_segments(journal.folder)) > 5


def test_a_new_segment_begins_when_one_is_full_and_its_header_has_the_last_link(journal):
    journal.segment_bytes = 300
    links = iter(range(5, 1000))
    journal.last_link = lambda: next(links)
    for _ in range(9):
        append(journal, b"x" * 80)
    paths = segments.list_segments(journal.folder)
    assert [segments.first_number(path) for path in paths] == [1, 4, 7]
    assert [segments.read_header(path).last_link for path in paths] == [5, 6, 7]
    assert {segments.read_header(path).journal for path in paths} == {journal.id}
    assert [r.number for r in read_all(journal.folder, 9)] == list(range(1, 10))


def test_after_a_restart_it_goes_on_under_the_same_id(journal):
    journal.last_link = lambda: 3
    append(journal, b"one")
    again = reopened(journal)
    assert (again.id, again.durable, again.first_link) == (journal.id, 1, 3)
    assert append(again, b"two") == 2
    assert [r.payload for r in read_all(again.folder, 2)] == [b"one", b"two"]
    again.close()


def test_what_a_killed_process_wrote_last_is_made_durable_before_it_counts(journal, monkeypatch):
    append(journal, b"one")
    path = segments.list_segments(journal.folder)[-1]
    journal.close()
    with open(path, "ab") as file:  # written, and killed before the fsync: no one was told, but the next reader sees it
        file.write(journal_record(2, b"two"))
    synced, real = [], os.fdatasync
    again = Journal(journal.folder)
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    again.open()
    assert again.durable == 2
    assert synced[-2:] == [str(path), str(journal.folder)]
    again.close()


def test_a_disk_that_says_no_when_the_end_is_made_durable_keeps_nobody_from_starting(journal, monkeypatch, caplog):
    append(journal, b"one")
    journal.close()
    again = Journal(journal.folder)
    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", lambda fd: os.fsync(1 << 20))
        again.open()
    assert "the journal's end cannot be made durable: '[Errno 9]" in caplog.text
    assert append(again, b"two") == 2
    again.close()


def test_numbers_that_tables_and_files_have_had_are_not_given_out_again_by_a_journal_that_lost_its_end(journal, caplog):
    for n in range(5):
        append(journal, b"%d" % n)
    journal.close()
    path = segments.list_segments(journal.folder)[-1]
    os.truncate(path, segments.HEADER_BYTES + 2 * (segments.RECORD.size + 1))
    note = {"journal": journal.id, "position": 5, "lengths": {}}
    (journal.folder / "depth.position").write_text(json.dumps(note))
    (journal.folder / "files.position").write_text(json.dumps({**note, "journal": "another", "position": 9}))
    (journal.folder / "tables.position").write_text("torn")
    again = Journal(journal.folder)
    again.open()
    assert again.durable == 5 and "the journal ends at record 2, tables and files have had record 5" in caplog.text
    assert append(again, b"new") == 6
    assert [r.number for r in read_all(again.folder, 6)] == [1, 2, 6]
    again.close()


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_nothing_is_acknowledged_in_a_segment_that_somebody_removed(journal, change):
    append(journal, b"one")
    path = segments.list_segments(journal.folder)[-1]
    content = path.read_bytes()
    path.unlink()
    if change == "replaced":
        path.write_bytes(content)
    with pytest.raises(NotDurable):
        append(journal, b"two")
    assert append(journal, b"three") == 2
    kept = [b"one", b"three"] if change == "replaced" else [b"three"]
    assert [r.payload for r in read_all(journal.folder, 2)] == kept


def test_a_journal_without_a_readable_header_keeps_its_id_where_its_readers_noted_it_and_else_gets_one_for_good(
    tmp_path,
):
    for noted in (True, False):
        first = Journal(tmp_path / str(noted))
        first.open()
        append(first, b"one")
        first.close()
        path = segments.list_segments(first.folder)[-1]
        with open(path, "r+b") as file:
            file.write(bytes(segments.HEADER_BYTES))
        if noted:
            (first.folder / "files.position").write_text(
                json.dumps({"journal": first.id, "position": 1, "lengths": {}})
            )
        ids = set()
        for _ in range(3):
            again = Journal(first.folder)
            again.open()
            ids.add(again.id)
            again.close()
        assert len(ids) == 1 and (ids == {first.id}) == noted
        assert [r.payload for r in read_all(first.folder, 1)] == [b"one"]


def test_without_its_lock_file_a_journal_still_has_one_owner(journal):
    (journal.folder / "lock").unlink()
    with pytest.raises(FolderInUse):
        Journal(journal.folder).open()


def test_an_error_when_a_full_segment_is_closed_costs_nothing(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "journal", segment_bytes=1)
    journal.open()
    append(journal, b"one")
    with monkeypatch.context() as broken:
        real = os.close

        def close(fd):
            real(fd)
            raise OSError(errno.EIO, "Input/output error")

        broken.setattr(os, "close", close)
        with contextlib.suppress(NotDurable):
            append(journal, b"two")
    assert append(journal, b"three") in (2, 3)
    assert read_all(journal.folder, 3)[-1].payload == b"three"
    journal.close()


def test_what_build_raises_goes_to_its_caller_and_leaves_no_number_behind(journal):
    def build():
        raise LookupError("no such thing")

    with pytest.raises(LookupError):
        journal.append(build)
    assert append(journal) == 1
    assert journal.healthy and journal.failures == 0


def limit_reached(journal):
    """No room behind what is there now."""
    return files_limited_to(journal._path.stat().st_size + 10)


@contextlib.contextmanager
def descriptor_closed(journal):
    """fdatasync and write fail with EBADF."""
    os.close(journal._fd)
    yield


@pytest.mark.parametrize("broken", [limit_reached, descriptor_closed])
def test_what_cannot_be_written_is_undone_and_the_next_append_begins_a_new_segment(journal, broken, caplog):
    append(journal, b"one")
    undone = []
    with broken(journal):
        with pytest.raises(NotDurable):
            append(journal, b"lost", lambda: undone.append("lost"))
    assert undone == ["lost"]
    assert (journal.durable, journal.position, journal.failures, journal.healthy) == (1, 1, 1, False)
    assert "500" in caplog.text
    assert append(journal, b"two") == 2
    assert journal.healthy
    assert [segments.first_number(p) for p in segments.list_segments(journal.folder)] == [1, 2]
    assert read_all(journal.folder, 2) == [Record(1, b"one"), Record(2, b"two")]
    again = reopened(journal)
    assert again.durable == 2
    again.close()


def test_everyone_who_waited_for_a_failed_write_is_told_and_undone_in_reverse_order(journal, monkeypatch):
    append(journal, b"before")
    built, undone, outcomes = [], [], []
    # A pipe takes what is written and cannot be synced; the leader is held until everyone has come.
    readable, writable = os.pipe()
    os.dup2(writable, journal._fd)
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: eventually(lambda: journal.position == 11) and real(fd))

    def work(n):
        def build():
            built.append(n)
            return f"lost {n}".encode(), lambda: undone.append(n)

        try:
            journal.append(build)
        except NotDurable as problem:
            outcomes.append(str(problem))

    in_threads(10, work)
    monkeypatch.undo()
    os.close(readable)
    os.close(writable)
    assert len(outcomes) == 10 and sorted(built) == list(range(10))
    assert undone == built[::-1]
    assert (journal.durable, journal.position, journal.failures) == (1, 1, 10)
    assert append(journal, b"after") == 2
    assert read_all(journal.folder, 2) == [Record(1, b"before"), Record(2, b"after")]


def test_failed_records_never_come_back_whatever_happens_after(journal):
    """Writes that fail in the middle of a batch, again and again, and a restart after each."""
    acknowledged = []
    for n in range(1, 12):
        acknowledged.append((append(journal, f"kept {n}".encode()), f"kept {n}".encode()))
        with files_limited_to(journal._path.stat().st_size + n * 3):
            for _ in range(2):
                with contextlib.suppress(NotDurable):
                    number = append(journal, b"lost " * 10)
                    acknowledged.append((number, b"lost " * 10))
        if n % 3 == 0:
            journal = reopened(journal)
    found = read_all(journal.folder, journal.durable)
    assert [(r.number, r.payload) for r in found if isinstance(r, Record)] == acknowledged
    assert not any(payload.startswith(b"lost") for _, payload in acknowledged)
    journal.close()


def test_a_record_that_was_written_whole_in_a_batch_that_failed_does_not_come_back_after_a_restart(
    journal, monkeypatch
):
    append(journal, b"x" * 100)
    real, outcomes = os.fdatasync, []

    def held(fd):
        """The first of three is held until the others wait: those are one batch."""
        eventually(lambda: journal.position == 4)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", held)

    def work(n):
        try:
            outcomes.append(append(journal, b"y" * 100))
        except NotDurable:
            outcomes.append(None)

    # Room for two and a half, however the three are shared out among batches.
    with files_limited_to(journal._path.stat().st_size + 2 * 120 + 60):
        in_threads(3, work)
    monkeypatch.undo()
    kept = journal.durable
    assert outcomes.count(None) == 4 - kept >= 1
    again = reopened(journal)
    assert again.durable == kept
    assert [r.number for r in read_all(again.folder, 100)] == list(range(1, kept + 1))
    again.close()


def test_a_segment_that_cannot_be_begun_leaves_nothing_behind(journal):
    with files_limited_to(50):
        for _ in range(3):
            with pytest.raises(NotDurable):
                append(journal)
    assert sorted(path.name for path in journal.folder.iterdir()) == ["lock"]
    assert append(journal) == 1


def test_a_full_disk_is_an_error_for_who_appends_and_room_heals_it(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        filler = disk / "filler"
        filler.write_bytes(b"x" * 24_000)
        journal = Journal(disk / "journal")
        journal.open()
        acknowledged = []
        with pytest.raises(NotDurable, match="No space left"):
            while True:
                acknowledged.append(append(journal, b"x" * 1000))
        filler.unlink()
        acknowledged.append(append(journal, b"x" * 1000))
        assert acknowledged == list(range(1, len(acknowledged) + 1))
        assert [r.number for r in read_all(journal.folder, journal.durable)] == acknowledged
        journal.close()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_torn_tail_is_not_written_behind(journal):
    append(journal, b"one")
    append(journal, b"two")
    path = segments.list_segments(journal.folder)[0]
    os.truncate(path, path.stat().st_size - 1)
    again = reopened(journal)
    number = append(again, b"three")
    assert number > 2
    found = [r.payload for r in read_all(again.folder, number) if isinstance(r, Record)]
    assert found == [b"one", b"three"]
    assert len(segments.list_segments(again.folder)) == 2
    again.close()


OPEN_IN_A_CHILD = """
import pathlib, sys
from data_pipeline.repository.journal import Journal, FolderInUse
journal = Journal(pathlib.Path(sys.argv[1]))
try:
    journal.open()
except FolderInUse as problem:
    sys.exit(f"in use: {problem}")
journal.append(lambda: (b"from the child", None))
print("open", flush=True)
sys.stdin.read()
"""


def in_a_child(folder) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", OPEN_IN_A_CHILD, str(folder)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_two_processes_cannot_have_one_journal(journal):
    append(journal, b"ours")
    _, problem = in_a_child(journal.folder).communicate(timeout=PATIENCE)
    assert "in use: another bridge is running" in problem
    assert read_all(journal.folder, 10) == [Record(1, b"ours")]


def test_a_process_killed_with_the_journal_leaves_it_to_the_next(tmp_path):
    folder = tmp_path / "journal"
    with in_a_child(folder) as child:
        assert child.stdout.readline() == "open\n"
        journal = Journal(folder)
        with pytest.raises(FolderInUse):
            journal.open()
        journal.close()
        child.kill()
        child.wait(PATIENCE)
    journal.open()
    assert journal.durable == 1
    assert append(journal, b"ours") == 2
    assert [r.payload for r in read_all(folder, 2)] == [b"from the child", b"ours"]
    journal.close()
