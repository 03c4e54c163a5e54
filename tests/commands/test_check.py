"""Real folders of a real bridge, then real damage."""

import json
import shutil

import duckdb
import pytest

from data_pipeline.repository import segments
from tests.helpers.support import RunningBridge, eventually, gex_bridge, gex_payload, journal_record, read


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The data folder of a bridge that took some payloads and was stopped."""
    with RunningBridge(tmp_path_factory.mktemp("check") / "data", STOP_TIMEOUT="30") as bridge:
        for number in range(5):
            assert bridge.post("/gex", gex_payload("SPX", 1762700000 + number)) == 202
            assert (
                bridge.post("/gex", gex_payload("NDX", 1762700000 + number, note="half \ud800", nan=float("nan")))
                == 202
            )
            assert (
                bridge.post("/uw", {"n": number, "topic": "option_trades_super_algo", "alert": {"symbol": "X\udfff"}})
                == 200
            )
        assert bridge.post("/gex_history_url", {"url": "https://x/y", "ticker": "SPX", "endpoint": "e"}) == 202
        assert bridge.stop() == 0
    return bridge.data_dir


@pytest.fixture
def data(original, tmp_path):
    shutil.copytree(original, tmp_path / "data")
    return tmp_path / "data"


def check(data, *flags) -> tuple[int, dict]:
    code, out, error = gex_bridge("check", "--json", "--data-dir", data, *flags)
    assert "Traceback" not in error
    return code, json.loads(out)


def problems(result: dict) -> dict[str, str]:
    """What is broken, by path."""
    return {f["path"]: f["problem"] for f in result["findings"] if f["broken"] and not f["repaired"]}


def notes(result: dict) -> dict[str, str]:
    return {f["path"]: f["problem"] for f in result["findings"] if not f["broken"]}


def segment(data):
    return segments.list_segments(data / "journal")[-1]


def test_what_a_bridge_leaves_is_whole_and_everything_was_read(data):
    code, result = check(data)
    assert (code, result["whole"], result["findings"]) == (0, True, [])
    assert result["counts"]["journal"]["records"] == 16
    assert result["counts"]["files"] == {"tickers": 2, "spot_lines": 10}
    assert result["counts"]["depth"] == {"files": 2, "lines": 10}
    assert result["counts"]["tables"] == {
        "gex_bridge_snapshots": 10,
        "gex_bridge_strikes": 30,
        "gex_history_queue": 1,
        "universal_webhooks": 5,
        "option_trades_events": 5,
    }


def test_looking_changes_nothing(data):
    def everything():
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in data.rglob("*") if path.is_file()}

    (data / "raw/gex/latest.json").write_text("{")
    before = everything()
    assert check(data)[0] == 1
    assert everything() == before


def test_a_running_bridge_is_looked_at_without_harm_but_not_repaired(bridge):
    assert bridge.post("/gex", gex_payload()) == 202
    eventually(lambda: bridge.rows("SELECT count(*) FROM gex_bridge_snapshots")[0][0] == 1)
    code, result = check(bridge.data_dir)
    assert (code, result["running"], result["whole"]) == (0, True, True), result
    code, out, error = gex_bridge("check", "--repair", "--data-dir", bridge.data_dir)
    assert (code, out) == (1, "") and "stop it before --repair" in error
    assert bridge.post("/gex", gex_payload("AFTER")) == 202
    assert bridge.stop() == 0


def test_a_folder_that_is_not_there_is_code_1_and_an_empty_one_is_whole(tmp_path):
    code, out, error = gex_bridge("check", "--data-dir", tmp_path / "none")
    assert (code, out) == (1, "") and "there is no folder" in error
    assert check(tmp_path)[0] == 0
    assert list(tmp_path.iterdir()) == []


def test_after_kill_9_it_says_what_waits_and_nothing_is_broken(tmp_path):
    with RunningBridge(tmp_path / "data", LOAD_INTERVAL="3600") as bridge:
        assert bridge.post("/uw", {"n": 0}) == 200
        eventually(lambda: bridge.rows("SELECT count(*) FROM universal_webhooks")[0][0] == 1)
        assert bridge.post("/uw", {"n": 1}) == 200
        bridge.kill()
    eventually(lambda: not check(bridge.data_dir)[1]["running"])
    code, result = check(bridge.data_dir)
    assert code == 0, result
    assert "1 records are not in the tables yet" in notes(result)["raw/gex/gex_history.duckdb"]


# The journal


def test_a_record_that_was_never_finished_is_only_a_note(data):
    whole = segment(data).stat().st_size
    with open(segment(data), "ab") as file:
        file.write(journal_record(17, b"{}" * 100)[:-3])
    code, result = check(data)
    assert code == 0 and "never acknowledged" in notes(result)[f"journal/{segment(data).name}"]
    assert whole < segment(data).stat().st_size


def test_a_flipped_bit_in_a_record_that_was_not_used_yet_is_named(data):
    for name in ("files.position", "depth.position"):
        (data / "journal" / name).unlink()
    raw = bytearray(segment(data).read_bytes())
    raw[segments.HEADER_BYTES + segments.RECORD.size + 5] ^= 1
    segment(data).write_bytes(raw)
    code, result = check(data)
    assert code == 1
    assert (
        "damaged: what was acknowledged behind record 0 is lost there"
        in problems(result)[f"journal/{segment(data).name}"]
    )
    assert result["counts"]["journal"]["records"] == 15


def test_a_flipped_bit_in_a_record_that_is_in_tables_and_files_is_only_a_note(data):
    raw = bytearray(segment(data).read_bytes())
    raw[segments.HEADER_BYTES + segments.RECORD.size + 5] ^= 1
    segment(data).write_bytes(raw)
    code, result = check(data)
    assert code == 0 and "damaged" in notes(result)[f"journal/{segment(data).name}"]


def test_damaged_headers_are_named_one_copy_as_a_note(data):
    raw = bytearray(segment(data).read_bytes())
    raw[3] ^= 1
    segment(data).write_bytes(raw)
    code, result = check(data)
    assert code == 0 and "one of the two copies" in notes(result)[f"journal/{segment(data).name}"]
    raw[segments.HEADER.size + 3] ^= 1
    segment(data).write_bytes(raw)
    code, result = check(data)
    assert code == 1 and "both copies" in problems(result)[f"journal/{segment(data).name}"]


def test_a_gap_between_records_is_named(data):
    with open(segment(data), "ab") as file:
        file.write(journal_record(20, b'{"type":"uw","at":"2025-11-09T15:00:00","client":"c","agent":""}\n{}'))
    code, result = check(data)
    assert code == 1 and problems(result)["journal"] == "records 17 to 19 are missing"


def test_a_whole_record_that_is_none_of_ours_is_named(data):
    with open(segment(data), "ab") as file:
        file.write(journal_record(17, b'{"type":"elephant"}\n'))
    assert "record 17 is none of ours" in problems(check(data)[1])["journal"]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"position": "1"}', '{"journal": "", "position": "1", "lengths": {}}', "[" * 5000]
)
def test_a_damaged_note_of_a_reader_is_named_and_the_bridge_starts_with_it(data, content):
    note = data / "journal" / "files.position"
    note.write_text(content)
    code, result = check(data)
    assert code == 1 and problems(result)["journal/files.position"].startswith("damaged; the next start moves it aside")
    code, result = check(data, "--repair")
    assert code == 1 and note.read_text() == content
    if content == "{":
        with RunningBridge(data, STOP_TIMEOUT="30") as bridge:
            assert bridge.post("/gex", gex_payload()) == 202
            assert bridge.stop() == 0
        assert check(data)[0] == 0


def test_a_reader_ahead_of_the_journal_is_named(data):
    note = data / "journal" / "depth.position"
    note.write_text(json.dumps({**json.loads(note.read_text()), "position": 99}))
    assert problems(check(data)[1])["journal/depth.position"] == "says 99, but the journal ends with 16"


def test_records_that_were_set_aside_are_counted(data):
    (data / "journal" / "set-aside.jsonl").write_text('{"record": 1}\n{"record": 2}\n')
    code, result = check(data)
    assert code == 0 and notes(result)["journal/set-aside.jsonl"].startswith("2 records could not be used")


# Files


@pytest.mark.parametrize(
    "name, note", [("raw/gex/spot_series.jsonl", "files"), ("depth/SPX/2025-11-09.jsonl", "depth")]
)
def test_a_line_that_a_crash_tore_is_cut_off_and_written_again_by_the_next_start(data, name, note):
    path, noted = data / name, data / "journal" / f"{note}.position"
    before = path.read_bytes()
    start = before[:-1].rindex(b"\n") + 1
    # As a crash leaves it: the note says how long the file was before the last line, of which a part is there.
    position = json.loads(noted.read_text())
    last = {"raw/gex/spot_series.jsonl": 14, "depth/SPX/2025-11-09.jsonl": 13}[name]
    noted.write_text(json.dumps({**position, "position": last - 1, "lengths": {name: start}}))
    path.write_bytes(before[:-3])
    code, result = check(data)
    assert code == 0 and "the next start cuts it off" in notes(result)[name]
    with RunningBridge(data, STOP_TIMEOUT="30") as bridge:
        assert bridge.stop() == 0
    assert path.read_bytes() == before
    assert check(data)[1]["findings"] == []


def test_a_torn_line_that_no_start_will_cut_off_is_named_and_left(data):
    path = data / "raw/gex/spot_series.jsonl"
    with open(path, "ab") as file:
        file.write(b'{"timestamp": 17')
    before = path.read_bytes()
    for flags in ((), ("--repair",)):
        code, result = check(data, *flags)
        assert code == 1 and problems(result) == {"raw/gex/spot_series.jsonl": "the last line is torn, 16 bytes"}
    assert path.read_bytes() == before


def test_lines_in_the_middle_that_are_no_objects_are_named_and_left(data):
    path = data / "depth/SPX/2025-11-09.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[1], lines[3] = b"\0\0\0", b"[1]"
    path.write_bytes(b"\n".join(lines))
    for flags in ((), ("--repair",)):
        code, result = check(data, *flags)
        assert code == 1 and problems(result) == {"depth/SPX/2025-11-09.jsonl": "2 lines are no JSON objects: 2, 4"}
    assert path.read_bytes() == b"\n".join(lines)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"SPX": 5}', b"\xff\xfe"])
def test_a_latest_json_that_is_not_readable_is_moved_aside_and_made_again(data, content):
    path = data / "raw/gex/latest.json"
    before = path.read_bytes()
    path.write_bytes(content)
    code, result = check(data)
    assert code == 1 and problems(result)["raw/gex/latest.json"].startswith("not readable")
    code, result = check(data, "--repair")
    assert code == 0 and path.read_bytes() == before
    assert path.with_name("latest.json.damaged").read_bytes() == content
    with RunningBridge(data, STOP_TIMEOUT="30") as bridge:
        assert bridge.post("/gex", gex_payload("NEW")) == 202
        assert bridge.stop() == 0
    assert set(json.loads(path.read_text())) == {"SPX", "NDX", "NEW"}


def test_a_missing_latest_json_comes_back_from_the_tables_when_the_journal_has_moved_on(data):
    path = data / "raw/gex/latest.json"
    before = json.loads(path.read_text())
    path.unlink()
    assert problems(check(data)[1]) == {"raw/gex/latest.json": "missing"}
    shutil.rmtree(data / "journal")
    assert check(data, "--repair")[0] == 0
    after = json.loads(path.read_text())
    # A table's text column holds no lone surrogate; all else is as it was.
    assert after["SPX"] == before["SPX"] and set(after) == {"SPX", "NDX"}


@pytest.mark.parametrize(
    "name, damage",
    [
        ("snapshot.json", b'{"ticker": "SPX"'),
        ("metadata.json", b""),
        ("snapshot.csv", b"strike,gex,volume,open_interest\r\n5300"),
        ("snapshot.csv", b"strike,gex,volume,open_interest\r\n5300,1,0,0\r\n"),
        ("snapshot.csv", b"\xff"),
        ("snapshot.csv", None),
        ("snapshot.json", None),
    ],
)
def test_a_tickers_files_are_written_anew_from_latest_json(data, name, damage):
    path = data / "gex/SPX" / name
    before = path.read_bytes()
    path.unlink() if damage is None else path.write_bytes(damage)
    code, result = check(data)
    assert code == 1 and list(problems(result)) == ["gex/SPX"]
    assert check(data, "--repair")[0] == 0
    if name != "metadata.json":
        assert path.read_bytes() == before
    assert check(data)[1]["findings"] == []


def test_a_ticker_of_another_folder_is_named(data):
    shutil.copytree(data / "gex/SPX", data / "gex/QQQ")
    assert "of another ticker, 'SPX'" in problems(check(data)[1])["gex/QQQ"]


def test_temporary_files_of_a_crash_are_a_note_and_the_next_start_removes_them(data):
    stale = [data / folder / ".x.json.0123456789ab.tmp~" for folder in ("raw/gex", "gex/SPX", "depth/SPX")]
    for path in stale:
        path.touch()
    code, result = check(data)
    assert code == 0 and len(notes(result)) == 3
    with RunningBridge(data, STOP_TIMEOUT="30") as bridge:
        assert bridge.stop() == 0
    assert not any(path.exists() for path in stale)


def test_a_repair_that_did_not_help_says_what_is_still_broken(data):
    shutil.rmtree(data / "gex/SPX")
    (data / "gex/SPX").write_text("in the way")
    (data / "gex/NDX/snapshot.csv").unlink()
    code, result = check(data, "--repair")
    assert (code, result["whole"], list(problems(result))) == (1, False, ["gex/SPX"])
    assert [f["path"] for f in result["findings"] if f["repaired"]] == ["gex/NDX"]
    code, out, _ = gex_bridge("check", "--repair", "--data-dir", data)
    assert code == 1 and out.endswith("not everything is whole\n") and "repaired" not in out


@pytest.mark.parametrize("name", ["snapshot.json", "snapshot.csv"])
def test_a_folder_in_the_place_of_a_tickers_file_is_named_and_no_repair_helps(data, name):
    (data / "gex/SPX" / name).unlink()
    (data / "gex/SPX" / name).mkdir()
    for flags in ((), ("--repair",)):
        code, result = check(data, *flags)
        assert code == 1 and problems(result) == {"gex/SPX": f"{name}: Is a directory"}


def test_a_repair_combines_payloads_as_the_bridge_is_set_to(data):
    (data / "raw/gex/latest.json").unlink()
    assert gex_bridge("check", "--repair", "--data-dir", data, VALUES="own")[0] == 0
    assert "NaN" not in (data / "raw/gex/latest.json").read_text()


def test_an_older_latest_json_is_read_however_deep_it_is(data):
    path = data / "raw/gex/latest.json"
    documents = json.loads(path.read_text())
    documents["SPX"]["snapshot"]["deep"] = json.loads("[" * 500 + "]" * 500)
    path.write_text(json.dumps(documents))
    assert check(data)[0] == 0
    path.write_text('{"SPX": ' + "[" * 100_000 + "]" * 100_000 + "}")
    assert "not readable" in problems(check(data)[1])["raw/gex/latest.json"]
    assert check(data, "--repair")[0] == 0


# Tables


def change(data, *statements) -> None:
    with duckdb.connect(str(data / "raw/gex/gex_history.duckdb")) as con:
        for statement in statements:
            con.execute(statement)


@pytest.mark.parametrize(
    "table, statement, said",
    [
        (
            "gex_bridge_strikes",
            "DELETE FROM gex_bridge_strikes WHERE ticker = 'SPX' AND strike = 5300",
            "5 snapshots have another number of strikes",
        ),
        (
            "universal_webhooks",
            "UPDATE universal_webhooks SET payload_json = '{' WHERE id = 2",
            "payload_json is no JSON in 1 rows",
        ),
        (
            "gex_bridge_snapshots",
            "UPDATE gex_bridge_snapshots SET max_priors_json = '[1,' WHERE ticker = 'SPX'",
            "max_priors_json is no JSON in 5 rows",
        ),
        (
            "option_trades_events",
            "ALTER TABLE option_trades_events DROP COLUMN broker",
            "its columns are not ours: 'broker'",
        ),
        ("universal_webhooks", "DROP TABLE universal_webhooks", "the table is missing"),
        ("gex_history_queue", "DROP INDEX idx_history_queue_status", "the index idx_history_queue_status is missing"),
        (
            "universal_webhooks",
            "UPDATE bridge_ids SET last_id = 3 WHERE table_name = 'universal_webhooks'",
            "ids go up to 5, but only 3",
        ),
        ("bridge_journal", "UPDATE bridge_journal SET position = 99", "says 99, but the journal ends with 16"),
    ],
)
def test_a_table_that_is_not_as_it_should_be_is_named(data, table, statement, said):
    change(data, statement)
    code, result = check(data)
    assert code == 1 and list(problems(result)) == [table] and said in problems(result)[table]


def test_a_table_without_its_key_is_named_with_the_rows_that_are_there_twice(data):
    change(
        data,
        "CREATE TABLE t AS FROM universal_webhooks",
        "DROP TABLE universal_webhooks",
        "ALTER TABLE t RENAME TO universal_webhooks",
        "INSERT INTO universal_webhooks FROM universal_webhooks WHERE id < 3",
    )
    change(
        data, *(f"ALTER TABLE universal_webhooks ALTER {c} SET NOT NULL" for c in ("id", "received_at", "payload_json"))
    )
    _, result = check(data)
    said = " ".join(f["problem"] for f in result["findings"])
    assert "its primary key is not (id)" in said and "2 rows have the key of another one" in said


def test_strikes_without_a_snapshot_are_only_a_note(data):
    change(data, "INSERT INTO gex_bridge_strikes (ticker, timestamp, endpoint, strike) VALUES ('OLD', 1, 'unknown', 5)")
    code, result = check(data)
    assert code == 0 and "1 keys have no snapshot" in notes(result)["gex_bridge_strikes"]


def test_a_database_file_with_damage_in_it_is_named(data):
    path = data / "raw/gex/gex_history.duckdb"
    raw = bytearray(path.read_bytes())
    for at in range(3 * 4096, len(raw), 4096):
        raw[at + 100] ^= 0xFF
    path.write_bytes(raw)
    code, result = check(data)
    assert code == 1 and "cannot be read" in problems(result)["raw/gex/gex_history.duckdb"]


def test_something_else_in_the_databases_place_is_named(data):
    (data / "raw/gex/gex_history.duckdb").write_bytes(b"something else entirely")
    assert "not a DuckDB database" in problems(check(data)[1])["raw/gex/gex_history.duckdb"]


def test_the_text_says_for_each_part_whether_it_is_whole(data):
    (data / "gex/SPX/snapshot.csv").unlink()
    code, out, error = gex_bridge("check", "--data-dir", data)
    lines = out.splitlines()
    assert (code, error) == (1, "")
    assert [line.split()[:2] for line in lines[:4]] == [
        ["journal", "whole"],
        ["files", "1"],
        ["depth", "whole"],
        ["tables", "whole"],
    ]
    assert lines[4].startswith("BROKEN   gex/SPX: ") and "--repair: written anew" in lines[4]
    assert lines[-1] == "not everything is whole"


def test_a_repaired_folder_is_one_the_bridge_goes_on_with(data):
    (data / "gex/SPX/snapshot.json").write_bytes(b"")
    assert check(data, "--repair")[0] == 0
    with RunningBridge(data, STOP_TIMEOUT="30") as bridge:
        assert bridge.post("/gex", gex_payload("SPX", 1762800000)) == 202
        assert bridge.stop() == 0
    assert check(data)[1]["findings"] == []
    assert read(bridge.database, "SELECT count(*) FROM gex_bridge_snapshots") == [(11,)]
    assert len((data / "raw/gex/spot_series.jsonl").read_text().splitlines()) == 11
