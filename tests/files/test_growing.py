import errno
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import pytest

from data_pipeline.files import atomic
from data_pipeline.files.growing import GrowingFiles
from tests.helpers.support import PATIENCE, ROOT, files_limited_to

JOURNAL = "0123456789abcdef" * 2
# What is to be in the files: (number of the last record, {file: lines}).
BATCHES = (
    (2, {"raw/spot.jsonl": b"1\n2\n"}),
    (3, {"raw/spot.jsonl": b"3\n", "depth/SPX/day.jsonl": b"3a\n3b\n"}),
    (4, {}),
    (6, {"depth/SPX/day.jsonl": b"5\n", "depth/NDX/day.jsonl": b"6\n", "foreign.jsonl": b"6\n"}),
    (7, {"raw/spot.jsonl": b"7\n"}),
)
FOREIGN = b'{"a": 1}\n{"tor'
EXPECTED = {
    "raw/spot.jsonl": b"1\n2\n3\n7\n",
    "depth/SPX/day.jsonl": b"3a\n3b\n5\n",
    "depth/NDX/day.jsonl": b"6\n",
    "foreign.jsonl": FOREIGN + b"\n6\n",
}


def opened(root, journal=JOURNAL) -> GrowingFiles:
    files = GrowingFiles(root, root / "journal" / "position", journal)
    files.open()
    return files


def write_everything(root: pathlib.Path) -> None:
    """One life of a process: what is not yet in the files, batch by batch."""
    files = opened(root)
    for number, lines in BATCHES:
        if number > files.position:
            assert files.append(lines) == {}
            files.advance(number)
            if number == 4:
                files.settle()
    files.settle()


def contents(root: pathlib.Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in EXPECTED if (root / name).exists()}


def die_at(call: int) -> None:
    """End this process before the n-th of its calls that change a disk; a write gets half of it done."""
    left = [call]

    def lethal(name):
        real = getattr(os, name)

        def wrapped(*args, **kwargs):
            left[0] -= 1
            if not left[0]:
                if name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                os._exit(9)
            return real(*args, **kwargs)

        setattr(os, name, wrapped)

    for name in ("open", "write", "fsync", "fdatasync", "replace", "truncate", "ftruncate", "mkdir"):
        lethal(name)


def die_everywhere(base: pathlib.Path) -> None:
    """In a process of its own: live and die at each call, and at calls of the life after; then live to the end."""
    lives = [(n, second) for n in range(1, 1000) for second in (0, 1 + n % 7)]
    survived = False
    for first, second in lives:
        root = base / f"{first}-{second}"
        root.mkdir()
        (root / "foreign.jsonl").write_bytes(FOREIGN)
        for call in (first, second, 0):
            pid = os.fork()
            if pid == 0:
                if call:
                    die_at(call)
                write_everything(root)
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            assert code in ((0, 9) if call else (0,))
            survived = survived or call == first and code == 0
        if survived:
            break


@pytest.fixture
def memory(tmp_path):
    """A folder in memory where there is one: what is tested here syncs thousands of times."""
    shared = pathlib.Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as folder:
        yield pathlib.Path(folder)


def test_killed_at_any_moment_each_line_is_there_exactly_once_after_the_next_life(memory):
    script = (
        "import pathlib; from tests.files.test_growing import die_everywhere;"
        f" die_everywhere(pathlib.Path({str(memory)!r}))"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=PATIENCE)
    roots = sorted(memory.iterdir())
    assert len(roots) > 60
    for root in roots:
        assert contents(root) == EXPECTED, root.name
        assert json.loads((root / "journal" / "position").read_bytes())["position"] == 7


def test_a_line_behind_a_torn_one_begins_on_a_line_of_its_own(tmp_path):
    (tmp_path / "foreign.jsonl").write_bytes(FOREIGN)
    files = opened(tmp_path)
    assert files.append({"foreign.jsonl": b"1\n"}) == {}
    assert files.append({"foreign.jsonl": b"2\n"}) == {}
    assert (tmp_path / "foreign.jsonl").read_bytes() == FOREIGN + b"\n1\n2\n"


def test_a_file_that_cannot_be_written_leaves_the_others_and_itself_as_they_were(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "in-the-way").write_bytes(b"a file")
    (tmp_path / "long.jsonl").write_bytes(b"x" * 2000 + b"\n")
    files = opened(tmp_path)
    with files_limited_to(2010):
        failed = files.append(
            {
                "long.jsonl": b"y" * 100 + b"\n",
                "folder.jsonl": b"1\n",
                "in-the-way/day.jsonl": b"1\n",
                "good.jsonl": b"1\n",
                "new.jsonl": b"z" * 3000 + b"\n",
            }
        )
    assert sorted(failed) == ["folder.jsonl", "in-the-way/day.jsonl", "long.jsonl", "new.jsonl"]
    assert all(isinstance(problem, OSError) for problem in failed.values())
    assert (tmp_path / "long.jsonl").read_bytes() == b"x" * 2000 + b"\n"
    assert (tmp_path / "good.jsonl").read_bytes() == b"1\n"
    assert (tmp_path / "new.jsonl").stat().st_size == 0
    assert files.append({"long.jsonl": b"y\n", "new.jsonl": b"z\n"}) == {}
    assert (tmp_path / "long.jsonl").read_bytes() == b"x" * 2000 + b"\ny\n"
    assert (tmp_path / "new.jsonl").read_bytes() == b"z\n"


@pytest.mark.parametrize("cut_fails", [False, True])
def test_lines_whose_folder_cannot_be_made_durable_come_again_and_are_there_once(tmp_path, monkeypatch, cut_fails):
    (tmp_path / "b").mkdir()
    files = opened(tmp_path)
    files.append({"a.jsonl": b"0\n"})

    def fails(*args):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        real = atomic.fsync_folder
        broken.setattr(atomic, "fsync_folder", lambda folder: fails() if folder.name == "b" else real(folder))
        if cut_fails:
            broken.setattr(os, "truncate", fails)
        assert list(files.append({"a.jsonl": b"1\n", "b/b.jsonl": b"1\n"})) == ["b/b.jsonl"]
        assert list(files.append({"b/b.jsonl": b"1\n"})) == ["b/b.jsonl"]
    assert files.append({"b/b.jsonl": b"1\n"}) == {}
    assert files.append({"b/b.jsonl": b"2\n"}) == {}
    assert (tmp_path / "b/b.jsonl").read_bytes() == b"1\n2\n"
    assert (tmp_path / "a.jsonl").read_bytes() == b"0\n1\n"


def test_a_file_out_of_reach_at_the_start_leaves_the_others_and_is_cut_back_when_it_can_be(
    tmp_path, monkeypatch, caplog
):
    files = opened(tmp_path)
    files.append({"a.jsonl": b"0\n", "b.jsonl": b"0\n"})
    files.advance(1)
    files.append({"a.jsonl": b"1\n", "b.jsonl": b"1\n"})
    with monkeypatch.context() as broken:
        real = os.truncate
        broken.setattr(os, "truncate", lambda path, size: real(path / "x" if path.name == "a.jsonl" else path, size))
        again = opened(tmp_path)
    assert "a.jsonl cannot be cut back" in caplog.text
    assert again.position == 1 and (tmp_path / "b.jsonl").read_bytes() == b"0\n"
    assert again.append({"b.jsonl": b"1\n"}) == {}
    assert opened(tmp_path).append({"a.jsonl": b"1\n", "b.jsonl": b"1\n"}) == {}
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes() == b"0\n1\n"


def test_where_the_note_cannot_be_written_nothing_is_appended(tmp_path):
    files = opened(tmp_path)
    (tmp_path / "journal").write_bytes(b"a file where the note's folder should be")
    with pytest.raises(OSError):
        files.append({"spot.jsonl": b"1\n"})
    assert not (tmp_path / "spot.jsonl").exists()
    (tmp_path / "journal").unlink()
    assert files.append({"spot.jsonl": b"1\n"}) == {}
    assert (tmp_path / "spot.jsonl").read_bytes() == b"1\n"


def test_lines_behind_a_position_that_never_came_are_taken_back_with_all_their_files(tmp_path):
    """Several appends belong to one position: what the first of them noted counts."""
    files = opened(tmp_path)
    files.append({"a.jsonl": b"1\n"})
    files.advance(1)
    files.append({"a.jsonl": b"2\n"})
    files.append({"a.jsonl": b"3\n", "b.jsonl": b"3\n"})
    files.settle()
    again = opened(tmp_path)
    assert again.position == 1
    assert (tmp_path / "a.jsonl").read_bytes() == b"1\n"
    assert (tmp_path / "b.jsonl").read_bytes() == b""


def test_a_position_is_noted_with_the_next_append_or_when_it_settles(tmp_path):
    files = opened(tmp_path)
    files.append({"a.jsonl": b"1\n"})
    files.advance(1)
    assert (files.position, files.noted) == (1, 0)
    files.append({"a.jsonl": b"2\n"})
    assert (files.position, files.noted) == (1, 1)
    files.advance(2)
    files.settle()
    assert (files.position, files.noted) == (2, 2)
    assert opened(tmp_path).position == 2
    assert (tmp_path / "a.jsonl").read_bytes() == b"1\n2\n"


def test_a_note_of_another_journal_says_nothing_about_this_one(tmp_path):
    files = opened(tmp_path)
    files.append({"a.jsonl": b"1\n"})
    other = opened(tmp_path, "f" * 32)
    assert (other.position, other.noted) == (0, 0)
    assert (tmp_path / "a.jsonl").read_bytes() == b"1\n"


def test_a_file_that_was_taken_away_or_shortened_is_begun_anew(tmp_path):
    files = opened(tmp_path)
    files.append({"a.jsonl": b"1\n", "b.jsonl": b"1\n"})
    files.advance(1)
    files.append({"a.jsonl": b"2\n", "b.jsonl": b"2\n"})
    (tmp_path / "a.jsonl").unlink()
    os.truncate(tmp_path / "b.jsonl", 1)
    again = opened(tmp_path)
    assert again.position == 1
    assert again.append({"a.jsonl": b"2\n", "b.jsonl": b"2\n"}) == {}
    assert (tmp_path / "a.jsonl").read_bytes() == b"2\n"
    assert (tmp_path / "b.jsonl").read_bytes() == b"1\n2\n"
