"""Whatever another program's DuckDB does to the file between two sessions, loading goes on."""

import contextlib
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import pytest

from data_pipeline.payloads import records, store
from data_pipeline.payloads.store import TickerSnapshot
from data_pipeline.repository import indexes, rollback, schema, upserts
from data_pipeline.repository.database import Database, IndexesRebuilt
from data_pipeline.repository.rows import Rows
from tests.helpers.support import RunningBridge, eventually, gex_bridge, gex_payload

VERSIONS = ("duckdb==1.5.0", "duckdb>=1.5,<1.6", "duckdb>=2.0,<2.1")
# Kept from run to run; made under another name first, so that two runs at once do not meet in it.
CACHE = pathlib.Path(tempfile.gettempdir()) / f"gex-bridge-duckdb-{os.getuid()}-{sys.version_info.minor}"

# What a client does with the file in `con`, which it opened as everybody does: for writing.
DEEDS = {
    "opens it and closes it": "con.close()",
    "asks, and closes it": "con.execute('SELECT count(*) FROM gex_bridge_strikes').fetchall(); con.close()",
    "writes to a table of its own": "con.execute('CREATE TABLE mine AS SELECT 1 AS x'); con.close()",
    "changes our rows": "con.execute('UPDATE gex_bridge_snapshots SET spot = 3'); con.close()",
    "adds a column": "con.execute('ALTER TABLE gex_bridge_snapshots ADD COLUMN note VARCHAR'); con.close()",
    "makes a view and an index": "con.execute('CREATE VIEW v AS FROM gex_bridge_snapshots');"
    " con.execute('CREATE INDEX i ON gex_bridge_snapshots (received_at)'); con.close()",
    "attaches it": "two = duckdb.connect(); con.close();"
    " two.execute(f\"ATTACH '{sys.argv[1]}' AS two\"); two.execute('CHECKPOINT two'); two.close()",
    "is killed with it": "os.kill(os.getpid(), 9)",
    "is killed as it writes": "con.execute('DELETE FROM gex_bridge_strikes'); con.execute('BEGIN');"
    " con.execute('UPDATE gex_bridge_snapshots SET spot = 4'); os.kill(os.getpid(), 9)",
}


@pytest.fixture(scope="session", params=VERSIONS)
def client(request):
    """Does something with a file, in a process with a DuckDB of that version."""
    folder = CACHE / "".join(character if character.isalnum() else "-" for character in request.param)
    if not folder.exists():
        CACHE.mkdir(exist_ok=True)
        made = pathlib.Path(tempfile.mkdtemp(dir=CACHE))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(made), request.param]
        if said := subprocess.run(pip, capture_output=True, text=True).stderr * (not (made / "duckdb").exists()):
            reason = f"{request.param} cannot be installed: {said.strip().splitlines()[-1]}"
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
        with contextlib.suppress(OSError):  # another run was faster
            made.rename(folder)

    def do(path: pathlib.Path, deed: str) -> None:
        code = (
            "import duckdb, os, sys, time\n"
            "while True:\n"
            "    try:\n        con = duckdb.connect(sys.argv[1]); break\n"
            "    except duckdb.IOException:\n        time.sleep(0.02)\n" + deed
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            env={**os.environ, "PYTHONPATH": str(folder)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr

    return do


def gex(timestamp: int, spot: float) -> records.AnyRecord:
    data = {"timestamp": timestamp, "spot": spot, "strikes": [[strike, spot] for strike in range(5)]}
    state = TickerSnapshot("SPX").merged("snapshot", store.Part.of(data), "gex_zero", None)
    return records.decode(records.Gex("2025-11-09 15:00:00", "gex_zero", state, None).encode())


def load(database: Database, spot: float, checkpoint: bool = False) -> None:
    """Ten keys, the same each time, and a link, as the loader does; again where it is asked to try again."""
    rows = Rows()
    for timestamp in range(10):
        rows.add(gex(1762700000 + timestamp, spot))
    rows.add(records.Link("2025-11-09 15:00:00", round(spot), "https://a.b", "SPX", "gex"))
    for _ in range(2):
        with contextlib.suppress(IndexesRebuilt), database.session(wait=5.0, checkpoint=checkpoint) as con:
            con.execute("BEGIN")
            upserts.apply(con, rows)
            con.execute("UPDATE gex_history_queue SET status = 'done'")
            con.execute("COMMIT")
            return
    raise AssertionError("two tries were not enough")


def counts(database: Database) -> list[tuple]:
    with database.reading(wait=5.0) as con:
        return con.execute(
            "SELECT (SELECT count(*) FROM gex_bridge_strikes), count(*), min(spot), max(spot) FROM gex_bridge_snapshots"
        ).fetchall()


@pytest.mark.parametrize("leaves_a_log", [True, False])
def test_loading_goes_on_whatever_a_client_does_between_two_sessions(client, tmp_path, leaves_a_log):
    database = Database(tmp_path / "gex_history.duckdb")
    for number, deed in enumerate(DEEDS.values(), 1):
        load(database, 2 * number - 1, checkpoint=not leaves_a_log)
        client(database.path, deed)
        load(database, 2 * number)
        assert counts(database) == [(50, 10, 2 * number, 2 * number)], deed
    with database.session():
        pass
    assert database.misfits(schema.TABLES) == []
    with database.reading() as con:
        names = {name for (name,) in con.execute("SELECT index_name FROM duckdb_indexes()").fetchall()}
    assert names == {*schema.INDEXES, "i"}


def test_an_index_that_lacks_rows_is_found_and_built_anew_with_one_line(client, tmp_path, caplog):
    database = Database(tmp_path / "gex_history.duckdb")
    load(database, 1)
    client(database.path, DEEDS["opens it and closes it"])
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    misfits = database.misfits(schema.TABLES)
    assert before == {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    load(database, 2)
    assert len(caplog.messages) == bool(misfits)
    assert all("did not fit its table" in line and "anew" in line and "\n" not in line for line in caplog.messages)
    assert not misfits or {"gex_bridge_snapshots", "gex_bridge_strikes"} <= set(misfits)
    assert database.misfits(schema.TABLES) == []


def test_a_client_of_1_5_does_break_them(client, tmp_path, request):
    """Else the tests above prove nothing."""
    database = Database(tmp_path / "gex_history.duckdb")
    load(database, 1)
    client(database.path, DEEDS["opens it and closes it"])
    assert bool(database.misfits(schema.TABLES)) == ("1.5" in request.node.callspec.params["client"])


def test_a_running_bridge_loads_on_after_a_client_was_there(client, tmp_path):
    with RunningBridge(tmp_path / "data", LOAD_INTERVAL="0.05") as bridge:
        for spot in itertools.count(1):
            for timestamp in range(5):
                assert bridge.post("/gex", gex_payload(timestamp=1762700000 + timestamp, spot=spot)) == 202
            eventually(
                lambda: bridge.rows("SELECT count(*) FROM gex_bridge_snapshots WHERE spot = ?", spot) == [(5,)],
                "the rows come",
            )
            if spot == 3:
                break
            client(bridge.database, DEEDS["opens it and closes it"])
        assert bridge.stop() == 0
    assert "Traceback" not in bridge.log and "set aside" not in bridge.log
    assert bridge.log.count("did not fit its table") <= 2


def test_tables_that_are_written_anew_keep_rows_columns_indexes_and_views_of_others(tmp_path):
    database = Database(tmp_path / "gex_history.duckdb")
    load(database, 1)
    with database.session() as con:
        con.execute("ALTER TABLE gex_bridge_snapshots ADD COLUMN note VARCHAR")
        con.execute("UPDATE gex_bridge_snapshots SET note = 'n'")
        con.execute('CREATE INDEX "an index" ON gex_bridge_snapshots (received_at)')
        con.execute("CREATE VIEW noted AS SELECT note, spot FROM gex_bridge_snapshots")
    with database.session() as con:
        indexes.rebuild_tables(con)
    load(database, 2)
    with database.session() as con:
        assert con.execute("SELECT DISTINCT note, spot FROM noted").fetchall() == [("n", 2.0)]
        found = con.execute("SELECT index_name FROM duckdb_indexes()").fetchall()
        assert {name for (name,) in found} == {*schema.INDEXES, "an index"}
        for table, keys in schema.KEYS.items():
            kept = con.execute(
                "SELECT constraint_column_names FROM duckdb_constraints()"
                " WHERE table_name = ? AND constraint_type = 'PRIMARY KEY'",
                [table],
            ).fetchall()
            assert kept == [(list(keys),)]
    assert counts(database) == [(50, 10, 2.0, 2.0)] and database.misfits(schema.TABLES) == []


def test_reading_takes_back_a_checkpoint_that_was_cut_off(tmp_path):
    database = Database(tmp_path / "gex_history.duckdb")
    load(database, 1)
    with database.session(checkpoint=False) as con:
        rollback.keep(con, database.path)
        saved = rollback.beside(database.path).read_bytes()
    raw = bytearray(database.path.read_bytes())
    at = rollback._START.size + rollback.HEADERS
    (number,) = rollback._NUMBER.unpack_from(saved, at)
    raw[rollback.HEADERS + number * (256 << 10) + 100] ^= 0xFF
    database.path.write_bytes(raw)
    assert counts(database) == [(50, 10, 1.0, 1.0)]
    assert not rollback.beside(database.path).exists()


def test_check_compares_the_indexes_with_the_tables(client, tmp_path, request):
    database = Database(tmp_path / "raw" / "gex" / "gex_history.duckdb")
    load(database, 1)
    client(database.path, DEEDS["adds a column"])
    said = gex_bridge("check", DATA_DIR=str(tmp_path))
    breaks = "1.5" in request.node.callspec.params["client"]
    assert ("an index lacks rows of it" in said.stdout) == breaks == (said.returncode != 0), said
    assert "has columns that are not ours, which are left alone: 'note'" in said.stdout
