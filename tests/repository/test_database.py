import concurrent.futures
import contextlib
import sqlite3
import subprocess
import sys

import duckdb
import pytest

from data_pipeline.repository import schema
from data_pipeline.repository.database import (
    Database,
    DatabaseBusy,
    DatabaseDamaged,
    first_line,
    last_id,
    note_last_id,
    note_position,
    position,
)
from tests.helpers.support import PATIENCE

HOLD = """
import sys, duckdb
con = duckdb.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held_by_another_process(path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout.readline() == "held\n"
        try:
            yield child
        finally:
            child.kill()


@pytest.fixture
def database(tmp_path):
    return Database(tmp_path / "raw" / "gex_history.duckdb")


def ask(path, query):
    with duckdb.connect(str(path), read_only=True) as con:
        return con.execute(query).fetchall()


def test_the_tables_have_the_columns_types_keys_and_indexes_of_the_schema(database):
    with database.session():
        pass
    for table, columns in schema.TABLES.items():
        found = ask(database.path, f"SELECT name, type, \"notnull\" FROM pragma_table_info('{table}') ORDER BY cid")
        keys = schema.KEYS[table]
        assert found == [(name, kind.split()[0], "NOT NULL" in kind or name in keys) for name, kind in columns], table
    indexes = ask(database.path, "SELECT index_name, table_name FROM duckdb_indexes()")
    assert set(indexes) == {(name, table) for name, (table, _) in schema.INDEXES.items()}


def test_defaults_are_those_of_the_original(database):
    with database.session() as con:
        con.execute("INSERT INTO gex_history_queue (id, url, ticker, endpoint) VALUES (1, 'u', 't', 'e')")
        ((status, attempts, error, created),) = con.execute(
            "SELECT status, attempts, last_error, created_at FROM gex_history_queue"
        ).fetchall()
    assert (status, attempts, error) == ("pending", 0, None)
    assert len(created) == 19 and created[10] == " "


def test_a_session_closes_the_file_and_the_next_one_finds_everything(database):
    with database.session() as con:
        note_position(con, "j", 5)
    assert ask(database.path, "SELECT * FROM bridge_journal") == [("j", 5)]
    assert database.log_bytes == 0
    with Database(database.path).session() as con:
        assert position(con, "j") == 5
        assert position(con, "another") == 0
        note_position(con, "j", 6)
        assert position(con, "j") == 6


def test_without_a_checkpoint_what_was_committed_is_seen_all_the_same(database):
    with database.session():
        pass
    with database.session(checkpoint=False) as con:
        note_position(con, "j", 5)
    assert database.log_bytes > 0
    assert ask(database.path, "SELECT * FROM bridge_journal") == [("j", 5)]


def test_a_session_that_fails_closes_the_file(database):
    with pytest.raises(LookupError):
        with database.session() as con:
            con.execute("BEGIN")
            note_position(con, "j", 5)
            raise LookupError
    with database.session() as con:
        assert position(con, "j") == 0


def test_an_old_file_of_ours_that_lacks_a_table_gets_it(database):
    with database.session() as con:
        con.execute("DROP TABLE option_trades_events")
    with Database(database.path).session() as con:
        assert con.execute("SELECT count(*) FROM option_trades_events").fetchall() == [(0,)]


def test_while_another_process_has_the_file_it_is_busy_and_then_it_is_not(database):
    with database.session() as con:
        note_position(con, "j", 5)
    with held_by_another_process(database.path):
        with pytest.raises(DatabaseBusy):
            with database.session(wait=0.1):
                pass
    with database.session(wait=PATIENCE) as con:
        assert position(con, "j") == 5


@pytest.mark.parametrize("folder", ["data corrupted", "hecksum INTERNAL Error", "it's; DROP"])
def test_a_path_decides_nothing(tmp_path, folder):
    """A file that is held is busy, and not damaged, whatever the words in its path."""
    database = Database(tmp_path / folder / "gex_history.duckdb")
    with database.session():
        pass
    with held_by_another_process(database.path):
        with pytest.raises(DatabaseBusy):
            with database.session():
                pass


def test_a_file_that_is_no_database_is_damaged_and_can_be_moved_aside(database):
    content = b"no database at all" * 1000
    database.path.parent.mkdir()
    database.path.write_bytes(content)
    with pytest.raises(DatabaseDamaged) as damage:
        with database.session():
            pass
    aside = database.move_aside(damage.value)
    assert aside.read_bytes() == content
    with database.session() as con:
        assert position(con, "j") == 0


def test_an_sqlite_file_is_left_as_it_is(database):
    database.path.parent.mkdir()
    con = sqlite3.connect(database.path)
    con.execute("CREATE TABLE universal_webhooks (id INTEGER)")
    con.close()
    before = database.path.read_bytes()
    with pytest.raises(DatabaseBusy):
        with database.session():
            pass
    assert database.path.read_bytes() == before


def test_a_file_taken_away_or_put_in_its_place_gets_its_tables(database, tmp_path):
    with database.session():
        pass
    database.path.unlink()
    with database.session() as con:
        assert position(con, "j") == 0
    other = tmp_path / "other.duckdb"
    duckdb.connect(str(other)).close()
    other.replace(database.path)
    with contextlib.suppress(duckdb.Error):  # the first session finds out
        with database.session() as con:
            position(con, "j")
    with database.session() as con:
        assert position(con, "j") == 0


def test_ids_go_on_behind_the_highest_ever_given_out(database):
    with database.session() as con:
        assert last_id(con, "universal_webhooks") == 0
        con.execute("INSERT INTO universal_webhooks (id, payload_json) VALUES (7, '{}')")
        assert last_id(con, "universal_webhooks") == 7
        note_last_id(con, "universal_webhooks", 7)
        con.execute("DELETE FROM universal_webhooks")
        assert last_id(con, "universal_webhooks") == 7
        assert last_id(con, "option_trades_events") == 0


def test_who_waits_beside_another_thread_hears_that_another_process_has_the_file(database):
    with database.session():
        pass
    with held_by_another_process(database.path), concurrent.futures.ThreadPoolExecutor() as pool:
        said = [str(pool.submit(busy, database).exception()) for _ in range(2)]
        both = [pool.submit(busy, database) for _ in range(2)]
        said += [str(one.exception()) for one in both]
    assert all("lock" in line and "\n" not in line for line in said), said


def busy(database):
    with database.session(wait=0.3):
        pass


def test_the_first_line_of_a_long_error_text_is_enough():
    assert first_line(ValueError("\n" + "x" * 1000 + "\nrows and rows")) == "x" * 300
    assert first_line(MemoryError()) == "MemoryError"
