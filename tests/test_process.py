"""The server and its writer as two processes: how they start, talk, stand signals, and end."""

import fcntl
import json
import os
import pathlib
import signal
import subprocess

import pytest

from data_pipeline import config, writer
from data_pipeline.background import child_command, child_environment
from data_pipeline.files.views import read_latest
from data_pipeline.lake.nightly import NightlyArchive
from data_pipeline.repository.journal import Journal
from data_pipeline.repository.writer_process import DatabaseUnreadable, WriterProcess
from tests.helpers.support import PATIENCE, RunningBridge, eventually, gex_bridge, gex_payload
from tests.http_server.test_pages import writer_of
from tests.reliability.others import hold


@pytest.fixture
def settings(tmp_path) -> config.Settings:
    return config.load(root=tmp_path, environ={})


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A working directory with a module that must not be imported, and a search path that names it."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "csv.py").write_text("raise SystemExit('imported from the working directory')\n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", os.environ.get("PYTHONPATH", "")]))


def test_the_writer_imports_nothing_of_the_working_directory(settings, trap):
    done = subprocess.run(
        child_command("data_pipeline.writer", "--last-link"),
        env=child_environment(),
        input=settings.to_json().encode() + b"\n",
        capture_output=True,
        timeout=PATIENCE,
    )
    assert (json.loads(done.stdout), done.stderr) == ({"last_link": 0}, b"")


def test_an_archive_run_imports_nothing_of_the_working_directory(settings, trap):
    with writer.Database(settings.database).session():
        pass
    assert NightlyArchive(settings.data_dir, 1).run() == 0


def ignored(pid: int) -> int:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("SigIgn:")).split()[1], 16)


def test_signals_do_not_end_the_writer_and_its_children_do_not_inherit_that(bridge):
    assert bridge.post("/uw", {"n": 1}) == 200
    eventually(lambda: bridge.rows("SELECT 1 FROM universal_webhooks"))
    pid = writer_of(bridge)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(pid, number)
        assert not ignored(pid) & 1 << (number - 1)
    assert bridge.post("/uw", {"n": 2}) == 200
    eventually(lambda: bridge.rows("SELECT count(*) FROM universal_webhooks") == [(2,)])
    assert writer_of(bridge) == pid


def test_a_hangup_is_a_line_and_ends_nothing(bridge):
    bridge.process.send_signal(signal.SIGHUP)
    eventually(lambda: "SIGHUP is ignored" in bridge.log)
    assert bridge.post("/uw", {"n": 1}) == 200
    assert bridge.stop() == 0


def test_a_writer_that_waits_for_another_says_so_and_logs_as_the_server_does(tmp_path):
    (tmp_path / "data" / "journal").mkdir(parents=True)
    with open(tmp_path / "data" / "journal" / "writer.lock", "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        with RunningBridge(tmp_path / "data", "--log-json") as bridge:
            eventually(lambda: "another writer is still on this journal" in bridge.log)
            assert all(json.loads(line)["level"] for line in bridge.log.splitlines())
            fcntl.flock(turn, fcntl.LOCK_UN)


def test_the_last_word_to_a_stopped_writer_is_said_again(settings):
    journal = Journal(settings.folder.journal)
    journal.open()
    process = WriterProcess(settings, journal)
    journal.on_durable = process.tell
    process.start()
    try:
        eventually(lambda: "loader" in process.report)
        child = process._process
        os.kill(child.pid, signal.SIGSTOP)
        while child.stdin.write(b"0\n" * 2048) is not None:
            pass
        number = journal.append(lambda: (b"none of ours", None))
        eventually(lambda: not process._news.is_set() or process._unread)
        os.kill(child.pid, signal.SIGCONT)
        eventually(lambda: process.report["loader"]["position"] == number)
    finally:
        assert process.stop(PATIENCE)
        journal.close()


def test_a_database_that_cannot_be_read_at_the_start_is_one_line(settings):
    with writer.Database(settings.database).session():
        pass
    with hold(settings.database) as holder:
        with pytest.raises(DatabaseUnreadable) as raised:
            WriterProcess(settings, Journal(settings.folder.journal)).ask_last_link()
        code, out, error = gex_bridge("serve", "--port", "0", "--data-dir", settings.data_dir)
        holder.kill()
    assert "close the program that has it open" in str(raised.value) and "\n" not in str(raised.value)
    assert (code, out) == (1, "")
    assert error.startswith("gex-bridge: cannot start: ") and len(error.splitlines()) == 1


def test_the_writers_cleaning_leaves_the_status_refreshers_file_alone(settings):
    kept, gone = (
        settings.folder.views / ".spx_gex_status.json.ab.tmp~",
        settings.folder.views / "SPX" / ".a.json.ab.tmp~",
    )
    gone.parent.mkdir(parents=True)
    kept.touch()
    gone.touch()
    writer.make_ready(settings.folder)
    assert kept.exists() and not gone.exists()


def test_a_data_folder_with_a_question_mark_ends_the_start_with_one_line_and_code_2(tmp_path):
    code, out, error = gex_bridge("serve", "--port", "0", "--data-dir", tmp_path / "a?b")
    assert (code, out, len(error.splitlines())) == (2, "", 1)
    assert "question mark" in error


@pytest.mark.parametrize("depth, is_read", [(500, True), (100_000, False)])
def test_a_latest_json_of_any_depth_holds_up_no_start(tmp_path, depth, is_read):
    """The original took what is nested deeper than this server does; what Python can read of it counts."""
    path = config.DataFolder(tmp_path).latest
    path.parent.mkdir(parents=True)
    document = json.dumps({"SPX": {"snapshot": {**gex_payload()["data"], "deep": "HERE"}}})
    path.write_text(document.replace('"HERE"', "[" * depth + "]" * depth))
    assert bool(read_latest(tmp_path)) == is_read
    assert path.exists() == is_read
