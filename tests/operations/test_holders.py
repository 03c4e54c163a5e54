import fcntl
import os
import pathlib
import subprocess
import sys

from data_pipeline.operations import holders
from tests.helpers.support import eventually

HOLD = """
import fcntl, sys
file = open(sys.argv[1])
if sys.argv[2] == "lock":
    fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.readline()
"""


def holding(path, how):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child.stdout.readline()
    return child


def test_who_has_a_file_open_and_who_has_it_locked_is_found(tmp_path):
    path = tmp_path / "a file"
    path.touch()
    with holding(path, "open") as opener, holding(path, "lock") as locker:
        assert holders.openers(path) == sorted([opener.pid, locker.pid])
        assert holders.lock_holders(path) == [locker.pid]
        assert holders.holders(path) == sorted([opener.pid, locker.pid])
        assert holders.command_of(locker.pid).startswith(sys.executable)
        for child in (opener, locker):
            child.communicate("\n")
    assert holders.holders(path) == [] and holders.command_of(locker.pid) == ""


def test_one_that_waits_for_a_lock_does_not_hold_it_and_this_process_does_not_count(tmp_path):
    path = tmp_path / "lock"
    path.touch()
    with open(path) as mine:
        fcntl.flock(mine, fcntl.LOCK_EX)
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path), "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as waiter:
            eventually(lambda: f"FLOCK  ADVISORY  WRITE {waiter.pid} " in pathlib.Path("/proc/locks").read_text())
            assert holders.lock_holders(path) == [os.getpid()]
            assert holders.holders(path) == [waiter.pid]  # which has it open
            fcntl.flock(mine, fcntl.LOCK_UN)
            waiter.communicate(b"\n")
        assert holders.holders(path) == []


def test_a_file_that_is_not_there_has_nobody(tmp_path):
    assert holders.holders(tmp_path / "none") == []
    assert not holders.bridge_running(tmp_path)


def test_the_command_line_of_another_process_cannot_write_on_the_terminal():
    with subprocess.Popen([sys.executable, "-c", "input()", "\x1b[31m\u202e"], stdin=subprocess.PIPE) as child:
        shown = holders.command_of(child.pid)
        child.communicate(b"\n")
    assert "\x1b" not in shown and shown.isascii()


def test_a_lock_on_a_file_without_an_inode_hides_no_other_holder(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    path.touch()
    with open(path) as mine:
        fcntl.flock(mine, fcntl.LOCK_EX)
        proc = tmp_path / "proc"
        proc.mkdir()
        nameless = "1: POSIX  ADVISORY  WRITE 123 <none>:0 0 EOF\n"
        (proc / "locks").write_text(nameless + pathlib.Path("/proc/locks").read_text())
        monkeypatch.setattr(holders, "PROC", proc)
        assert holders.lock_holders(path) == [os.getpid()]
