import hashlib
import json
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from data_pipeline.migration import merge, migrate, old_file
from data_pipeline.repository import database, schema
from tests.helpers import old_files
from tests.helpers.old_files import RECORDED, duckdb_rows, insert, make, snapshot, sqlite_rows, webhook
from tests.helpers.support import gex_bridge, read


@pytest.fixture
def target(tmp_path) -> pathlib.Path:
    return tmp_path / "data" / "raw" / "gex" / "gex_history.duckdb"


def move(old, target, **options) -> migrate.Migration:
    done = migrate.Migration(old, target, show=False, **options)
    done.run()
    return done


def reported(done: migrate.Migration) -> list[dict]:
    return [json.loads(line) for line in done.report.path.read_text().splitlines()]


def look_of(folder: pathlib.Path) -> dict:
    return {p.name: (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in folder.iterdir()}


def test_the_recorded_file_arrives_to_the_cell(target):
    before = look_of(RECORDED.parent)
    done = move(RECORDED, target)
    assert duckdb_rows(target) == sqlite_rows(RECORDED)
    assert look_of(RECORDED.parent) == before
    assert all(r.is_proven and r.rows == r.new for r in done.results.values())
    assert done.results["gex_bridge_strikes"].moved.rows == 270
    assert not done.report.path.exists() and not target.with_suffix(".migrating").exists()


def test_new_ids_go_on_after_the_highest_even_of_deleted_rows(tmp_path, target):
    old = make(tmp_path / "old.db", rows={"universal_webhooks": [webhook(7), webhook(9)]})
    con = sqlite3.connect(old)
    con.execute("DELETE FROM universal_webhooks WHERE id = 9")
    con.commit()
    con.close()
    move(old, target)
    with database.Database(target).session() as con:
        assert database.last_id(con, "universal_webhooks") == 9


def test_strikes_without_endpoint_take_it_from_their_snapshot(tmp_path, target):
    strike = {"ticker": "SPX", "strike": 5000.0, "gamma_now": 1.5}
    old = make(
        tmp_path / "old.db",
        old_files.OLD_LAYOUT,
        {
            "gex_bridge_snapshots": [snapshot(timestamp=1, endpoint="gex_full"), snapshot(timestamp=2, endpoint=None)],
            "gex_bridge_strikes": [strike | {"timestamp": t} for t in (1, 2, 3)],
        },
    )
    done = move(old, target)
    rows = duckdb_rows(target)
    assert [r[2] for r in rows["gex_bridge_snapshots"]] == ["gex_full", "unknown"]
    assert [(r[1], r[2]) for r in rows["gex_bridge_strikes"]] == [(1, "gex_full"), (2, "unknown"), (3, "unknown")]
    assert done.report.lines == 0 and set(done.results) == {"gex_bridge_snapshots", "gex_bridge_strikes"}


def test_loose_types_are_converted_and_what_does_not_fit_is_reported(tmp_path, target):
    old = make(
        tmp_path / "old.db",
        "CREATE TABLE gex_bridge_snapshots (ticker, timestamp, endpoint, spot REAL, zero_gamma, net_gex_vol,"
        " strikes_count, payload_kind, raw_payload_json)",
        {
            "gex_bridge_snapshots": [
                snapshot(spot="12.5", zero_gamma=" 1e3 ", strikes_count="7", payload_kind=5, raw_payload_json=b"{}"),
                snapshot(timestamp="1700000001", spot="n/a", zero_gamma=b"\xff", strikes_count=1.5, net_gex_vol="1_0"),
                snapshot(timestamp=1700000002.0, raw_payload_json=b"\xff"),
                snapshot(timestamp=None, spot=1.0),
                snapshot(timestamp="yesterday", spot=2.0),
                snapshot(ticker=b"\xfe"),
            ]
        },
    )
    done = move(old, target)
    names = schema.columns("gex_bridge_snapshots")
    rows = [{n: v for n, v in zip(names, row) if v is not None} for row in duckdb_rows(target)["gex_bridge_snapshots"]]
    key = {"ticker": "SPX", "endpoint": "gex_zero", "payload_kind": "snapshot"}
    assert rows == [
        key
        | {"timestamp": 1700000000, "payload_kind": "5", "spot": 12.5, "zero_gamma": 1000.0}
        | {"strikes_count": 7, "raw_payload_json": "{}"},
        key | {"timestamp": 1700000001},
        key | {"timestamp": 1700000002},
    ]
    report = reported(done)
    values = [line for line in report if "column" in line]
    assert {(line["key"]["timestamp"], line["column"]): (line["value"], line["outcome"]) for line in values} == {
        (1700000001, "spot"): ("n/a", "null"),
        (1700000001, "zero_gamma"): ({"hex": "ff"}, "null"),
        (1700000001, "net_gex_vol"): ("1_0", "null"),
        (1700000001, "strikes_count"): (1.5, "null"),
        (1700000002, "raw_payload_json"): ({"hex": "ff"}, "null"),
    }
    lost = [line["row"] for line in report if line["outcome"] == "not moved"]
    assert [(row["ticker"], row["timestamp"], row["spot"]) for row in lost] == [
        ("SPX", None, 1.0),
        ("SPX", "yesterday", 2.0),
        ({"hex": "fe"}, 1700000000, None),
    ]
    result = done.results["gex_bridge_snapshots"]
    assert (result.unfit_rows, result.unfit_values) == (3, 5)


def test_text_that_is_no_utf8_in_a_plain_column_is_reported(tmp_path, target):
    old = make(tmp_path / "old.db", rows={"universal_webhooks": [webhook(1), webhook(2), webhook(3)]})
    con = sqlite3.connect(old)
    con.execute("UPDATE universal_webhooks SET user_agent = CAST(x'41ff' AS TEXT) WHERE id = 2")
    con.commit()
    con.close()
    done = move(old, target)
    assert [r[0] for r in duckdb_rows(target)["universal_webhooks"]] == [1, 2, 3]
    assert [(line["key"], line["value"]) for line in reported(done)] == [({"id": 2}, {"hex": "41ff"})]


def test_unknown_columns_are_reported_and_unknown_tables_named(tmp_path, target):
    old = make(tmp_path / "old.db", rows={"universal_webhooks": [webhook(1), webhook(2)]})
    con = sqlite3.connect(old)
    con.execute("ALTER TABLE universal_webhooks ADD COLUMN note")
    con.execute("UPDATE universal_webhooks SET note = 'x' WHERE id = 2")
    con.execute("CREATE TABLE mine (a)")
    con.commit()
    con.close()
    done = move(old, target)
    assert [(line["column"], line["value"], line["key"]) for line in reported(done)] == [("note", "x", {"id": 2})]
    assert len(duckdb_rows(target)["universal_webhooks"]) == 2 and done.not_ours == ["mine"]


def test_a_row_without_its_must_have_values_gets_defaults_or_is_reported(tmp_path, target):
    old = make(
        tmp_path / "old.db",
        "CREATE TABLE gex_history_queue (id INTEGER PRIMARY KEY, url, ticker, endpoint, status, attempts)",
        {
            "gex_history_queue": [
                {"id": 1, "url": "u", "ticker": "SPX", "endpoint": "e"},
                {"id": 2, "ticker": "SPX", "endpoint": "e"},
            ]
        },
    )
    done = move(old, target)
    assert duckdb_rows(target)["gex_history_queue"] == [(1, "u", "SPX", "e", "pending", 0, None, "", "")]
    assert [line.get("column", line.get("row", {}).get("id")) for line in reported(done)] == ["status", "attempts", 2]


def test_a_used_database_is_refused_without_merge(target):
    insert(target, "universal_webhooks", webhook(1))
    with pytest.raises(migrate.MigrationError, match="add --merge"):
        move(RECORDED, target)
    assert len(duckdb_rows(target)["universal_webhooks"]) == 1


@pytest.mark.parametrize("prefer", ["old", "new"])
def test_merging_keeps_the_preferred_row_and_reports_the_other(tmp_path, target, prefer):
    old = make(
        tmp_path / "old.db",
        rows={
            "gex_bridge_snapshots": [snapshot(spot=1.0), snapshot(timestamp=5, spot=5.0)],
            "universal_webhooks": [webhook(1, '"old"'), webhook(2, '"same"'), webhook(3, '"only old"')],
        },
    )
    insert(target, "gex_bridge_snapshots", snapshot(spot=2.0))
    for row in (webhook(1, '"new"'), webhook(2, '"same"'), webhook(4, '"only new"')):
        insert(target, "universal_webhooks", row)
    done = move(old, target, merge=True, prefer=prefer)
    rows = duckdb_rows(target)
    assert [r[2] for r in rows["universal_webhooks"]] == [f'"{prefer}"', '"same"', '"only old"', '"only new"']
    assert [r[5] for r in rows["gex_bridge_snapshots"]] == [5.0, 1.0 if prefer == "old" else 2.0]
    other = "new" if prefer == "old" else "old"
    assert [line["row"].get("payload_json", line["row"].get("spot")) for line in reported(done)] == [
        2.0 if prefer == "old" else 1.0,
        f'"{other}"',
    ]
    assert {line["outcome"] for line in reported(done)} == {"replaced" if prefer == "old" else "not moved"}
    result = done.results["universal_webhooks"]
    assert (result.new, result.same, result.lost, result.replaced) == (1, 1, *((0, 1) if prefer == "old" else (1, 0)))
    assert result.is_proven


def test_two_rows_of_the_file_that_become_one_key_are_not_both_lost(tmp_path, target):
    old = make(
        tmp_path / "old.db",
        "CREATE TABLE universal_webhooks (id, received_at, payload_json)",
        {"universal_webhooks": [webhook(1, "first"), webhook(2, "x"), webhook("1", "second")]},
    )
    done = move(old, target)
    assert [r[2] for r in duckdb_rows(target)["universal_webhooks"]] == ["second", "x"]
    assert [line["row"]["payload_json"] for line in reported(done)] == ["first"]


def test_batches_at_once_that_share_a_key_are_moved_one_after_the_other(tmp_path, target, monkeypatch):
    monkeypatch.setattr(migrate, "BATCH_ROWS", 2)
    rows = [webhook(1 + n % 4, f"{n}") for n in range(8)]
    sql = "CREATE TABLE universal_webhooks (id INTEGER, received_at TEXT, payload_json TEXT)"
    old = make(tmp_path / "old.db", sql, {"universal_webhooks": rows})
    done = move(old, target)
    kept = [r[2] for r in duckdb_rows(target)["universal_webhooks"]]
    lost = [line["row"]["payload_json"] for line in reported(done)]
    assert len(kept) == 4 and sorted(kept + lost) == [str(n) for n in range(8)]


def test_a_dry_run_counts_and_changes_nothing(tmp_path, target):
    insert(target, "universal_webhooks", webhook(1, '"other"'))
    before = duckdb_rows(target)
    done = migrate.Migration(RECORDED, target, show=False, report=tmp_path / "report.jsonl")
    results = done.look()
    assert duckdb_rows(target) == before and [p.name for p in target.parent.iterdir()] == [target.name]
    assert (results["universal_webhooks"].new, results["universal_webhooks"].lost) == (29, 1)
    assert results["gex_bridge_strikes"].new == 270


def test_a_file_with_a_log_beside_it_is_read_whole_and_left_as_it_is(tmp_path, target):
    folder = tmp_path / "old"
    folder.mkdir()
    _killed_while_writing(folder / "old.db", "wal")
    for without_index in (False, True):
        if without_index:
            (folder / "old.db-shm").unlink()
        before = look_of(folder)
        assert "old.db-wal" in before
        data = target.parent / f"{without_index}" / target.name
        move(folder / "old.db", data)
        assert [r[0] for r in duckdb_rows(data)["universal_webhooks"]] == [1, 2, 3]
        assert look_of(folder) == before


def test_a_file_left_in_the_middle_of_a_write_is_read_as_before_that_write(tmp_path, target):
    folder = tmp_path / "old"
    folder.mkdir()
    _killed_while_writing(folder / "old.db", "delete")
    before = look_of(folder)
    assert "old.db-journal" in before
    move(folder / "old.db", target)
    assert [r[0] for r in duckdb_rows(target)["universal_webhooks"]] == [1, 2, 3]
    assert look_of(folder) == before


def _killed_while_writing(path: pathlib.Path, mode: str) -> None:
    """Three committed webhooks; then, in rollback mode, a transaction that has spilt to the file."""
    script = f"""
import os, signal, sqlite3
from tests.helpers.old_files import make, webhook
make({str(path)!r})
con = sqlite3.connect({str(path)!r})
con.execute("PRAGMA journal_mode = {mode}")
for n in (1, 2, 3):
    con.execute("INSERT INTO universal_webhooks (id, payload_json) VALUES (?, '')", [n])
con.commit()
if {mode!r} == "delete":
    con.execute("PRAGMA cache_size = 1")
    for n in range(4, 400):
        con.execute("INSERT INTO universal_webhooks (id, payload_json) VALUES (?, ?)", [n, "x" * 2000])
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL


def test_a_damaged_file_is_refused_and_nothing_changed(tmp_path, target):
    old = tmp_path / "old.db"
    content = bytearray(RECORDED.read_bytes())
    content[4096 * 12 :] = os.urandom(len(content) - 4096 * 12)
    old.write_bytes(content)
    with pytest.raises((old_file.OldFileError, migrate.MigrationError)):
        move(old, target)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"", b"not a database at all, whatever it is called"])
def test_what_is_no_sqlite_file_is_refused(tmp_path, target, content):
    old = tmp_path / "old.db"
    if content is not None:
        old.write_bytes(content)
    with pytest.raises(old_file.OldFileError, match="old.db"):
        move(old, target)
    assert not target.exists()


def test_a_batch_that_differs_after_the_move_is_not_moved_and_named(tmp_path, target, monkeypatch):
    monkeypatch.setattr(migrate, "BATCH_ROWS", 2)
    old = make(tmp_path / "old.db", rows={"universal_webhooks": [webhook(n, f"{n}") for n in range(1, 6)]})
    put = merge.put_new

    def damaging(con, table, batch, expected):
        if batch.column("id")[0].as_py() == 5:
            batch = batch.set_column(2, "payload_json", [["damaged"]])
        return put(con, table, batch, expected)

    monkeypatch.setattr(merge, "put_new", damaging)
    with pytest.raises(migrate.MigrationError, match="payload_json.*was not moved"):
        move(old, target)
    assert [row[2] for row in duckdb_rows(target)["universal_webhooks"]] == ["1", "2", "3", "4"]
    monkeypatch.setattr(merge, "put_new", put)
    assert all(result.is_proven for result in move(old, target).results.values())
    assert [row[2] for row in duckdb_rows(target)["universal_webhooks"]] == ["1", "2", "3", "4", "5"]


def test_a_row_changed_while_it_was_read_fails_the_proof(tmp_path, target, monkeypatch):
    old = make(tmp_path / "old.db", rows={"universal_webhooks": [webhook(1, "1")]})
    sums = merge.sums
    monkeypatch.setattr(
        merge, "sums", lambda *args, **more: merge.Sums(1, {"id": 1}) if not more else sums(*args, **more)
    )
    with pytest.raises(migrate.MigrationError, match="differs"):
        move(old, target)
    assert duckdb_rows(target)["universal_webhooks"] == []


def test_killed_in_the_middle_the_same_command_goes_on(tmp_path, target):
    old = make(tmp_path / "old.db", rows={"universal_webhooks": [webhook(n, f"{n}") for n in range(1, 301)]})
    script = f"""
from data_pipeline.migration import migrate
migrate.BATCH_ROWS, migrate.PAUSE = 10, 0.05
migrate.Migration({str(old)!r}, {str(target)!r}, show=False).run()
"""
    child = subprocess.Popen([sys.executable, "-c", script])
    count = "SELECT count(*) FROM universal_webhooks"
    _until(lambda: target.exists() and read(target, count)[0][0] > 60)
    child.kill()
    child.wait()
    assert 0 < len(duckdb_rows(target)["universal_webhooks"]) < 300
    # A change the server makes meanwhile to a row that was moved already stays.
    with database.Database(target).session(wait=10) as con:
        con.execute("UPDATE universal_webhooks SET payload_json = 'newer' WHERE id = 1")
    with pytest.raises(migrate.MigrationError, match="in use"):
        move(RECORDED, target)
    subprocess.run([sys.executable, "-c", script], check=True)
    rows = duckdb_rows(target)["universal_webhooks"]
    assert [(r[0], r[2]) for r in rows] == [(1, "newer")] + [(n, f"{n}") for n in range(2, 301)]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path, target):
    os.mkfifo(tmp_path / "old.db")
    with pytest.raises(old_file.OldFileError, match="not a plain file"):
        move(tmp_path / "old.db", target)


def test_columns_and_indexes_that_others_added_cost_nothing(tmp_path, target):
    insert(target, "universal_webhooks", webhook(9, "9"))
    with database.Database(target).session() as con:
        con.execute("ALTER TABLE universal_webhooks ADD COLUMN mine VARCHAR")
        con.execute("CREATE UNIQUE INDEX mine ON universal_webhooks (payload_json)")
    old = make(tmp_path / "old.db", rows={"universal_webhooks": [webhook(1, "1"), webhook(9, "old")]})
    assert move(old, target, merge=True, prefer="new").results["universal_webhooks"].is_proven
    assert sorted(row[2] for row in duckdb_rows(target)["universal_webhooks"]) == ["1", "9"]
    done = move(old, target, merge=True, prefer="old")
    assert done.results["universal_webhooks"].is_proven
    assert sorted(row[2] for row in duckdb_rows(target)["universal_webhooks"]) == ["1", "old"]


def test_a_writer_gets_in_between_the_sessions(tmp_path, target, monkeypatch):
    monkeypatch.setattr(migrate, "BATCH_ROWS", 10)
    old = make(tmp_path / "old.db", rows={"universal_webhooks": [webhook(n) for n in range(1, 201)]})
    with database.Database(target).session():
        pass
    # DuckDB knows one process: the writer must be another one.
    script = f"""
from tests.helpers.old_files import insert, webhook
for n in range(1000, 1020):
    insert(__import__("pathlib").Path({str(target)!r}), "universal_webhooks", webhook(n))
    print(n, flush=True)
"""
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "1000\n"
    done = move(old, target, merge=True)
    assert writer.wait(timeout=60) == 0
    writer.stdout.close()
    assert len(duckdb_rows(target)["universal_webhooks"]) == 220 and done.results["universal_webhooks"].is_proven


def _until(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_command_prints_the_proof_and_refuses_a_second_time(tmp_path):
    data = tmp_path / "data"
    first = gex_bridge("migrate", RECORDED, "--data-dir", data, "--json")
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    strikes = result["tables"]["gex_bridge_strikes"]
    assert strikes["proof"]["rows"] == [270, 270] and strikes["proof"]["equal"] is True
    assert set(strikes["proof"]["checksums"]) == set(schema.columns("gex_bridge_strikes"))
    second = gex_bridge("migrate", RECORDED, "--data-dir", data)
    assert (second.returncode, second.stdout) == (1, "") and "--merge" in second.stderr
    again = gex_bridge("migrate", RECORDED, "--data-dir", data, "--merge")
    assert again.returncode == 0 and "equal" in again.stdout and "DIFFERENT" not in again.stdout


def test_the_command_tells_a_wrong_question_from_a_failure(tmp_path):
    assert gex_bridge("migrate", tmp_path / "none.db", "--data-dir", tmp_path / "data").returncode == 1
    assert gex_bridge("migrate", RECORDED, "--prefer", "both").returncode == 2
