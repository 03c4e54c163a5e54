import contextlib
import hashlib
import json
import pathlib
import sqlite3
import subprocess
import sys

import duckdb
import pytest

from data_pipeline.migration import export_sqlite, migrate
from data_pipeline.repository import database
from tests.helpers.old_files import RECORDED, insert, make, snapshot, sqlite_rows, webhook


@pytest.fixture
def source(tmp_path) -> pathlib.Path:
    return tmp_path / "data" / "gex_history.duckdb"


def migrated(old: pathlib.Path, source: pathlib.Path) -> pathlib.Path:
    migrate.Migration(old, source, show=False).run()
    return source


def everything(path: pathlib.Path) -> dict:
    """All that SQLite knows of a file: schema to the blank, sequences, and every cell with its type."""
    con = sqlite3.connect(path)
    master = con.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name").fetchall()
    found = {"schema": master, "sequence": con.execute("SELECT * FROM sqlite_sequence ORDER BY name").fetchall()}
    for table in (name for kind, name, _, _ in master if kind == "table" and not name.startswith("sqlite_")):
        names = [r[1] for r in con.execute(f"PRAGMA table_info({table})")]
        cells = ", ".join(f"typeof({n}), quote({n})" for n in names)
        found[table] = sorted(con.execute(f"SELECT {cells} FROM {table}").fetchall())
    con.close()
    return found


def test_the_recorded_file_comes_back_without_a_loss(source, tmp_path):
    rows = export_sqlite.export(migrated(RECORDED, source), tmp_path / "new.db", show=False)
    assert everything(tmp_path / "new.db") == everything(RECORDED)
    assert sqlite_rows(tmp_path / "new.db") == sqlite_rows(RECORDED)
    assert rows["gex_bridge_strikes"] == 270
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "new.db"]


def test_the_original_goes_on_with_the_next_id(source, tmp_path):
    old = make(tmp_path / "old.db", rows={"universal_webhooks": [webhook(7), webhook(9)]})
    con = sqlite3.connect(old)
    con.execute("DELETE FROM universal_webhooks WHERE id = 9")
    con.commit()
    con.close()
    export_sqlite.export(migrated(old, source), tmp_path / "new.db", show=False)
    con = sqlite3.connect(tmp_path / "new.db")
    con.execute("INSERT INTO universal_webhooks (payload_json) VALUES ('{}')")
    assert con.execute("SELECT max(id) FROM universal_webhooks").fetchone() == (10,)
    (made,) = con.execute("SELECT received_at FROM universal_webhooks WHERE id = 10").fetchone()
    assert len(made) == 19
    con.close()


def test_rows_that_sqlite_finds_hard_survive_the_way_there_and_back(source, tmp_path):
    rows = [
        snapshot(spot=1e308 * 10, zero_gamma=-0.1, net_gex_vol=5e-324, strikes_count=2**63 - 1),
        snapshot(ticker="é", raw_payload_json='{"a": "\x00é𝔘"}'),
        snapshot(ticker="", timestamp=-(2**63), endpoint="'; DROP TABLE x; --", spot=0.1 + 0.2),
    ]
    old = make(tmp_path / "old.db", rows={"gex_bridge_snapshots": rows})
    export_sqlite.export(migrated(old, source), tmp_path / "new.db", show=False)
    assert everything(tmp_path / "new.db") == everything(old)


def test_a_file_that_exists_is_refused_and_stays(source, tmp_path):
    target = tmp_path / "new.db"
    target.write_text("mine")
    with pytest.raises(export_sqlite.ExportError, match="exists"):
        export_sqlite.export(migrated(RECORDED, source), target, show=False)
    assert target.read_text() == "mine"


def test_without_a_database_there_is_no_file_and_no_new_database(source, tmp_path):
    with pytest.raises(export_sqlite.ExportError, match="no database"):
        export_sqlite.export(source, tmp_path / "new.db", show=False)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_in_the_middle_leaves_nothing_behind(source, tmp_path, monkeypatch):
    migrated(RECORDED, source)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_sqlite, "_fsync", full)
    with pytest.raises(OSError, match="No space"):
        export_sqlite.export(source, tmp_path / "new.db", show=False)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_the_command_waits_for_whoever_has_the_database(source, tmp_path):
    data = tmp_path / "all"
    path = data / "raw" / "gex" / "gex_history.duckdb"
    insert(path, "universal_webhooks", webhook(1))
    with database.Database(path).session():
        child = subprocess.Popen(
            [sys.executable, "-m", "data_pipeline", "export-sqlite", tmp_path / "new.db", "--data-dir", data, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=1.5)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert json.loads(out)["rows"]["universal_webhooks"] == 1
    assert sqlite_rows(tmp_path / "new.db")["universal_webhooks"][0][0] == 1


def test_the_database_is_only_read_and_what_its_log_alone_holds_comes_too(source, tmp_path):
    insert(source, "universal_webhooks", webhook(1))
    with database.Database(source).session(checkpoint=False) as con:
        con.execute("INSERT INTO universal_webhooks (id, payload_json) VALUES (2, '{}')")
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in source.parent.iterdir()}
    assert f"{source.name}.wal" in before
    export_sqlite.export(source, tmp_path / "new[1].db", show=False)
    assert [row[0] for row in sqlite_rows(tmp_path / "new[1].db")["universal_webhooks"]] == [1, 2]
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in source.parent.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "new[1].db"]


def test_a_database_with_other_tables_under_our_names_is_told_in_one_line(tmp_path):
    path = tmp_path / "all" / "raw" / "gex" / "gex_history.duckdb"
    path.parent.mkdir(parents=True)
    with contextlib.closing(duckdb.connect(str(path))) as con:
        con.execute("CREATE TABLE gex_bridge_snapshots (mine VARCHAR)")
    command = [
        sys.executable,
        "-m",
        "data_pipeline",
        "export-sqlite",
        tmp_path / "new.db",
        "--data-dir",
        tmp_path / "all",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "was not written" in done.stderr and len(done.stderr.splitlines()) == 1
    assert [found.name for found in tmp_path.iterdir()] == ["all"]
