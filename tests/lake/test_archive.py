"""Closed days from the live tables to the lake: everything there once, before, during and after."""

import datetime
import json

import pytest

from data_pipeline.lake import scan_snapshots, scan_strikes, view_statements
from data_pipeline.lake.archive import archive
from data_pipeline.lake.history_file import import_file
from data_pipeline.repository.database import Database
from tests.helpers.history_files import DAY_START, day

TODAY = datetime.date(2025, 1, 6)
ALL = "SELECT * EXCLUDE ts FROM {} ORDER BY ALL"


@pytest.fixture(autouse=True)
def small_days(monkeypatch):
    monkeypatch.setattr("data_pipeline.lake.archive.LEAST_ROWS", 1)


@pytest.fixture
def database(tmp_path):
    return Database(tmp_path / "raw" / "gex" / "gex_history.duckdb")


def fill(database, tmp_path, days=4, per_day=20, ticker="SPX", strikes=3):
    """Live rows of `days` days from 2025-01-02 on, with every column that a row may have."""
    with database.session() as con:
        for d in range(days):
            for chain in day(per_day, start=DAY_START + 86400 * d, strikes=strikes):
                con.execute(
                    "INSERT INTO gex_bridge_snapshots VALUES (?, ?, 'gex_zero', 'majors', 'r', ?, NULL, 0.1, 1e300,"
                    " 'NaN', 1, 2, 3, 4, ?, '{}', '[]', ?, 'u')",
                    [ticker, chain["timestamp"], chain["spot"], strikes, json.dumps(chain)],
                )
                for s in chain["strikes"]:
                    con.execute(
                        "INSERT INTO gex_bridge_strikes VALUES (?, ?, 'gex_zero', ?, ?, ?, NULL, 1, 2, 3, 4, ?)",
                        [ticker, chain["timestamp"], *s[:3], json.dumps(s[3])],
                    )
        for statement in view_statements(tmp_path / "lake"):
            con.execute(statement)


def ask(database, sql):
    with database.session(30) as con:
        return con.execute(sql).fetchall()


def everything(database):
    return [str(ask(database, ALL.format(view))) for view in ("gex_snapshots_all", "gex_strikes_all")]


def live_days(database):
    return [
        d
        for (d,) in ask(
            database,
            "SELECT DISTINCT strftime(make_timestamp(timestamp * 1000000), '%d') FROM gex_bridge_strikes ORDER BY 1",
        )
    ]


def test_days_older_than_those_to_keep_move_and_the_views_show_the_same(database, tmp_path):
    fill(database, tmp_path)
    before = everything(database)
    result = archive(database, tmp_path, 2, today=TODAY)
    assert (len(result.days), result.snapshots, result.strikes, result.left) == (2, 40, 120, [])
    assert live_days(database) == ["04", "05"]
    assert everything(database) == before
    assert scan_snapshots(data_dir=tmp_path).collect().height == 80
    assert scan_strikes(data_dir=tmp_path).collect().height == 240


def test_a_second_run_has_nothing_to_do_and_does_nothing(database, tmp_path):
    fill(database, tmp_path)
    archive(database, tmp_path, 0, today=TODAY)
    files = {p: p.stat().st_ino for p in (tmp_path / "lake").rglob("*.parquet")}
    before = everything(database)
    result = archive(database, tmp_path, 0, today=TODAY)
    assert (result.days, result.snapshots, result.strikes) == ([], 0, 0)
    assert files == {p: p.stat().st_ino for p in (tmp_path / "lake").rglob("*.parquet")}
    assert everything(database) == before


def test_today_is_never_moved(database, tmp_path):
    fill(database, tmp_path, days=1)
    assert archive(database, tmp_path, 0, today=datetime.date(2025, 1, 2)).days == []
    assert live_days(database) == ["02"]


def test_live_rows_win_over_what_the_lake_had_of_the_same_keys(database, tmp_path):
    path = tmp_path / "h.json"
    path.write_text(json.dumps(day(30, strikes=5, seed=9)))
    import_file(path, "SPX", "gex_zero", tmp_path)
    fill(database, tmp_path, days=1)
    before = everything(database)
    archive(database, tmp_path, 0, today=TODAY)
    assert everything(database) == before
    assert scan_strikes(data_dir=tmp_path).collect().height == 20 * 3 + 10 * 5


def test_a_late_row_for_an_archived_day_joins_it_in_the_next_run(database, tmp_path):
    fill(database, tmp_path, days=1)
    archive(database, tmp_path, 0, today=TODAY)
    ask(
        database,
        "INSERT INTO gex_bridge_snapshots (ticker, timestamp, endpoint, spot)"
        f" VALUES ('SPX', {DAY_START + 500}, 'gex_zero', 7)",
    )
    ask(
        database,
        "INSERT INTO gex_bridge_snapshots (ticker, timestamp, endpoint, spot)"
        f" VALUES ('SPX', {DAY_START}, 'gex_zero', 8)",
    )
    before = everything(database)
    assert archive(database, tmp_path, 0, today=TODAY).snapshots == 2
    assert everything(database) == before
    assert ask(database, "SELECT count(*) FROM gex_bridge_snapshots") == [(0,)]
    found = scan_snapshots(data_dir=tmp_path).sort("timestamp").collect()
    assert found.height == 21 and found["spot"][0] == 8.0
    assert scan_strikes(data_dir=tmp_path).collect().height == 60


def test_a_row_that_changes_between_copy_and_delete_is_not_lost(database, tmp_path, monkeypatch):
    from data_pipeline.lake import archive as module

    fill(database, tmp_path, days=1)
    merged = module.merge

    def merge_then_change(*args):
        written = merged(*args)
        if changes:
            ask(database, changes.pop())
        return written

    changes = [
        "UPDATE gex_bridge_strikes SET gamma_now = 99 WHERE strike = 5700",
        "UPDATE gex_bridge_snapshots SET spot = 77",
    ]
    monkeypatch.setattr(module, "merge", merge_then_change)
    result = archive(database, tmp_path, 0, today=TODAY)
    assert (len(result.days), result.snapshots, result.strikes) == (1, 20, 60)
    assert set(scan_snapshots(data_dir=tmp_path).collect()["spot"]) == {77.0}
    assert (scan_strikes(data_dir=tmp_path).collect()["gamma_now"] == 99).sum() == 20


def test_rows_that_keep_changing_stay_where_they_are(database, tmp_path, monkeypatch):
    from data_pipeline.lake import archive as module

    fill(database, tmp_path, days=1)
    merged = module.merge

    def merge_then_change(*args):
        written = merged(*args)
        ask(database, "UPDATE gex_bridge_snapshots SET spot = spot + 1")
        return written

    monkeypatch.setattr(module, "merge", merge_then_change)
    before = ask(database, "SELECT count(*), max(spot) FROM gex_bridge_snapshots")[0]
    result = archive(database, tmp_path, 0, today=TODAY)
    assert result.days == [] and "kept changing" in result.left[0]
    assert ask(database, "SELECT count(*), max(spot) FROM gex_snapshots_all") == [(before[0], before[1] + 3)]


def test_strikes_that_only_the_lake_has_stop_the_archive_before_a_row_is_deleted(database, tmp_path, monkeypatch):
    from data_pipeline.lake import archive as module

    fill(database, tmp_path, days=1)
    merged = module.merge

    def merge_then_change(*args):
        merged(*args)
        ask(database, f"DELETE FROM gex_bridge_strikes WHERE strike = 5700 AND timestamp = {DAY_START}")

    monkeypatch.setattr(module, "merge", merge_then_change)
    result = archive(database, tmp_path, 0, today=TODAY)
    said = "ticker=SPX/endpoint=gex_zero/date=2025-01-02: strikes: 59 rows in the tables and 60 in the lake"
    assert (result.days, result.failed) == ([], [said])
    assert ask(database, "SELECT count(*) FROM gex_bridge_strikes") == [(59,)]
    assert ask(database, "SELECT count(*) FROM gex_bridge_snapshots") == [(20,)]


def test_keys_and_names_that_the_lake_cannot_have_stay_and_are_named(database, tmp_path):
    fill(database, tmp_path, days=1, ticker="X" * 300)
    fill(database, tmp_path, days=1, ticker="")
    fill(database, tmp_path, days=1)
    ask(
        database,
        "INSERT INTO gex_bridge_snapshots (ticker, timestamp, endpoint)"
        f" VALUES ('A', {DAY_START * 1000}, 'e'), ('A', -5, 'e'), ('A', {2**63 - 1}, 'e')",
    )
    before = everything(database)
    result = archive(database, tmp_path, 0, today=TODAY)
    assert len(result.days) == 2 and result.snapshots == 21
    assert sorted(result.left) == [
        "'' is empty for a partition of the lake",
        f"'{'X' * 40}' is too long for a partition of the lake",
        "2 snapshots whose key is not a time",
    ]
    assert everything(database) == before


def test_a_big_day_goes_in_several_sessions(database, tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.lake.write.ROWS_AT_ONCE", 10)
    fill(database, tmp_path, days=1)
    before = everything(database)
    result = archive(database, tmp_path, 0, today=TODAY)
    assert (result.snapshots, result.strikes) == (20, 60) and everything(database) == before


@pytest.mark.parametrize("broken", ["all", "footer"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_day_stays_and_is_named_while_all_others_move(database, tmp_path, broken, which):
    fill(database, tmp_path)
    archive(database, tmp_path, 2, today=TODAY)
    file = sorted((tmp_path / "lake" / "strikes").rglob("*.parquet"))[which]
    good = file.read_bytes()
    file.write_bytes(b"x" * 1000 if broken == "all" else good[:-200] + bytes(192) + good[-8:])
    late = DAY_START + 86400 * which + 500
    ask(
        database,
        f"INSERT INTO gex_bridge_snapshots (ticker, timestamp, endpoint, spot) VALUES ('SPX', {late}, 'gex_zero', 7)",
    )
    result = archive(database, tmp_path, 0, today=TODAY)
    day_ = f"ticker=SPX/endpoint=gex_zero/date=2025-01-0{2 + which}"
    assert [d[-10:] for d in result.days] == ["2025-01-04", "2025-01-05"] and result.snapshots == 40
    assert len(result.failed) == 1 and result.failed[0].startswith(day_) and "is damaged" in result.failed[0]
    assert ask(database, "SELECT timestamp FROM gex_bridge_snapshots") == [(late,)]
    file.rename(file.parent.with_name(file.parent.name + ".bak"))  # away with it, under any name
    assert archive(database, tmp_path, 0, today=TODAY).days == [day_]
    assert ask(database, "SELECT count(*) FROM gex_snapshots_all") == [(81,)]
    assert ask(database, "SELECT count(*) FROM gex_strikes_all") == [(240 - 60,)]


def test_rows_do_not_go_where_no_view_would_show_them(database, tmp_path):
    fill(database, tmp_path, days=1)  # the views are as without a lake
    broken = tmp_path / "lake" / "strikes" / "ticker=A" / "endpoint=e" / "date=2020-01-01" / "part-0.parquet"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"x")
    result = archive(database, tmp_path, 0, today=TODAY)
    assert result.days == [] and "views on the lake cannot be made" in result.failed[0]
    assert "\n" not in result.failed[0]
    assert ask(database, "SELECT count(*) FROM gex_bridge_strikes") == [(60,)]


def test_milliseconds_are_archived_by_their_day_and_meet_their_seconds_once(database, tmp_path):
    fill(database, tmp_path, days=1)
    ask(database, "UPDATE gex_bridge_snapshots SET timestamp = timestamp * 1000 + 7")
    ask(database, "UPDATE gex_bridge_strikes SET timestamp = timestamp * 1000 + 7")
    path = tmp_path / "same.json"
    path.write_text(json.dumps(day(20)))
    import_file(path, "SPX", "gex_zero", tmp_path)
    counts = "SELECT count(*), min(timestamp) FROM {}"

    def shown():
        views = [ask(database, counts.format(view)) for view in ("gex_snapshots_all", "gex_strikes_all")]
        scans = [scan(data_dir=tmp_path).collect().height for scan in (scan_snapshots, scan_strikes)]
        return views, scans

    with database.session() as con:
        for statement in view_statements(tmp_path / "lake"):
            con.execute(statement)
    before = shown()
    assert before == ([[(20, DAY_START * 1000 + 7)], [(60, DAY_START * 1000 + 7)]], [20, 60])
    result = archive(database, tmp_path, 0, today=TODAY)
    assert (len(result.days), result.snapshots, result.strikes, result.left) == (1, 20, 60, [])
    assert shown() == before
    assert scan_snapshots(start="2025-01-02", end=DAY_START + 10, data_dir=tmp_path).collect().height == 10
    import_file(path, "SPX", "gex_zero", tmp_path, again=True)
    assert shown()[1] == [20, 60]


def test_days_with_few_rows_wait_in_the_live_tables(database, tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.lake.archive.LEAST_ROWS", 81)
    fill(database, tmp_path, days=2)
    fill(database, tmp_path, days=1, ticker="BIG", strikes=4)
    result = archive(database, tmp_path, 0, today=TODAY)
    assert result.days == ["ticker=BIG/endpoint=gex_zero/date=2025-01-02"] and result.waiting == 2
    assert ask(database, "SELECT count(*) FROM gex_bridge_snapshots") == [(40,)]


def test_what_stops_a_commit_is_what_is_said(database, tmp_path, monkeypatch):
    import duckdb

    from data_pipeline.lake import archive as module

    class FullDisk:
        def __init__(self, con):
            self.con = con

        def execute(self, sql, *parameters):
            if sql != "COMMIT":
                return self.con.execute(sql, *parameters)
            self.con.execute("ROLLBACK")
            raise duckdb.IOException("IO Error: no space left on the device\nand more")

    delete = module._delete
    monkeypatch.setattr(module, "_delete", lambda con, *rest: delete(FullDisk(con), *rest))
    fill(database, tmp_path, days=1)
    result = archive(database, tmp_path, 0, today=TODAY)
    assert result.failed == ["ticker=SPX/endpoint=gex_zero/date=2025-01-02: IO Error: no space left on the device"]
