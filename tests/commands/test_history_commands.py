"""The commands import, history and archive as a user runs them: output, exit codes, the database afterwards."""

import json

import pytest

from data_pipeline.repository.database import Database
from tests.helpers import support
from tests.helpers.history_files import DAY_START, day
from tests.helpers.web import Web
from tests.history.test_importer import add


def gex_bridge(tmp_path, *args, code=0, **env):
    done = support.gex_bridge(*args, "--data-dir", tmp_path / "data", PATH="", **env)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "raw" / "gex" / "gex_history.duckdb"


OF = ("--ticker", "SPX", "--endpoint", "gex_zero")


def test_import_says_what_it_did_and_the_views_show_it(tmp_path, path):
    with Database(path).session():
        pass
    (tmp_path / "a.json").write_text(json.dumps(day(5)))
    done = gex_bridge(tmp_path, "import", tmp_path / "a.json", *OF)
    assert done.stdout.startswith("a.json: 5 snapshots, 15 strikes, 2025-01-02, ")
    assert "a.json: reading" in done.stderr and "\r" not in done.stderr
    with Database(path).session() as con:
        assert con.execute("SELECT count(*) FROM gex_strikes_all").fetchone() == (15,)
    assert gex_bridge(tmp_path, "import", tmp_path / "a.json", *OF).stdout == "a.json: imported before\n"
    assert "5 snapshots" in gex_bridge(tmp_path, "import", tmp_path / "a.json", *OF, "--again").stdout


def test_a_folder_is_imported_file_by_file_and_a_bad_one_does_not_stop_the_rest(tmp_path):
    folder = tmp_path / "files" / "below"
    folder.mkdir(parents=True)
    for i, name in enumerate(("a.json", "c.ndjson.gz", "d.jsonl")):
        (folder / name).write_text(json.dumps(day(2, start=DAY_START + 10 * i)))
    (folder / "b.json").write_text("nothing")
    (folder / "notes.txt").write_text("no history")
    done = gex_bridge(tmp_path, "import", tmp_path / "files", *OF, "--json", code=1)
    said = json.loads(done.stdout)["files"]
    assert [(one["file"], one.get("snapshots"), one.get("error")) for one in said] == [
        ("a.json", 2, None),
        ("b.json", None, "1 of 1 records skipped: record 1: not JSON, or longer than 4 MiB with its rows"),
        ("c.ndjson.gz", 2, None),
        ("d.jsonl", 2, None),
    ]
    assert "reading" not in done.stderr


def test_import_of_nothing_fails_with_one_line(tmp_path):
    done = gex_bridge(tmp_path, "import", tmp_path / "none.json", *OF, code=1)
    assert "No such file" in done.stderr and "Traceback" not in done.stderr
    (tmp_path / "empty").mkdir()
    assert "no history files" in gex_bridge(tmp_path, "import", tmp_path / "empty", *OF, code=1).stderr
    assert (
        "too long" in gex_bridge(tmp_path, "import", __file__, "--ticker", "X" * 300, "--endpoint", "e", code=1).stderr
    )


def test_a_damaged_partition_is_named_and_left_alone(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(day(5)))
    gex_bridge(tmp_path, "import", tmp_path / "a.json", *OF)
    for file in (tmp_path / "data" / "lake").rglob("*.parquet"):
        file.write_bytes(file.read_bytes()[:-100])
    done = gex_bridge(tmp_path, "import", tmp_path / "a.json", *OF, "--again", code=1)
    assert "part-0.parquet is damaged" in done.stderr and "Traceback" not in done.stderr


def test_history_shows_the_queue_without_signatures_and_runs_a_job(tmp_path, path):
    assert "no queue yet" in gex_bridge(tmp_path, "history").stderr
    with Web() as web:
        web.files["/a.json"] = json.dumps(day(5)).encode()
        add(path, (f"{web.url}/a.json?sig=SECRET", "SPX", "gex_zero"), ("http://[x?sig=SECRET", "A\nB", "e"))
        shown = gex_bridge(tmp_path, "history").stdout
        assert "pending    0" in shown and "SECRET" not in shown and len(shown.splitlines()) == 2
        done = gex_bridge(tmp_path, "history", "--run", 1, "--json", HISTORY_ALLOWED_HOSTS="127.0.0.1")
    (row,) = json.loads(done.stdout)
    assert (row["status"], row["attempts"], row["url"]) == ("completed", 1, f"{web.url}/a.json?…")
    assert "SECRET" not in done.stdout + done.stderr
    failed = gex_bridge(tmp_path, "history", "--run", 2, code=1)
    assert "failed" in failed.stdout and "Traceback" not in failed.stderr
    assert "pending    0" in gex_bridge(tmp_path, "history", "--retry", 2).stdout
    for option in ("--retry", "--run"):
        assert "no job 9" in gex_bridge(tmp_path, "history", option, 9, code=1).stderr


def test_what_duckdb_says_of_a_queue_that_is_not_ours_is_one_line(tmp_path, path):
    with Database(path).session() as con:
        con.execute("DROP TABLE gex_history_queue")
        con.execute("CREATE TABLE gex_history_queue (a INTEGER)")
    done = gex_bridge(tmp_path, "history", code=1)
    (line,) = done.stderr.splitlines()
    assert line.startswith("gex-bridge: ") and "Error" in line


def test_archive_fails_with_the_name_of_a_damaged_day(tmp_path, path):
    with Database(path).session():
        pass
    (tmp_path / "a.json").write_text(json.dumps(day(5)))
    gex_bridge(tmp_path, "import", tmp_path / "a.json", *OF)
    for file in (tmp_path / "data" / "lake").rglob("*.parquet"):
        file.write_bytes(b"x" * 100)
    with Database(path).session() as con:
        con.execute(
            "INSERT INTO gex_bridge_snapshots (ticker, timestamp, endpoint) SELECT 'SPX', unnest(?), 'gex_zero'",
            [[start + i for start in (DAY_START, DAY_START + 86400) for i in range(1000)]],
        )
    done = gex_bridge(tmp_path, "archive", "--keep-days", 1, "--json", code=1)
    said = json.loads(done.stdout)
    assert [name[-10:] for name in said["days"]] == ["2025-01-03"] and len(said["failed"]) == 1
    assert "part-0.parquet is damaged" in done.stderr and "Traceback" not in done.stderr


def test_archive_says_what_it_moved(tmp_path, path):
    assert "no database" in gex_bridge(tmp_path, "archive", "--keep-days", 1, code=1).stderr
    assert "0 or more" in gex_bridge(tmp_path, "archive", "--keep-days", -1, code=2).stderr
    with Database(path).session() as con:
        con.execute(
            "INSERT INTO gex_bridge_snapshots (ticker, timestamp, endpoint)"
            f" SELECT 'SPX', {DAY_START} + i, 'e' FROM range(1000) of(i) UNION ALL SELECT 'NDX', {DAY_START}, 'e'"
        )
    done = gex_bridge(tmp_path, "archive", "--keep-days", 1).stdout
    assert done.startswith("1,000 snapshots, 0 strikes moved, 1 days, ") and "waiting: 1 days with few rows" in done
    said = json.loads(gex_bridge(tmp_path, "archive", "--keep-days", 1, "--json").stdout)
    assert (said["snapshots"], said["days"], said["left"], said["waiting"]) == (0, [], [], 1)
    with Database(path).session() as con:
        assert con.execute("SELECT count(*) FROM gex_snapshots_all").fetchone() == (1001,)


def test_an_import_takes_ticker_and_endpoint_from_the_files_name(tmp_path):
    (tmp_path / "2025-11-14_NQ_NDX_classic_gex_zero.json").write_text(json.dumps(day(5)))
    (tmp_path / "other.json").write_text(json.dumps(day(5)))
    done = gex_bridge(tmp_path, "import", tmp_path / "2025-11-14_NQ_NDX_classic_gex_zero.json", "--json")
    (said,) = json.loads(done.stdout)["files"]
    assert (said["ticker"], said["endpoint"], said["foreign"]) == ("NQ_NDX", "gex_zero", 5)
    assert "give --ticker and --endpoint" in gex_bridge(tmp_path, "import", tmp_path / "other.json", code=1).stderr


def test_a_good_import_beside_a_damaged_day_is_said_to_be_good(tmp_path, path):
    with Database(path).session():
        pass
    (tmp_path / "a.json").write_text(json.dumps(day(5)))
    gex_bridge(tmp_path, "import", tmp_path / "a.json", *OF)
    for file in (tmp_path / "data" / "lake").rglob("*.parquet"):
        file.write_bytes(b"x" * 100)
    (tmp_path / "b.json").write_text(json.dumps(day(5, start=DAY_START + 86400)))
    done = gex_bridge(tmp_path, "import", tmp_path / "b.json", *OF, "--json")
    assert json.loads(done.stdout)["files"][0]["snapshots"] == 5
    assert "Traceback" not in done.stderr


def test_links_that_the_download_command_was_given_are_named(tmp_path, path):
    add(path, ("https://hist.gex.bot/a", "SPX", "e"), ("https://hist.gex.bot/b", "SPX", "e"))
    with Database(path).session() as con:
        con.execute("UPDATE gex_history_queue SET status = 'started' WHERE id = 2")
    said = gex_bridge(tmp_path, "history", HISTORY_DOWNLOAD_COMMAND="true").stderr
    assert "the download command was given" in said and ": 2;" in said
