"""Names of partitions, and the lock of the lake's writers."""

import datetime
import os
import pathlib
import subprocess
import sys

import pytest

from data_pipeline.lake import LakeNameError, Partition
from data_pipeline.lake.layout import DAY, file_of, partitions, publish, writing


def test_a_partition_is_named_as_hive_names_it():
    partition = Partition("A/B=1", "gex zero", datetime.date(2025, 1, 2))
    assert partition.folder == "ticker=A%2FB%3D1/endpoint=gex%20zero/date=2025-01-02"
    assert Partition("..", ".", datetime.date(2025, 1, 2)).folder == "ticker=%2E%2E/endpoint=%2E/date=2025-01-02"


@pytest.mark.parametrize("name", ["", "Ü" * 40, "A" * 201, "\ud800", "__HIVE_DEFAULT_PARTITION__"])
def test_a_name_that_no_reader_would_find_again_is_refused(name):
    with pytest.raises(LakeNameError):
        Partition(name, "gex_zero", datetime.date(2025, 1, 2)).folder


def test_partitions_come_back_as_they_were_named(tmp_path):
    names = ["SPX", "007", "A/B", "Ü", "%41", "..", "a=b"]
    for name in names:
        file = file_of(tmp_path, "strikes", Partition(name, name, datetime.date(2025, 1, 2)))
        file.parent.mkdir(parents=True)
        file.touch()
    assert sorted(p.ticker for p, _ in partitions(tmp_path, "strikes")) == sorted(names)
    assert [p.endpoint for p, _ in partitions(tmp_path, "strikes", "A/B")] == ["A/B"]
    assert not list(partitions(tmp_path, "snapshots"))


def test_a_day_is_from_midnight_to_midnight_utc():
    assert Partition("A", "B", datetime.date(1970, 1, 2)).bounds == (DAY, 2 * DAY)


def test_writers_wait_for_each_other_and_clear_what_a_killed_one_left(tmp_path):
    code = (
        "import sys, pathlib; from data_pipeline.lake.layout import writing\n"
        "with writing(pathlib.Path(sys.argv[1])) as staging:\n"
        "    (staging / 'half.parquet').write_text('half'); print('in', flush=True); sys.stdin.read()\n"
    )
    root = str(pathlib.Path(__file__).resolve().parents[2])
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "in\n"
    second = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert list((tmp_path / ".staging").rglob("half.parquet"))
    holder.kill()
    holder.communicate()
    assert second.stdout.readline() == "in\n"
    assert len(list((tmp_path / ".staging").rglob("half.parquet"))) == 1
    second.communicate()
    assert second.returncode == 0 and not (tmp_path / ".staging").exists()


def test_a_file_is_published_over_the_old_one(tmp_path):
    target = file_of(tmp_path, "strikes", Partition("A", "B", datetime.date(2025, 1, 2)))
    for content in ("one", "two"):
        with writing(tmp_path) as staging:
            (staging / "x").write_text(content)
            publish(tmp_path, staging / "x", target)
        assert target.read_text() == content and [p.name for p in target.parent.iterdir()] == ["part-0.parquet"]


def test_each_name_from_the_data_folder_to_the_file_is_durable_once_it_is_published(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def noted(fd):
        synced.append(pathlib.Path(os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    root = tmp_path / "new" / "lake"
    target = root / "strikes" / "ticker=A" / "endpoint=e" / "date=2025-01-02" / "part-0.parquet"
    with writing(root) as staging:
        assert {tmp_path, tmp_path / "new"} <= set(synced)
        for _ in range(2):  # the folders of the second time are there, but whoever made them may have died then
            synced.clear()
            (staging / "file").write_bytes(b"x")
            publish(root, staging / "file", target)
            assert synced[0] == staging / "file" and {*target.parents} - {*tmp_path.parents, tmp_path} <= set(synced)
