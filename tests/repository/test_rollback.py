"""A checkpoint cut off in the middle of a block: the file is as it was before."""

import os
import random
import signal
import subprocess
import sys

import pytest

from data_pipeline.repository import rollback
from data_pipeline.repository.database import Database, DatabaseDamaged
from tests.helpers.support import ROOT
from tests.reliability import shim
from tests.repository.test_database import held_by_another_process

SESSION = """
import pathlib, sys
from data_pipeline.repository.database import Database
with Database(pathlib.Path(sys.argv[1])).session(5) as con:
    con.execute("INSERT INTO bridge_ids VALUES (?, 1)", [sys.argv[2]])
"""


@pytest.fixture
def path(tmp_path):
    """A database with three checkpoints behind it."""
    made = tmp_path / "gex_history.duckdb"
    for number in range(3):
        with Database(made).session() as con:
            con.execute("INSERT INTO bridge_ids VALUES (?, 1)", [f"old {number}"])
    return made


def names(path) -> list[str]:
    with Database(path).session(5) as con:
        return [name for (name,) in con.execute("SELECT table_name FROM bridge_ids ORDER BY rowid").fetchall()]


def torn(path) -> bytes:
    """Half of a block of metadata overwritten, as by a checkpoint that was cut off; returns the copy made before."""
    with Database(path).session(checkpoint=False) as con:
        con.execute("INSERT INTO bridge_ids VALUES ('new', 1)")
        rollback.keep(con, path)
        ((number,), *_) = con.execute("SELECT block_id FROM pragma_metadata_info() WHERE free_blocks > 0").fetchall()
    with open(path, "r+b") as file:
        file.seek(rollback.HEADERS + number * 262144 + 131072)
        file.write(random.randbytes(131072))
    return rollback.beside(path).read_bytes()


def test_a_checkpoint_that_was_cut_off_is_taken_back_and_what_was_committed_is_there(path, caplog):
    kept = torn(path)
    rollback.drop(path)
    with pytest.raises(DatabaseDamaged):
        names(path)
    rollback.beside(path).write_bytes(kept)
    assert names(path) == ["old 0", "old 1", "old 2", "new"]
    assert "was cut off" in caplog.text
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_checkpoint_that_was_through_stays(path):
    with Database(path).session() as con:
        con.execute("INSERT INTO bridge_ids VALUES ('new', 1)")
        rollback.keep(con, path)
        kept = rollback.beside(path).read_bytes()
    rollback.beside(path).write_bytes(kept)
    before = path.read_bytes()
    assert not rollback.undo(path)
    assert path.read_bytes() == before and not rollback.beside(path).exists()
    assert names(path)[-1] == "new"


DAMAGE = {
    "cut": lambda raw: raw[:-1],
    "short": lambda raw: raw[:20],
    "flipped": lambda raw: raw[:-9] + b"x" + raw[-8:],
    "empty": lambda raw: b"",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_copy_that_is_not_whole_is_dropped(path, damage):
    kept = torn(path)
    before = path.read_bytes()
    rollback.beside(path).write_bytes(damage(kept))
    assert not rollback.undo(path)
    assert path.read_bytes() == before and not rollback.beside(path).exists()


def test_while_another_process_has_the_database_its_checkpoint_is_its_own(path):
    rollback.beside(path).write_bytes(b"anything")
    with held_by_another_process(path):
        assert not rollback.undo(path)
        assert rollback.beside(path).exists()


def test_killed_in_the_middle_of_each_write_of_a_checkpoint_nothing_is_lost(tmp_path):
    path, killed, expected = tmp_path / "gex_history.duckdb", 0, 0
    try:
        shim.library()
    except shim.Unable as reason:
        pytest.skip(str(reason))
    with Database(path).session() as con:  # so much metadata that it fills blocks, as that of years does
        columns = ", ".join(f"i AS c{number}" for number in range(30))
        for number in range(100):
            con.execute(f"CREATE TABLE more_{number} AS SELECT {columns} FROM range(10) AS t(i)")
    for count in range(1, 20):
        dies = shim.environment(f"write gex_history.duckdb half {count}")
        run = subprocess.run(
            [sys.executable, "-c", SESSION, str(path), f"new {count}"],
            cwd=ROOT,
            env={**os.environ, **dies},
            capture_output=True,
        )
        assert run.returncode in (0, -signal.SIGKILL), run.stderr
        killed += run.returncode != 0
        found = names(path)
        # Killed while it was committing, it may be in or not; before and after it is decided.
        assert found[:expected] == names(path)[:expected] and len(found) - expected in (0, 1)
        expected = len(found)
        if run.returncode == 0:
            break
    assert killed >= 3 and run.returncode == 0
