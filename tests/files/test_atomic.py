import os
import resource
import threading

import pytest

from data_pipeline.files import atomic
from tests.helpers.support import PATIENCE


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_file_has_the_content_and_mode_0644_and_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "file.json"
    for content in (b"first", b"", b"x" * 100_000):
        atomic.replace(path, content)
        assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o644
    assert names(path.parent) == ["file.json"]


def test_a_reader_sees_one_whole_content_or_the_other(tmp_path):
    path, done, seen = tmp_path / "file", threading.Event(), set()
    contents = [bytes([n]) * 50_000 for n in range(20)]
    atomic.replace(path, contents[0])

    def look():
        while not done.is_set():
            seen.add(path.read_bytes())

    looking = threading.Thread(target=look)
    looking.start()
    for content in contents * 5:
        atomic.replace(path, content, durable=False)
    done.set()
    looking.join(PATIENCE)
    assert seen and seen <= set(contents)


def test_many_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path, problems = tmp_path / "file", []

    def work(n):
        try:
            for _ in range(20):
                atomic.replace(path, bytes([n]) * 10_000, durable=False)
        except OSError as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert problems == []
    assert names(tmp_path) == ["file"]
    assert len(set(path.read_bytes())) == 1


def test_where_it_fails_the_old_content_stays_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    atomic.replace(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError):
            atomic.replace(path, b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        atomic.replace(tmp_path / "folder", b"new")
    assert names(tmp_path) == ["file", "folder"]


def test_a_long_name_has_room_for_its_temporary_one(tmp_path):
    path = tmp_path / ("x" * 255)
    atomic.replace(path, b"content")
    assert path.read_bytes() == b"content"


def test_what_a_crash_left_is_cleaned_and_nothing_else(tmp_path):
    (tmp_path / "SPX").mkdir()
    for name in (
        f".file.0123{atomic.ENDING}",
        f"SPX/.file.0123{atomic.ENDING}",
        "SPX/file",
        f"SPX/visible{atomic.ENDING}",
    ):
        (tmp_path / name).write_bytes(b"")
    assert atomic.clean(tmp_path) == 2
    assert names(tmp_path / "SPX") == ["file", f"visible{atomic.ENDING}"]
    assert atomic.clean(tmp_path / "none") == 0


def test_everything_is_written_however_little_a_write_takes(tmp_path):
    """A pipe takes what there is room for."""
    readable, writable = os.pipe()
    content, got = os.urandom(1_000_000), []

    def read():
        while part := os.read(readable, 5000):
            got.append(part)

    reading = threading.Thread(target=read)
    reading.start()
    atomic.write_all(writable, content)
    os.close(writable)
    reading.join(PATIENCE)
    os.close(readable)
    assert b"".join(got) == content
