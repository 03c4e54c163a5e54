"""History files into the lake: every shape, what a record becomes, bad records, the same file twice."""

import datetime
import gzip
import json
import subprocess
import sys
import tracemalloc
import zipfile

import polars as pl
import pytest

from data_pipeline.lake import LakeNameError, history_slow, scan_snapshots, scan_strikes
from data_pipeline.lake.history_file import ImportFailed, import_file
from tests.helpers.history_files import DAY_START, day, record


def put(tmp_path, content, name="file.json"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def imported(tmp_path, content, ticker="SPX", **more):
    return import_file(put(tmp_path, content), ticker, "gex_zero", tmp_path / "data", **more)


def rows(scan, tmp_path):
    order = ["timestamp", "strike"] if scan is scan_strikes else ["timestamp"]
    return scan(data_dir=tmp_path / "data").sort(order).collect().to_dicts()


CHAINS = day(5)
SHAPES = {
    "an array": json.dumps(CHAINS),
    "an array without spaces": json.dumps(CHAINS, separators=(",", ":")),
    "an indented array": json.dumps(CHAINS, indent=2),
    "an array with a byte order mark": "\ufeff" + json.dumps(CHAINS),
    "a wrapped array": json.dumps({"data": CHAINS}),
    "an indented wrapped array": json.dumps({"data": CHAINS}, indent=1),
    "a wrapped array after other keys": json.dumps({"ticker": "SPX", "n": [1], "data": CHAINS, "more": {"a": [1]}}),
    "a wrapped array before other keys": json.dumps({"data": CHAINS, "more": {"a": [1]}}),
    "one object a line": "\n".join(map(json.dumps, CHAINS)),
    "one object a line, with a line feed at the end and empty lines": "\n\n".join(map(json.dumps, CHAINS)) + "\r\n\r\n",
    "objects one after the other, indented": "\n".join(json.dumps(c, indent=1) for c in CHAINS),
    "lines of arrays": "\n".join(json.dumps({"data": [c]}) for c in CHAINS),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_every_shape_gives_the_same_rows(tmp_path, shape, packed):
    content = SHAPES[shape].encode()
    result = imported(tmp_path, gzip.compress(content) if packed else content)
    assert (result.records, result.bad, result.snapshots, result.strikes) == (5, 0, 5, 15)
    assert [r["timestamp"] for r in rows(scan_snapshots, tmp_path)] == [c["timestamp"] for c in CHAINS]
    strikes = rows(scan_strikes, tmp_path)
    expected = [(c["timestamp"], *s[:3], *s[3]) for c in CHAINS for s in c["strikes"]]
    names = ("timestamp", "strike", "gamma_now", "vanna", "gamma_1m", "gamma_5m", "gamma_10m", "gamma_15m", "gamma_30m")
    assert [tuple(r[n] for n in names) for r in strikes] == expected


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_one_object_is_a_file_of_one_record(tmp_path, packed):
    for indent in (None, 2):
        content = json.dumps(CHAINS[0], indent=indent).encode()
        result = imported(tmp_path, gzip.compress(content) if packed else content, again=True)
        assert (result.snapshots, result.strikes) == (1, 3)


def test_a_record_becomes_the_row_that_a_post_of_it_would_make(tmp_path):
    chain = record(DAY_START, extra={"kept": [1, "x,y"]})
    imported(tmp_path, json.dumps([chain], separators=(",", ":")), ticker="spx")
    (row,) = rows(scan_snapshots, tmp_path)
    updated = datetime.datetime.fromisoformat(row.pop("updated_at"))
    assert abs((datetime.datetime.now(datetime.UTC).replace(tzinfo=None) - updated).total_seconds()) < 3600
    raw = json.loads(row.pop("raw_payload_json"))
    assert raw == {k: v for k, v in chain.items() if k not in ("strikes", "max_priors")}
    assert row == {
        "ticker": "SPX",
        "timestamp": DAY_START,
        "endpoint": "gex_zero",
        "payload_kind": "snapshot",
        "received_at": None,
        "spot": chain["spot"],
        "zero_gamma": chain["zero_gamma"],
        "net_gex_vol": chain["sum_gex_vol"],
        "net_gex_oi": chain["sum_gex_oi"],
        "major_pos_vol": 5900.0,
        "major_neg_vol": 5850.0,
        "major_pos_oi": 5950.0,
        "major_neg_oi": 5800.0,
        "delta_risk_reversal": chain["delta_risk_reversal"],
        "strikes_count": 3,
        "max_change_json": "{}",
        "max_priors_json": json.dumps(chain["max_priors"]),
        "ts": datetime.datetime(2025, 1, 2, 14, 30, tzinfo=datetime.UTC),
    }
    assert [r["history_json"] for r in rows(scan_strikes, tmp_path)] == [json.dumps(s[3]) for s in chain["strikes"]]


@pytest.mark.parametrize(
    "given, seconds",
    [
        (DAY_START, DAY_START),
        (float(DAY_START) + 0.9, DAY_START),
        (str(DAY_START), DAY_START),
        (DAY_START * 1000 + 999, DAY_START),
        (str(DAY_START * 1000), DAY_START),
        ("2025-01-02T14:30:00Z", DAY_START),
        ("2025-01-02T14:30:00.934Z", DAY_START),
        ("2025-01-02T14:30:00", DAY_START),
        ("2025-01-02 09:30:00-05:00", DAY_START),
        ("2025-01-02T14:30:00+00:00", DAY_START),
        ("2025-01-02T14:30:00.123456+00:00", DAY_START),
    ],
)
def test_timestamps_in_seconds_milliseconds_and_iso_are_the_same_second(tmp_path, given, seconds):
    imported(tmp_path, json.dumps([record(given)]))
    assert [r["timestamp"] for r in rows(scan_snapshots, tmp_path)] == [seconds]


def test_the_spot_may_have_either_name(tmp_path):
    one, two = record(DAY_START), record(DAY_START + 1)
    one["spot_price"], two["spot_price"] = one.pop("spot"), 1.0
    imported(tmp_path, json.dumps([one, two]))
    assert [r["spot"] for r in rows(scan_snapshots, tmp_path)] == [one["spot_price"], two["spot"]]


def test_the_other_names_of_sums_and_majors_are_understood(tmp_path):
    chain = {
        "timestamp": DAY_START,
        "net_gex": 1,
        "net_gex_oi": "2.5",
        "mpos_vol": 3,
        "mneg_vol": 4,
        "mpos_oi": 5,
        "mneg_oi": 6,
    }
    imported(tmp_path, json.dumps([chain]))
    (row,) = rows(scan_snapshots, tmp_path)
    names = ("net_gex_vol", "net_gex_oi", "major_pos_vol", "major_neg_vol", "major_pos_oi", "major_neg_oi")
    assert [row[n] for n in names] == [1.0, 2.5, 3.0, 4.0, 5.0, 6.0]


def test_ragged_strikes_keep_what_is_good_in_them(tmp_path):
    strikes = [
        [1, 10],
        ["2", "20.5", None],
        [3, "x", 5, []],
        [4, 40, 4, [1, None, "3", "x"]],
        [5, 50, 5, [1, 2, 3, 4, 5, 6]],
        [6],
        [],
        None,
        7,
        {"strike": 8},
        [None, 9],
        ["nine", 9],
        [10, 1],
        [10, 2],
        [11, 110, 1, 5],
        [12, 1, 1, "a,b"],
        [13, 1, 2, ["a,b", 1]],
    ]
    text = json.dumps(
        [record(DAY_START, strikes=0) | {"strikes": strikes}, record(DAY_START + 1) | {"strikes": "none"}]
    )
    result = imported(tmp_path, text.replace("[3, ", "[3, ").replace("40, 4", "NaN, 4"))
    found = {r["strike"]: r for r in rows(scan_strikes, tmp_path)}
    values = {
        s: (r["gamma_now"], r["vanna"], r["gamma_1m"], r["gamma_5m"], r["gamma_10m"], r["gamma_30m"])
        for s, r in found.items()
    }
    assert values == {
        1.0: (10.0, None, None, None, None, None),
        2.0: (20.5, None, None, None, None, None),
        3.0: (None, 5.0, None, None, None, None),
        4.0: (None, 4.0, 1.0, None, 3.0, None),
        5.0: (50.0, 5.0, 1.0, 2.0, 3.0, 5.0),
        8.0: (None, None, None, None, None, None),
        10.0: (2.0, None, None, None, None, None),
        11.0: (110.0, 1.0, None, None, None, None),
        12.0: (1.0, 1.0, None, None, None, None),
        13.0: (1.0, 2.0, None, 1.0, None, None),
    }
    assert found[5.0]["history_json"] == "[1, 2, 3, 4, 5, 6]" and found[3.0]["history_json"] is None
    assert json.loads(found[13.0]["history_json"]) == ["a,b", 1]
    assert [r["strikes_count"] for r in rows(scan_snapshots, tmp_path)] == [10, 0]
    assert (result.snapshots, result.strikes) == (2, 10)


BAD = {
    "an element that is no object": (lambda t: t.replace("[", '[5, null, "x", [1], ', 1), 4, "not an object"),
    "no timestamp": (lambda t: t.replace('"timestamp"', '"time"', 1), 1, "no timestamp"),
    "a timestamp that is none": (lambda t: t.replace(str(DAY_START), '"soon"', 1), 1, "no usable timestamp ('soon')"),
    "a timestamp out of range": (lambda t: t.replace(str(DAY_START), "1e300", 1), 1, "no usable timestamp"),
    "a negative timestamp": (lambda t: t.replace(str(DAY_START), "-5", 1), 1, "no usable timestamp"),
    "half a surrogate pair": (lambda t: t.replace('"SPX"', '"\\ud800"', 1), 1, "not JSON"),
    "bytes that are no UTF-8": (lambda t: t.encode().replace(b'"SPX"', b'"\xff"', 1), 1, "not JSON"),
    "a syntax error": (lambda t: t.replace('"SPX"', "SPX", 1), 1, "not JSON"),
}


@pytest.mark.parametrize("damage", BAD)
@pytest.mark.parametrize("shape", ["an array", "a wrapped array", "one object a line", "an indented array"])
def test_bad_records_are_counted_named_and_skipped(tmp_path, damage, shape):
    change, count, named = BAD[damage]
    if damage == "an element that is no object" and shape == "one object a line":
        text = '5\nnull\n"x"\n[1]\n' + SHAPES[shape]
    else:
        text = change(SHAPES[shape])
    before = day(1, start=DAY_START - 60)
    if shape == "one object a line":  # the first line says what shape it is
        text = json.dumps(before[0]).encode() + b"\n" + (text if isinstance(text, bytes) else text.encode())
    result = imported(tmp_path, text)
    good = 5 - (count == 1) + (shape == "one object a line")
    assert (result.bad, result.snapshots) == (count, good)
    assert named in result.trouble and result.trouble.startswith(f"{count} of ")
    assert len(rows(scan_strikes, tmp_path)) == 3 * good


@pytest.mark.parametrize("shape", ["an array", "a wrapped array", "one object a line", "an array without spaces"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_of_a_file_cut_short_the_whole_records_are_kept(tmp_path, shape, packed):
    content = SHAPES[shape].encode()
    cut = content.rindex(b'"max_priors"') + 20
    content = gzip.compress(content)[:-20] if packed else content[:cut]
    result = imported(tmp_path, content)
    assert 1 <= result.bad <= 2 and result.snapshots >= (4 if not packed else 1)
    assert "not JSON" in result.trouble


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"null", b"not json at all", b'{"data": []}', b"[1, 2]", b"\x1f\x8bxx", b"[" * 100_000],
)
def test_a_file_with_no_good_record_fails_and_leaves_nothing(tmp_path, content):
    with pytest.raises(ImportFailed):
        imported(tmp_path, content)
    assert not list((tmp_path / "data").rglob("*.parquet"))
    assert not list((tmp_path / "data" / "lake").glob(".import-*"))


@pytest.mark.parametrize("ticker", ["", "X" * 300, "\ud800"])
def test_a_ticker_that_cannot_be_a_folder_is_refused(tmp_path, ticker):
    with pytest.raises(LakeNameError):
        imported(tmp_path, SHAPES["an array"], ticker=ticker)


def test_of_two_records_of_one_second_the_later_one_counts(tmp_path):
    first, other, last = record(DAY_START, strikes=9), record(DAY_START + 5), record(DAY_START, strikes=2, seed=2)
    result = imported(tmp_path, json.dumps([first, other, last]))
    assert (result.snapshots, result.strikes) == (2, 5)
    assert [r["spot"] for r in rows(scan_snapshots, tmp_path)] == [last["spot"], other["spot"]]
    assert [r["gamma_now"] for r in rows(scan_strikes, tmp_path)][:2] == [s[1] for s in last["strikes"]]


def test_records_out_of_order_and_of_several_days_are_sorted_into_their_days(tmp_path):
    chains = [record(DAY_START + 86400 * (i % 3) - 7 * i) for i in range(30)]
    result = imported(tmp_path, json.dumps(chains))
    assert result.days == ["2025-01-02", "2025-01-03", "2025-01-04"]
    for path in (tmp_path / "data" / "lake").rglob("*.parquet"):
        found = pl.read_parquet(path, hive_partitioning=False)
        keys = [k for k in ("timestamp", "strike") if k in found.columns]
        assert found.select(keys).rows() == sorted(set(found.select(keys).rows()))
        assert {t.date().isoformat() for t in found["ts"]} == {path.parent.name.removeprefix("date=")}
    assert len(rows(scan_snapshots, tmp_path)) == 30


def test_the_same_content_again_is_recognised_whatever_its_name(tmp_path):
    imported(tmp_path, SHAPES["an array"])
    files = {p: p.stat().st_ino for p in (tmp_path / "data").rglob("*.parquet")}
    again = import_file(put(tmp_path, SHAPES["an array"], "other.json"), "SPX", "gex_zero", tmp_path / "data")
    assert again.known and files == {p: p.stat().st_ino for p in (tmp_path / "data").rglob("*.parquet")}
    assert not imported(tmp_path, SHAPES["an array"], ticker="NDX").known
    assert not imported(tmp_path, SHAPES["an array"], again=True).known
    for path in files:
        path.unlink()
    assert not imported(tmp_path, SHAPES["an array"]).known
    assert len(rows(scan_snapshots, tmp_path)) == 10


def test_a_second_file_of_a_day_is_merged_and_its_records_win(tmp_path):
    imported(tmp_path, json.dumps(day(10, strikes=4)))
    later = day(10, start=DAY_START + 5, strikes=2, seed=7) + [record(DAY_START, strikes=0, seed=7)]
    imported(tmp_path, json.dumps(later))
    snapshots, strikes = rows(scan_snapshots, tmp_path), rows(scan_strikes, tmp_path)
    wins = {c["timestamp"]: c["spot"] for c in day(10) + later}
    assert {r["timestamp"]: r["spot"] for r in snapshots} == wins and len(snapshots) == 15
    per_snapshot = {t: sum(r["timestamp"] == t for r in strikes) for t in wins}
    # A snapshot without strikes leaves those that were there.
    assert per_snapshot == {t: 4 if t < DAY_START + 5 else 2 for t in wins}


def test_a_file_of_many_pieces_loses_and_doubles_nothing(tmp_path, monkeypatch):
    from data_pipeline.lake import history_records, write

    monkeypatch.setattr(history_records, "PIECE", 4000)
    monkeypatch.setattr(history_slow, "BLOCK", 4000)
    monkeypatch.setattr(write, "ROWS_AT_ONCE", 50)
    chains = day(300)
    for i, text in enumerate((json.dumps(chains), "\n".join(map(json.dumps, chains)), json.dumps(chains, indent=1))):
        result = imported(tmp_path, text, ticker=f"T{i}")
        assert (result.records, result.bad, result.snapshots, result.strikes) == (300, 0, 300, 900)
    broken = json.dumps(chains).replace('"ticker": "SPX"', '"ticker": SPX', 150)
    result = imported(tmp_path, broken[:-200], ticker="BROKEN")
    assert (result.bad, result.snapshots) == (151, 149)
    objects = json.dumps([c | {"notes": [{"a": 1}, {"b": 2}]} for c in chains])
    result = imported(tmp_path, objects, ticker="NESTED")
    assert (result.records, result.bad, result.snapshots, result.strikes) == (300, 0, 300, 900)


def cut(tmp_path, content: bytes) -> list:
    """All records of a file, cut one by one."""
    return list(history_slow.records(put(tmp_path, content)))


def test_a_record_without_an_end_takes_no_more_memory_than_the_longest_one(tmp_path, monkeypatch):
    monkeypatch.setattr(history_slow, "BLOCK", 10_000)
    monkeypatch.setattr(history_slow, "RECORD_LIMIT", 10_000)
    good = b'{"a": 1}'
    for endless in (b'{"a": "' + b"a" * 5_000_000, b'{"a": "' + "é".encode() * 2_000_000, b"[" * 3_000_000):
        file = put(tmp_path, gzip.compress(good + b"\n" + endless + b"\n" + good))
        tracemalloc.start()
        assert list(history_slow.records(file)) == [good, None, good]
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content, bad",
    [
        (b"{x\n" * 300_000, 300_000),
        (b"[" + b"{x}," * 300_000 + b"{}]", 1),
        (b"x" + b"\n" * 1_000_000 + b"y", 1),
        (b"{x}" + b" " * 1_000_000 + b"y", 1),
        (b"[{x}" + b" " * 1_000_000 + b"," + b" " * 1_000_000 + b"y", 1),
        (b"[{}]" + b" " * 1_000_000 + b',"x": 1}', 0),
        (b"[{}]" + b" " * 1_000_000 + b"x", None),
    ],
)
def test_damage_of_any_kind_takes_a_time_that_grows_with_the_file_alone(tmp_path, content, bad):
    found = cut(tmp_path, content)  # with the square of it, hours
    assert bad is None or found.count(None) == bad


def test_progress_ends_at_the_whole(tmp_path):
    seen = []
    imported(tmp_path, SHAPES["an array"], progress=lambda *step: seen.append(step))
    assert seen[0][:2] == ("reading", 0) and seen[-1] == ("writing", 15, 15)
    assert any(what == "reading" and done == whole for what, done, whole in seen)


@pytest.mark.parametrize(
    "odd",
    [
        {"strikes": [{"strike": 6890, "gex_vol": 11.25, "gex_oi": 22.5, "own": "kept"}]},
        {"strikes": [[6890, 1, 2, [1, 2, 3, 4, 5], "0dte", 99.5]]},
        {"strikes": [["6900C", 3, 4, [1]]]},
        {"strikes": [[6910, 5, 6, 1, 2, 3, 4, 5]]},
        {"strikes": [[6910, "much", 6]]},
        {"strikes": [[6910, 1, 2], [6910, 3, 4]]},
        {"strikes": {"6910": 5}},
        {"max_priors": {"current": [7140, 17.5]}},
        {"book": {"strikes": [[1, 2, 3]], "of": "somebody"}},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_what_has_no_column_of_its_own_stays_in_the_raw_payload(tmp_path, odd, indent):
    imported(
        tmp_path, json.dumps([record(DAY_START), record(DAY_START + 1) | odd, record(DAY_START + 2)], indent=indent)
    )
    raws = [json.loads(row["raw_payload_json"]) for row in rows(scan_snapshots, tmp_path)]
    ((key, value),) = odd.items()
    assert raws[1][key] == value
    assert not {"strikes", "max_priors"} & (raws[0].keys() | raws[2].keys())


def test_strikes_that_are_objects_have_rows(tmp_path):
    strikes = [{"strike": 6890, "gex_vol": 11.25, "gex_oi": 22.5, "priors": [1, 2]}, [6900, 1, 2], {"gex_vol": 1}]
    result = imported(tmp_path, json.dumps([record(DAY_START) | {"strikes": strikes}]))
    found = [(r["strike"], r["gamma_now"], r["vanna"], r["gamma_5m"]) for r in rows(scan_strikes, tmp_path)]
    assert found == [(6890.0, 11.25, 22.5, 2.0), (6900.0, 1.0, 2.0, None)] and result.strikes == 2


def test_records_of_another_ticker_are_imported_and_counted(tmp_path):
    chains = [record(DAY_START), record(DAY_START + 1) | {"ticker": "ndx"}, record(DAY_START + 2) | {"ticker": None}]
    result = imported(tmp_path, json.dumps(chains))
    assert (result.snapshots, result.bad, result.foreign) == (3, 0, 1)
    assert result.trouble == "1 of 3 records name another ticker, as 'NDX'"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_never_taken_for_json(tmp_path, method):
    with zipfile.ZipFile(tmp_path / "day.zip", "w", method) as packed:
        packed.writestr("day.json", json.dumps(CHAINS))
    with pytest.raises(ImportFailed, match="a zip file; unpack it"):
        import_file(tmp_path / "day.zip", "SPX", "gex_zero", tmp_path / "data")


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_file_that_unpacks_to_more_than_is_allowed_is_refused(tmp_path, packed):
    content = json.dumps(day(300)).encode()
    content = gzip.compress(content) if packed else content
    with pytest.raises(ImportFailed, match="HISTORY_MAX_BYTES"):
        imported(tmp_path, content, max_bytes=100_000)
    assert not list((tmp_path / "data").rglob("*.parquet"))


def test_of_gzip_members_one_after_the_other_each_is_read(tmp_path):
    content = b"".join(gzip.compress(json.dumps(chain).encode() + b"\n") for chain in CHAINS)
    assert imported(tmp_path, content).snapshots == 5


def test_many_records_of_one_second_take_the_memory_of_one(tmp_path):
    one = json.dumps(record(DAY_START, strikes=0) | {"strikes": [[0, 0]] * 100_000})
    path = put(tmp_path, gzip.compress(("[" + ",".join([one] * 80) + "]").encode()))
    code = (
        "import resource, sys, pathlib; from data_pipeline.lake.history_file import import_file;"
        "import_file(pathlib.Path(sys.argv[1]), 'SPX', 'g', pathlib.Path(sys.argv[2]));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, path, tmp_path / "data"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 950
