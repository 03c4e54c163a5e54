"""What is in the lake, as three engines read it, and as scans and views show it with the live tables."""

import datetime
import json
import shutil
import subprocess
import sys
import threading

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import dataset

from data_pipeline.lake import partitions, scan_snapshots, scan_strikes, view_statements
from data_pipeline.lake import read as lake_read
from data_pipeline.lake.history_file import import_file
from data_pipeline.lake.write import arrow_schema
from data_pipeline.repository import schema
from data_pipeline.repository.database import Database
from tests.helpers.history_files import DAY_START, day

UTC = datetime.UTC
HIVE = pa.schema([("ticker", pa.string()), ("endpoint", pa.string()), ("date", pa.date32())])


def put(data_dir, chains, ticker="SPX", endpoint="gex_zero"):
    path = data_dir.parent / "history.json"
    path.write_text(json.dumps(chains))
    return import_file(path, ticker, endpoint, data_dir)


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


def database(data_dir):
    return Database(data_dir / "raw" / "gex" / "gex_history.duckdb")


def live(data_dir, chains, ticker="SPX", endpoint="gex_zero", spot=1.0):
    """Rows in the live tables, as the loader would have them."""
    snapshots = [(ticker, c["timestamp"], endpoint, spot, len(c["strikes"])) for c in chains]
    strikes = [(ticker, c["timestamp"], endpoint, s[0], spot) for c in chains for s in c["strikes"]]
    with database(data_dir).session() as con:
        for statement in view_statements(data_dir / "lake"):
            con.execute(statement)
        for rows, table, names in (
            (snapshots, "gex_bridge_snapshots", "spot, strikes_count"),
            (strikes, "gex_bridge_strikes", "strike, gamma_now"),
        ):
            if rows:
                con.executemany(
                    f"INSERT INTO {table} (ticker, timestamp, endpoint, {names}) VALUES (?, ?, ?, ?, ?)", rows
                )


def of_view(data_dir, sql):
    with database(data_dir).session() as con:
        for statement in view_statements(data_dir / "lake"):
            con.execute(statement)
    with database(data_dir).session() as con:
        return con.execute(sql).fetchall()


@pytest.mark.parametrize(
    "kind, table, count", [("snapshots", "gex_bridge_snapshots", 6), ("strikes", "gex_bridge_strikes", 18)]
)
@pytest.mark.parametrize("ticker", ["SPX", "007", "A/B +%=Ü", "NULL"])
def test_every_engine_reads_the_same_rows_and_tickers_stay_text(data_dir, kind, table, count, ticker):
    put(data_dir, day(6), ticker, "1")
    folder, ticker = data_dir / "lake" / kind, ticker.upper()
    files = "{'ticker': VARCHAR, 'endpoint': VARCHAR, 'date': DATE}"
    con = duckdb.connect()
    by_duckdb = con.sql(
        f"FROM read_parquet('{folder}/**/*.parquet', hive_partitioning = true, hive_types = {files})"
    ).pl()
    plain_duckdb = con.sql(f"FROM '{folder}/**/*.parquet'").pl()
    by_polars = pl.read_parquet(f"{folder}/**/*.parquet")
    by_pyarrow = dataset.dataset(folder, partitioning=dataset.partitioning(HIVE, flavor="hive")).to_table()
    plain_pyarrow = pq.read_table(folder, partitioning=None)
    scanned = (scan_snapshots if kind == "snapshots" else scan_strikes)(data_dir=data_dir).collect()
    for found in (by_duckdb, plain_duckdb, by_polars, pl.from_arrow(by_pyarrow), pl.from_arrow(plain_pyarrow), scanned):
        assert found.height == count
        assert found.schema["ticker"] == pl.String and found["ticker"].unique().to_list() == [ticker]
        assert found["endpoint"].cast(pl.String).unique().to_list() == ["1"]
        assert found["ts"].dt.epoch("us").min() == DAY_START * 1_000_000
    assert plain_pyarrow.schema.equals(arrow_schema(kind))
    assert scanned.columns == schema.columns(table) + ["ts"]
    assert scanned.schema["ts"] == pl.Datetime("us", "UTC")


def test_a_partition_is_one_zstd_file_sorted_by_time_and_strike(data_dir):
    put(data_dir, day(50)[::-1])
    ((partition, path),) = partitions(data_dir / "lake", "strikes")
    assert str(path.relative_to(data_dir)) == "lake/strikes/ticker=SPX/endpoint=gex_zero/date=2025-01-02/part-0.parquet"
    assert partition == ("SPX", "gex_zero", datetime.date(2025, 1, 2))
    metadata = pq.ParquetFile(path).metadata
    assert metadata.row_group(0).column(4).compression == "ZSTD"
    assert [c.column_index for c in metadata.row_group(0).sorting_columns] == [1, 3]
    keys = pl.read_parquet(path, hive_partitioning=False).select("timestamp", "strike").rows()
    assert keys == sorted(keys) and len(keys) == 150


def test_scans_choose_by_ticker_and_time(data_dir):
    put(data_dir, day(10) + day(10, start=DAY_START + 86400))
    put(data_dir, day(4), "NDX")
    live(data_dir, day(3, start=DAY_START + 2 * 86400))
    at = datetime.datetime.fromtimestamp(DAY_START + 5, UTC)
    for start in (at, at.replace(tzinfo=None), at.isoformat(), DAY_START + 5):
        assert scan_snapshots("spx", start=start, data_dir=data_dir).collect().height == 18
    assert scan_snapshots("SPX", end=at, data_dir=data_dir).collect().height == 5
    assert (
        scan_snapshots("SPX", datetime.date(2025, 1, 3), datetime.date(2025, 1, 4), data_dir=data_dir).collect().height
        == 10
    )
    assert scan_strikes("NDX", data_dir=data_dir).collect().height == 12
    assert scan_strikes(start="2025-01-04", data_dir=data_dir).collect().height == 9
    assert scan_snapshots("NONE", data_dir=data_dir).collect().height == 0


def test_filters_columns_and_aggregates_work_as_on_any_lazy_frame(data_dir):
    put(data_dir, day(10))
    live(data_dir, day(2, start=DAY_START + 20))
    strikes = scan_strikes(data_dir=data_dir)
    assert strikes.select(pl.len()).collect().item() == 36
    assert strikes.filter(pl.col("strike") == 5705).select("timestamp").collect().columns == ["timestamp"]
    assert strikes.group_by("strike").agg(pl.len()).sort("strike").collect().rows() == [
        (5700.0 + 5 * i, 12) for i in range(3)
    ]
    assert strikes.head(5).collect().height == 5
    assert (
        strikes.filter(pl.col("ts") >= datetime.datetime.fromtimestamp(DAY_START + 20, UTC))
        .collect(engine="streaming")
        .height
        == 6
    )
    snapshots = scan_snapshots(data_dir=data_dir)
    assert strikes.join(snapshots, on=["ticker", "timestamp", "endpoint"]).collect().height == 36


def test_a_key_in_both_counts_once_as_the_live_row_everywhere(data_dir):
    put(data_dir, day(10, strikes=5))
    live(data_dir, day(4, start=DAY_START + 8, strikes=2), spot=-1.0)
    snapshots = scan_snapshots(data_dir=data_dir).sort("timestamp").collect()
    strikes = scan_strikes(data_dir=data_dir).sort("timestamp", "strike").collect()
    assert snapshots.height == 12 and (snapshots["spot"] == -1.0).sum() == 4
    # Of a snapshot in both, the live strikes alone: versions are not mixed.
    assert strikes.height == 8 * 5 + 4 * 2 and (strikes["gamma_now"] == -1.0).sum() == 8
    assert of_view(data_dir, "SELECT count(*), count(*) FILTER (spot = -1) FROM gex_snapshots_all") == [(12, 4)]
    assert of_view(data_dir, "SELECT count(*), count(*) FILTER (gamma_now = -1) FROM gex_strikes_all") == [(48, 8)]


def test_a_live_snapshot_without_strikes_leaves_those_of_the_lake(data_dir):
    put(data_dir, day(2, strikes=5))
    live(data_dir, day(1, strikes=0))
    assert scan_strikes(data_dir=data_dir).collect().height == 10
    assert of_view(data_dir, "SELECT count(*) FROM gex_strikes_all") == [(10,)]


def test_scans_and_views_work_without_a_lake_and_without_a_database(data_dir):
    assert scan_snapshots(data_dir=data_dir).collect().height == 0
    assert scan_strikes(data_dir=data_dir).collect().schema["ts"] == pl.Datetime("us", "UTC")
    live(data_dir, day(2))
    assert of_view(data_dir, "SELECT count(*) FROM gex_snapshots_all") == [(2,)]
    (data_dir / "lake" / "snapshots").mkdir(parents=True)
    assert of_view(data_dir, "SELECT count(*) FROM gex_strikes_all") == [(6,)]
    put(data_dir, day(2, start=DAY_START + 10))
    assert of_view(data_dir, "SELECT count(*) FROM gex_strikes_all") == [(12,)]
    assert scan_snapshots(data_dir=data_dir).collect().height == 4


def test_the_views_work_from_any_working_directory(data_dir, tmp_path):
    put(data_dir, day(3))
    live(data_dir, [])
    code = (
        f"import duckdb; con = duckdb.connect({str(database(data_dir).path)!r}, read_only=True)\n"
        "print(con.execute('SELECT count(*) FROM gex_strikes_all').fetchone()[0])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True).stdout
        == "9\n"
    )


def test_a_folder_with_odd_characters_is_a_folder_to_all(tmp_path):
    data_dir = tmp_path / "it's [x] * {0}" / "data"
    data_dir.mkdir(parents=True)
    put(data_dir, day(3))
    put(data_dir, day(3, start=DAY_START + 1))
    live(data_dir, day(1, start=DAY_START + 50))
    assert scan_snapshots(data_dir=data_dir).collect().height == 5
    assert of_view(data_dir, "SELECT count(*) FROM gex_snapshots_all") == [(5,)]


def test_a_key_in_milliseconds_or_one_that_is_no_time_breaks_neither_view_nor_scan(data_dir):
    put(data_dir, day(1))
    live(data_dir, [{"timestamp": t, "strikes": []} for t in (DAY_START * 1000, 2**63 - 1, -(2**63))])
    found = scan_snapshots(data_dir=data_dir).sort("timestamp").collect()
    at = datetime.datetime.fromtimestamp(DAY_START, UTC)
    assert found["ts"].to_list() == [None, at, None]
    assert of_view(data_dir, "SELECT ts FROM gex_snapshots_all ORDER BY timestamp") == [
        (None,),
        (at.replace(tzinfo=None),),
        (None,),
    ]
    assert scan_snapshots(start="2025-01-01", end="2025-01-03", data_dir=data_dir).collect().height == 1


def test_a_scan_waits_for_a_database_that_another_process_has_open(data_dir, monkeypatch):
    live(data_dir, day(2))
    code = (
        f"import duckdb, sys; c = duckdb.connect({str(database(data_dir).path)!r})\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "open\n"
        monkeypatch.setattr(lake_read, "WAIT", 0.05)
        with pytest.raises(Exception, match="stayed locked"):
            scan_snapshots(data_dir=data_dir).collect()
        monkeypatch.setattr(lake_read, "WAIT", 30.0)
        release = threading.Timer(0.1, holder.stdin.close)
        release.start()
        assert scan_snapshots(data_dir=data_dir).collect().height == 2
        release.join()


def test_a_partition_replaced_again_and_again_is_always_seen_once_and_whole(data_dir, tmp_path):
    """The writer merges a growing day; each reading must be one of its states, never between, never both."""
    chains = day(12, strikes=200)
    put(data_dir, chains[:6])
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from data_pipeline.lake.history_file import import_file\n"
        "from tests.helpers.history_files import day\n"
        "data, path = Path(sys.argv[2]), Path(sys.argv[3])\n"
        "for turn in range(25):\n"
        "    path.write_text(json.dumps(day(12 if turn % 2 else 6, strikes=200, seed=turn)))\n"
        "    import_file(path, 'SPX', 'gex_zero', data)\n"
    )
    root = str(__import__("pathlib").Path(__file__).resolve().parents[2])
    writer = subprocess.Popen([sys.executable, "-c", code, root, str(data_dir), str(tmp_path / "turns.json")])
    counts, errors = set(), 0
    with duckdb.connect() as con:
        while writer.poll() is None:
            counts.add(scan_strikes(data_dir=data_dir).select(pl.len()).collect().item())
            try:
                counts.add(con.execute(f"SELECT count(*) FROM '{data_dir}/lake/strikes/**/*.parquet'").fetchone()[0])
            except duckdb.Error:
                errors += 1  # it opened a file twice, and found another the second time: an error, never a wrong answer
    assert writer.returncode == 0
    assert counts <= {6 * 200, 12 * 200} and len(counts) == 2, (counts, errors)


@pytest.mark.parametrize(
    "name", ["date=2025-01-02.bak", "date=20250102", "date=old", "old", "../old/date=2025-01-02", "date=2025-01-03"]
)
def test_a_day_moved_away_under_another_name_is_gone_for_all_readers_and_breaks_none(data_dir, name):
    put(data_dir, day(5))
    put(data_dir, day(5, start=DAY_START + 86400))
    for kind in ("snapshots", "strikes"):
        (moved,) = (data_dir / "lake" / kind).glob("*/*/date=2025-01-02")
        new = moved.parent / name
        new.parent.mkdir(exist_ok=True)
        if name == "date=2025-01-03":  # beside the file of that day
            (moved / "part-0.parquet").rename(new / "part-0.damaged.parquet")
        else:
            moved.rename(new)
        assert [str(partition.day) for partition, _ in partitions(data_dir / "lake", kind)] == ["2025-01-03"]
    live(data_dir, [])
    assert scan_snapshots(data_dir=data_dir).collect().height == 5
    assert of_view(data_dir, "SELECT count(*) FROM gex_snapshots_all") == [(5,)]
    assert of_view(data_dir, "SELECT count(*) FROM gex_strikes_all") == [(15,)]


def asked(path, sql="SELECT count(*) FROM gex_strikes_all"):
    """What a shell of its own says, which opens the file as people do."""
    with duckdb.connect(str(path), read_only=True) as con:
        return con.execute(sql).fetchall()


@pytest.mark.parametrize("name", ["copy", "it's [a] copy"])
def test_a_copied_or_moved_data_folder_reads_its_own_lake(data_dir, tmp_path, name, monkeypatch):
    put(data_dir, day(3))
    live(data_dir, [])
    copy = tmp_path / name
    shutil.copytree(data_dir, copy)
    put(data_dir, day(5))
    of = "raw/gex/gex_history.duckdb"
    assert (asked(data_dir / of), asked(copy / of)) == ([(15,)], [(9,)])
    shutil.rmtree(data_dir)
    copy.rename(tmp_path / "moved")
    assert asked(tmp_path / "moved" / of) == [(9,)]
    monkeypatch.chdir(tmp_path / "moved" / "raw" / "gex")
    assert asked("gex_history.duckdb") == [(9,)]


def test_an_attached_copy_never_shows_the_lake_of_the_original(data_dir, tmp_path):
    put(data_dir, day(3))
    live(data_dir, [])
    shutil.copytree(data_dir, tmp_path / "copy")
    for folder, works in ((data_dir, True), (tmp_path / "copy", False)):
        with duckdb.connect() as con:
            con.execute(f"ATTACH '{folder}/raw/gex/gex_history.duckdb' AS gex (READ_ONLY)")
            if works:
                assert con.execute("SELECT count(*) FROM gex.gex_strikes_all").fetchall() == [(9,)]
            else:
                with pytest.raises(duckdb.Error, match="was moved or copied"):
                    con.execute("SELECT count(*) FROM gex.gex_strikes_all").fetchall()


def test_the_word_lock_in_a_path_is_no_lock(tmp_path):
    data_dir = tmp_path / "Could not set lock on file"
    (data_dir / "raw" / "gex").mkdir(parents=True)
    (data_dir / "raw" / "gex" / "gex_history.duckdb").write_bytes(b"no database" * 1000)
    with pytest.raises(Exception, match="not a valid DuckDB database"):
        scan_snapshots(data_dir=data_dir).collect()
