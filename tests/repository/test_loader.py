import contextlib
import json
import os
import subprocess
import sys

import duckdb
import pytest

from data_pipeline.payloads.records import Link, Webhook
from data_pipeline.repository import loader as loader_module
from data_pipeline.repository import segments
from data_pipeline.repository.database import Database
from data_pipeline.repository.journal import noted_position
from data_pipeline.repository.loader import Loader
from tests.helpers.support import PATIENCE, ROOT, eventually, read
from tests.repository.test_database import held_by_another_process
from tests.repository.test_journal_reader import Rig
from tests.repository.test_rows import AT, gex


class LoaderRig(Rig):
    """Journal, source and loader on one folder."""

    def __init__(self, root, interval=0.01):
        super().__init__(root)
        self.progress.advance(self.journal.durable)
        self.path = root / "raw" / "gex" / "gex_history.duckdb"
        self.loader = Loader(Database(self.path), self.first, self.journal.id, interval)

    def post(self, *records):
        self.append(*(record if isinstance(record, bytes) else record.encode() for record in records))

    def wait(self):
        """Until everything is in the tables."""
        eventually(
            lambda: self.loader.position == self.progress.durable and not self.loader.trouble, self.loader.trouble
        )

    def stop(self):
        self.progress.end()
        assert self.loader.stop(PATIENCE)

    def ask(self, query):
        return read(self.path, query)


@pytest.fixture
def rig(tmp_path):
    made = LoaderRig(tmp_path)
    yield made
    if made.loader._thread.is_alive():
        made.stop()
    made.journal.close()


def webhooks(*numbers):
    return [Webhook(AT, "127.0.0.1", "agent", b'{"n": %d}' % n) for n in numbers]


def posted(rig):
    """The n of every webhook in the table, in the order of their ids, which must be dense."""
    rows = rig.ask("SELECT id, payload_json FROM universal_webhooks ORDER BY id")
    assert [id_ for id_, _ in rows] == list(range(1, len(rows) + 1))
    return [json.loads(text)["n"] for _, text in rows]


def test_everything_new_goes_into_all_tables_in_one_session(rig):
    rig.post(
        gex({"timestamp": 1, "spot": 2, "strikes": [[5300, 1.5]]}),
        Link(AT, 1, "http://x", "SPX", "gex_zero"),
        *webhooks(1),
        Webhook(AT, "::1", "", b'{"topic": "option_trades_super_algo", "symbol": "SPX", "n": 2}'),
    )
    rig.loader.start()
    rig.wait()
    assert rig.loader.sessions == 1
    assert rig.ask("SELECT ticker, timestamp, spot FROM gex_bridge_snapshots") == [("SPX", 1, 2.0)]
    assert rig.ask("SELECT strike, gamma_now FROM gex_bridge_strikes") == [(5300.0, 1.5)]
    assert rig.ask("SELECT id, url, status, created_at FROM gex_history_queue") == [
        (1, "http://x", "pending", "2025-11-09 15:16:17")
    ]
    assert rig.ask("SELECT symbol FROM option_trades_events") == [("SPX",)]
    assert posted(rig) == [1, 2]
    rig.stop()
    assert rig.loader.safe == rig.loader.position == 4
    assert not rig.path.with_name(rig.path.name + ".wal").exists()


POISON = {
    "a number of more than 64 bits": Link(AT, 2**70, "http://x", "SPX", "gex_zero"),
    "null where there must be none": Link(AT, 1, None, "SPX", "gex_zero"),
    "text that has no UTF-8": Webhook(AT, "\ud800", "", b"{}"),
    "a number where text is due": Webhook(AT, 5, "", b"{}"),
    "no JSON": Webhook(AT, "::1", "", b"{not json"),
    "nested beyond writing": Webhook(AT, "::1", "", b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "no object": Webhook(AT, "::1", "", b"5"),
    "none of ours": b"none of ours",
}


@pytest.mark.parametrize("poison", POISON)
def test_a_record_that_cannot_be_loaded_is_set_aside_and_named_and_the_rest_of_its_batch_is_there(rig, caplog, poison):
    rig.post(*webhooks(1, 2), POISON[poison], *webhooks(3, 4, 5))
    rig.loader.start()
    rig.wait()
    assert posted(rig) == [1, 2, 3, 4, 5]
    assert [line["record"] for line in rig.kept] == [3]
    assert "record 3 of the journal is set aside" in caplog.text
    assert rig.loader.sessions == 1


def test_many_poisoned_records_cost_only_themselves(rig):
    records, good = [], []
    for n in range(1, 120):
        if n % 7 == 0 or 40 < n < 50:
            records.append(POISON["text that has no UTF-8"])
        else:
            records += webhooks(n)
            good.append(n)
    rig.post(*records)
    rig.loader.start()
    rig.wait()
    assert posted(rig) == good
    assert len(rig.kept) == rig.loader.set_aside == 119 - len(good)


def test_a_torn_tail_keeps_nobody_waiting(tmp_path):
    rig = LoaderRig(tmp_path)
    rig.post(*webhooks(1, 2))
    rig.journal.close()
    path = segments.list_segments(rig.journal.folder)[0]
    os.truncate(path, path.stat().st_size - 1)
    again = LoaderRig(tmp_path)
    again.loader.start()
    again.wait()
    again.stop()
    assert posted(again) == [1]
    assert again.loader.safe == again.journal.durable
    again.journal.close()


LOAD_AND_WAIT = """
import pathlib, sys
from tests.repository.test_loader import LoaderRig, webhooks
rig = LoaderRig(pathlib.Path(sys.argv[1]))
rig.post(*webhooks(*range(int(sys.argv[2]), int(sys.argv[3]))))
rig.loader.start()
rig.wait()
print(rig.loader.position, rig.loader.safe, flush=True)
sys.stdin.read()
"""


def test_killed_between_commit_and_checkpoint_nothing_is_lost_or_applied_twice(tmp_path):
    for first in (1, 21, 41):
        with subprocess.Popen(
            [sys.executable, "-c", LOAD_AND_WAIT, str(tmp_path), str(first), str(first + 20)],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as child:
            position, safe = map(int, child.stdout.readline().split())
            child.kill()
        assert position == first + 19 and safe < position
    rig = LoaderRig(tmp_path)
    assert posted(rig) == list(range(1, 61)), "readers see what is in the write-ahead log"
    rig.post(*webhooks(61))
    rig.loader.start()
    rig.wait()
    rig.stop()
    assert posted(rig) == list(range(1, 62))
    rig.journal.close()


def test_a_session_killed_in_the_middle_is_applied_once(tmp_path):
    """Killed just before the commit, and just after it."""
    script = """
import os, pathlib, sys
from data_pipeline.repository import loader
from tests.repository.test_loader import LoaderRig, webhooks
rig = LoaderRig(pathlib.Path(sys.argv[1]))
real = loader.note_position
def lethal(con, journal, upto):
    real(con, journal, upto)
    if sys.argv[2] == "after":
        con.execute("COMMIT")
    os._exit(9)
loader.note_position = lethal
rig.post(*webhooks(*map(int, sys.argv[3:])))
rig.loader.start()
rig.loader._thread.join()
"""
    for n, moment in enumerate(("before", "after", "before"), 1):
        code = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), moment, str(n)], cwd=ROOT, timeout=PATIENCE
        ).returncode
        assert code == 9
    rig = LoaderRig(tmp_path)
    rig.loader.start()
    rig.wait()
    rig.stop()
    assert posted(rig) == [1, 2, 3]
    rig.journal.close()


def test_while_another_process_has_the_database_records_wait_and_are_loaded_after(rig, caplog, monkeypatch):
    monkeypatch.setattr(loader_module, "BUSY_WAIT", 0.05)
    rig.post(*webhooks(1))
    rig.loader.start()
    rig.wait()
    with held_by_another_process(rig.path):
        rig.post(*webhooks(2, 3))
        eventually(lambda: rig.loader.busy >= 3)
        assert rig.loader.trouble
    rig.wait()
    assert posted(rig) == [1, 2, 3]
    assert caplog.text.count("records wait in the journal") == 1, "a line at most once a minute"


def test_a_record_that_cannot_be_loaded_is_set_aside_once_however_often_its_batch_is_tried(rig, monkeypatch):
    monkeypatch.setattr(loader_module, "BUSY_WAIT", 0.05)
    rig.post(*webhooks(1))
    rig.loader.start()
    rig.wait()
    with held_by_another_process(rig.path):
        rig.post(*webhooks(2), POISON["no object"], POISON["none of ours"], *webhooks(3))
        eventually(lambda: rig.loader.busy >= 3)
    rig.wait()
    assert posted(rig) == [1, 2, 3]
    assert sorted(line["record"] for line in rig.kept) == [3, 4]
    assert rig.loader.set_aside == 1 and rig.aside.count == 2


def test_a_database_taken_away_is_begun_anew_with_what_the_journal_has(rig):
    rig.post(*webhooks(1, 2))
    rig.loader.start()
    rig.wait()
    for path in rig.path.parent.iterdir():
        path.unlink()
    rig.post(*webhooks(3))
    rig.wait()
    assert posted(rig) == [1, 2, 3]


def test_a_database_file_taken_away_without_its_log_stops_nothing(rig):
    rig.post(*webhooks(1))
    rig.loader.start()
    rig.wait()
    rig.post(*webhooks(2))
    rig.wait()
    rig.path.unlink()
    rig.post(*webhooks(3))
    rig.wait()
    assert posted(rig)[-1] == 3


@pytest.mark.parametrize("kind", ["empty", "older"])
def test_a_database_put_in_its_place_gets_what_it_lacks(rig, tmp_path, kind):
    rig.post(*webhooks(1, 2))
    rig.loader.start()
    rig.wait()
    rig.stop()
    other = tmp_path / "other.duckdb"
    if kind == "empty":
        duckdb.connect(str(other)).close()
    else:
        other.write_bytes(rig.path.read_bytes())
    rig.journal.close()
    again = LoaderRig(tmp_path)
    again.post(*webhooks(3))
    again.loader.start()
    again.wait()
    again.path.with_name(again.path.name + ".wal").unlink(missing_ok=True)
    other.replace(again.path)
    again.post(*webhooks(4))
    again.wait()
    assert posted(again) == [1, 2, 3, 4]
    again.stop()
    again.journal.close()


def test_an_older_copy_of_the_journal_costs_nothing_that_comes_after(rig, tmp_path, caplog):
    rig.post(*webhooks(1, 2))
    rig.journal.close()
    older = {path.name: path.read_bytes() for path in rig.journal.folder.glob("*.journal")}
    rig.journal.open()
    rig.post(*webhooks(3, 4, 5))
    rig.loader.start()
    rig.wait()
    rig.stop()
    rig.journal.close()
    for path in rig.journal.folder.glob("*.journal"):
        path.unlink()
    for name, content in older.items():
        (rig.journal.folder / name).write_bytes(content)
    again = LoaderRig(tmp_path)
    again.loader.end = again.journal.durable
    again.post(*webhooks(6))
    again.loader.start()
    again.wait()
    assert posted(again) == [1, 2, 3, 4, 5, 6]
    assert "the tables have record 5, and the journal ended at 2 when it was opened" in caplog.text
    again.stop()
    again.journal.close()


def test_how_far_the_tables_may_be_is_noted_before_they_are(rig, monkeypatch):
    rig.loader.note, seen = rig.journal.folder / "tables.position", []
    monkeypatch.setattr(
        rig.loader, "_apply", lambda *args: (seen.append(noted_position(rig.journal.folder, rig.journal.id)), 1 / 0)
    )
    rig.post(*webhooks(1, 2, 3))
    rig.loader.start()
    eventually(lambda: seen)
    assert seen[0] == 3
    monkeypatch.undo()
    rig.wait()
    assert posted(rig) == [1, 2, 3]


def test_records_that_are_not_in_the_journal_are_named(rig, caplog):
    rig.journal.segment_bytes = 1
    rig.post(*webhooks(1, 2, 3, 4))
    segments.list_segments(rig.journal.folder)[1].unlink()
    rig.loader.start()
    rig.wait()
    assert posted(rig) == [1, 3, 4]
    assert caplog.text.count("records 2 to 2 are not in the journal") == 1


def test_a_damaged_database_is_moved_aside_and_a_new_one_begun(rig, caplog):
    rig.post(*webhooks(1))
    rig.loader.start()
    rig.wait()
    rig.stop()
    rig.journal.close()
    rig.path.write_bytes(b"\0" * rig.path.stat().st_size)
    again = LoaderRig(rig.path.parents[2])
    again.post(*webhooks(2))
    again.loader.start()
    again.wait()
    assert posted(again) == [1, 2]
    assert "is damaged and now lies at" in caplog.text
    assert len(list(rig.path.parent.glob("*.damaged-*"))) >= 1
    again.stop()
    again.journal.close()


def test_ids_count_up_and_are_never_used_again_after_deletes(rig):
    rig.post(*webhooks(1, 2, 3))
    rig.loader.start()
    rig.wait()
    with Database(rig.path).session(PATIENCE) as con:
        con.execute("DELETE FROM universal_webhooks WHERE id > 1")
    rig.post(*webhooks(4))
    rig.wait()
    assert rig.ask("SELECT id FROM universal_webhooks ORDER BY id") == [(1,), (4,)]


def test_a_full_disk_costs_time_only(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        rig = LoaderRig(tmp_path)
        rig.path = disk / "gex_history.duckdb"
        rig.loader.database = Database(rig.path)
        rig.post(*webhooks(1))
        rig.loader.start()
        rig.wait()
        filler = disk / "filler"
        with contextlib.suppress(OSError), open(filler, "wb") as file:
            while True:
                file.write(b"x" * 4096)
                file.flush()
        rig.post(
            *(
                Webhook(AT, "::1", "", b'{"n": %d, "x": "%s"}' % (n, os.urandom(5000).hex().encode()))
                for n in range(2, 30)
            )
        )
        eventually(lambda: rig.loader.trouble)
        assert "space" in rig.loader.trouble.lower(), rig.loader.trouble
        filler.unlink()
        rig.wait()
        rig.stop()
        assert posted(rig) == list(range(1, 30))
        assert rig.kept == []
        rig.journal.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


DIES = """
import os, pathlib, sys
from data_pipeline.repository.rows import Rows
from tests.repository.test_loader import LoaderRig
add = Rows.add
def deadly(rows, record):
    if b'"n": 77' in record.raw:
        os.kill(os.getpid(), 9)
    add(rows, record)
Rows.add = deadly
rig = LoaderRig(pathlib.Path(sys.argv[1]))
rig.loader.start()
rig.wait()
rig.stop()
"""


def test_a_record_on_which_the_process_dies_each_time_is_found_and_set_aside_and_the_others_are_loaded(rig, tmp_path):
    rig.post(*webhooks(*range(1, 151)))
    rig.journal.close()
    deaths = 0
    while subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], cwd=ROOT).returncode:
        deaths += 1
        assert deaths < 10
    assert deaths >= 3
    assert rig.ask("SELECT count(*), count(*) FILTER (WHERE payload_json = '{\"n\": 77}') FROM universal_webhooks") == [
        (149, 0)
    ]
    (line,) = (tmp_path / "journal" / "set-aside.jsonl").read_text().splitlines()
    assert json.loads(line)["record"] == 77 and json.loads(line)["reason"] == f"the writer died on it {deaths} times"


def test_deaths_while_another_process_has_the_database_count_for_nothing(rig, tmp_path):
    rig.post(*webhooks(1))
    rig.loader.start()
    rig.wait()
    with held_by_another_process(rig.path):
        rig.post(*webhooks(2))
        eventually(lambda: rig.loader.busy)
        note = json.loads((tmp_path / "journal" / "tables.attempt").read_text())
        assert note["working"] == 0 or rig.loader.position is None
