import json
import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.config import DataFolder
from data_pipeline.files import atomic, views, writer
from data_pipeline.files.depth import DepthPersistor
from data_pipeline.files.growing import GrowingFiles
from data_pipeline.files.views import (
    LARGE,
    Views,
    consolidated,
    latest_json,
    read_latest,
    strikes_csv,
)
from data_pipeline.files.writer import FilesWriter
from data_pipeline.payloads.records import Gex, Webhook
from data_pipeline.payloads.store import Part, TickerSnapshot, TickerState
from data_pipeline.repository.journal import Journal
from data_pipeline.repository.journal_reader import Cache, DurablePosition, JournalReader, SetAside
from tests.helpers import strategies
from tests.helpers.support import PATIENCE, eventually

LATEST, SPOT_SERIES = "raw/gex/latest.json", DataFolder.SPOT_SERIES

AT = "2025-11-09T15:16:17.123456"
NOW = f"{AT}+00:00"


def snapshot(data=None, majors=None, maxchange=None, ticker="SPX") -> TickerSnapshot:
    return TickerSnapshot(ticker, majors, maxchange, data)


data = strategies.some_of(
    timestamp=strategies.values,
    spot=strategies.values,
    strikes=st.lists(st.lists(strategies.values, max_size=4), max_size=4),
    current=st.lists(strategies.values, max_size=3),
    sum_gex_vol=strategies.values,
)
states = st.builds(TickerSnapshot, strategies.texts, st.none() | data, st.none() | data, st.none() | data)


@given(st.lists(states, max_size=4))
def test_latest_json_is_all_tickers_as_json_dumps_makes_them(tickers):
    by_ticker = {state.ticker: state for state in tickers}
    entries = {ticker: views._entry(state) for ticker, state in by_ticker.items()}
    documents = {ticker: state.document() for ticker, state in by_ticker.items()}
    assert latest_json(entries) == json.dumps(documents, indent=2, sort_keys=True)


def test_nothing_grows_more_than_twentyfold_by_its_indentation(tmp_path):
    """The worst that passes the door: as many numbers as a body holds, as deep as JSON may be nested."""
    numbers = 400_000
    for key, levels in (("x", 61), ("strikes", 61), ("strikes", 4), ("max_priors", 20)):
        value = [1] * numbers
        for _ in range(levels):
            value = [value]
        made = Views(tmp_path)
        made.update(snapshot({key: value}), AT)
        made.write()
        size = (tmp_path / LATEST).stat().st_size
        assert size < 20 * 2 * numbers, (key, levels)
        assert read_latest(tmp_path)[0].snapshot == {key: value}


def test_a_large_latest_json_is_written_once_in_five_seconds_and_at_the_end(tmp_path):
    now = [0.0]
    made = Views(tmp_path, clock=lambda: now[0])
    text = "x" * (LARGE + 1)
    made.update(snapshot({"spot": 1, "text": text}), AT)
    made.write()
    assert made.current and read_latest(tmp_path)[0].snapshot["spot"] == 1
    for spot, seconds, on_disk in ((2, 4.9, 1), (3, 5.0, 3), (4, 5.1, 3)):
        now[0] = seconds
        made.update(snapshot({"spot": spot, "text": text}), AT)
        made.write()
        assert read_latest(tmp_path)[0].snapshot["spot"] == on_disk
        assert json.loads((tmp_path / "gex/SPX/snapshot.json").read_text())["spot_price"] == spot
        assert made.current == (spot == on_disk)
    made.write(last=True)
    assert made.current and read_latest(tmp_path)[0].snapshot["spot"] == 4


def test_strikes_beyond_every_number_are_left_out_of_the_consolidated_files(tmp_path):
    made = Views(tmp_path)
    strikes = json.loads("[[1e999, 1], [-1e999, 1], [NaN, 1], [5, 1e999]]")
    made.update(snapshot({"strikes": strikes}, maxchange={"current": [strikes[0][0], 1]}), AT)
    made.write()
    text = (tmp_path / "gex/SPX/snapshot.json").read_text()
    assert "Infinity" not in text and "NaN" not in text
    assert [(each["strike"], each["gex"]) for each in json.loads(text)["all_strikes"]] == [(5.0, 0.0)]
    assert "inf" not in (tmp_path / "gex/SPX/snapshot.csv").read_text()


def test_own_values_make_every_file_json_that_anybody_reads(tmp_path):
    for own in (False, True):
        made = Views(tmp_path, own)
        made.update(snapshot(json.loads('{"timestamp": NaN, "spot": 1.5, "zero_gamma": NaN, "x": [-1e999]}')), AT)
        made.write()
        text = (tmp_path / LATEST).read_text()
        assert ("NaN" in text) is not own and ("Infinity" in text) is not own
        if own:
            assert json.loads(text)["SPX"]["snapshot"] == {
                "timestamp": None,
                "spot": 1.5,
                "zero_gamma": None,
                "x": [None],
            }
        for path in tmp_path.rglob("*/SPX/*.json"):
            assert "NaN" not in path.read_text(), path


@given(states)
def test_whatever_comes_the_consolidated_file_has_its_keys_and_numbers(state):
    document = consolidated(state, AT)
    assert list(document) == [
        "ticker",
        "timestamp",
        "spot_price",
        "zero_gamma",
        "net_gex",
        "major_pos_strike",
        "major_pos_vol",
        "major_neg_strike",
        "major_neg_vol",
        "all_strikes",
        "change_windows",
    ]
    assert type(document["timestamp"]) is str
    for key in ("spot_price", "zero_gamma", "net_gex", "major_pos_strike", "major_neg_strike"):
        assert math.isfinite(document[key])
    for row in document["all_strikes"] or ():
        assert row["strike"] == row["strike"] and math.isfinite(row["gex"])
    json.dumps(document).encode("ascii")
    assert strikes_csv(document["all_strikes"]).count("\r\n") == 1 + len(document["all_strikes"] or ())


@pytest.mark.parametrize(
    "timestamp, text",
    [
        (1762700000, "2025-11-09T14:53:20+00:00"),
        (1762700000.5, "2025-11-09T14:53:20.500000+00:00"),
        (1762700000500, "2025-11-09T14:53:20.500000+00:00"),
        ("any text", "any text"),
        ("", NOW),
        (None, NOW),
        (math.nan, NOW),
        (math.inf, NOW),
        (10**400, NOW),
        (-(10**30), NOW),
    ],
)
def test_a_number_becomes_iso_text_and_text_stays(timestamp, text):
    assert consolidated(snapshot({"timestamp": timestamp}), AT)["timestamp"] == text


def test_a_bad_strike_keeps_the_good_ones():
    entries = [
        [5300, 1.5],
        [None, 1],
        "text",
        [math.nan, 1],
        [5305],
        ["5310", "2"],
        [5315, None],
        [[], 1],
        [5300, 3, 4, 5],
    ]
    document = consolidated(snapshot({"strikes": entries}), AT)
    assert [(row["strike"], row["gex"]) for row in document["all_strikes"]] == [
        (5300.0, 1.5),
        (5310.0, 2.0),
        (5315.0, 0.0),
        (5300.0, 3.0),
    ]
    assert set(map(tuple, document["all_strikes"])) == {("strike", "gex", "volume", "open_interest")}


@pytest.mark.parametrize("entries, all_strikes", [([], []), (None, None), ("text", None), ({"a": 1}, None), ([5], [])])
def test_without_a_list_of_strikes_there_are_none(entries, all_strikes):
    assert consolidated(snapshot({"strikes": entries}), AT)["all_strikes"] == all_strikes


def test_values_are_floats_and_zero_where_there_is_none():
    document = consolidated(
        snapshot(
            {
                "spot": "5300.5",
                "zero_gamma": math.inf,
                "sum_gex_vol": 0,
                "sum_gex_oi": 7,
                "major_pos_vol": 5325,
                "major_neg_vol": [1],
            }
        ),
        AT,
    )
    assert (document["spot_price"], document["zero_gamma"], document["net_gex"]) == (5300.5, 0.0, 7.0)
    assert (document["major_pos_strike"], document["major_neg_strike"]) == (5325.0, 0.0)
    assert (document["major_pos_vol"], document["major_neg_vol"]) == (0, 0)


def test_change_windows_come_in_order_and_a_bad_one_keeps_the_good_ones():
    change = {
        "thirty": [5300, 30],
        "current": [5310, 1],
        "one": ["x", 1],
        "five": [5315, "x"],
        "ten": [5],
        "fifteen": None,
    }
    assert consolidated(snapshot(maxchange=change), AT)["change_windows"] == [
        {"window": "current", "strike": 5310.0, "old_gex": 0.0, "new_gex": 1.0, "delta": 1.0},
        {"window": "5m", "strike": 5315.0, "old_gex": 0.0, "new_gex": 0.0, "delta": 0.0},
        {"window": "30m", "strike": 5300.0, "old_gex": 0.0, "new_gex": 30.0, "delta": 30.0},
    ]
    assert consolidated(snapshot(maxchange={}), AT)["change_windows"] is None


def test_the_csv_ends_its_lines_as_csv_writer_does(tmp_path):
    views = Views(tmp_path)
    views.update(snapshot({"strikes": [[5300, 1.5], [5305, -2]]}), AT)
    views.write()
    assert (tmp_path / "gex/SPX/snapshot.csv").read_bytes() == (
        b"strike,gex,volume,open_interest\r\n5300.0,1.5,0,0\r\n5305.0,-2.0,0,0\r\n"
    )
    assert strikes_csv(None) == "strike,gex,volume,open_interest\r\n"


def test_views_are_whole_files_for_readers_of_all_users(tmp_path):
    views = Views(tmp_path)
    views.update(snapshot({"spot": 1, "timestamp": 1762700000, "strikes": [[1, 2]]}), AT)
    views.update(snapshot({"spot": 2}, ticker="../UP"), AT)
    views.write()
    names = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert names == sorted(
        [LATEST]
        + [
            f"gex/{folder}/{name}"
            for folder in ("SPX", "..%2FUP")
            for name in ("snapshot.json", "snapshot.csv", "metadata.json")
        ]
    )
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in names} == {0o644}
    assert json.loads((tmp_path / "gex/SPX/metadata.json").read_text()) == {
        "ticker": "SPX",
        "timestamp": "2025-11-09T14:53:20+00:00",
        "updated_at": NOW,
        "strikes_count": 1,
    }
    assert not (tmp_path / LATEST).read_bytes().endswith(b"\n")
    (tmp_path / LATEST).unlink()
    views.write()
    assert not (tmp_path / LATEST).exists(), "nothing is written where nothing changed"


def test_a_restored_ticker_stays_in_latest_json(tmp_path):
    views = Views(tmp_path)
    views.update(snapshot({"spot": 1}), AT)
    views.write()
    views = Views(tmp_path)
    views.restore(read_latest(tmp_path))
    views.update(snapshot({"spot": 2}, ticker="NDX"), AT)
    views.write()
    assert [(s.ticker, s.snapshot) for s in read_latest(tmp_path)] == [("NDX", {"spot": 2}), ("SPX", {"spot": 1})]


@pytest.mark.parametrize("name", ["snapshot.json", "snapshot.csv", "metadata.json"])
@pytest.mark.parametrize("content", [None, b""])
def test_a_restored_ticker_gets_files_that_a_power_cut_took(tmp_path, name, content):
    views = Views(tmp_path)
    views.update(snapshot({"spot": 1, "timestamp": 1}), AT)
    views.write()
    path = tmp_path / "gex/SPX" / name
    before = path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    views = Views(tmp_path)
    views.restore(read_latest(tmp_path))
    views.write()
    if name == "metadata.json":
        before, after = (json.loads(raw) | {"updated_at": None} for raw in (before, path.read_bytes()))
        assert before == after
    else:
        assert path.read_bytes() == before


def test_what_could_not_be_written_is_written_later(tmp_path):
    (tmp_path / LATEST).mkdir(parents=True)
    views = Views(tmp_path)
    views.update(snapshot({"spot": 1}), AT)
    with pytest.raises(OSError):
        views.write()
    (tmp_path / LATEST).rmdir()
    views.write()
    assert json.loads((tmp_path / "gex/SPX/snapshot.json").read_text())["spot_price"] == 1.0
    assert not list(tmp_path.rglob(f"*{atomic.ENDING}"))


def test_a_ticker_whose_files_cannot_be_written_holds_up_no_other_and_is_named_once(tmp_path, caplog):
    (tmp_path / "gex").mkdir()
    (tmp_path / "gex/BAD").write_bytes(b"a file in the way")
    views = Views(tmp_path)
    for spot in (1, 2):
        views.update(snapshot({"spot": spot}, ticker="BAD"), AT)
        views.update(snapshot({"spot": spot}), AT)
        views.write()
        assert json.loads((tmp_path / "gex/SPX/snapshot.json").read_text())["spot_price"] == spot
        assert json.loads((tmp_path / LATEST).read_text())["BAD"]["snapshot"]["spot"] == spot
    assert caplog.text.count("views of 'BAD' cannot be written") == 1
    (tmp_path / "gex/BAD").unlink()
    views.write()
    assert json.loads((tmp_path / "gex/BAD/snapshot.json").read_text())["spot_price"] == 2.0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"5",
        b'{"SPX": null}',
        b'{"SPX": {"metadata": 5}}',
        b'{"SPX": {"snapshot": []}}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_latest_json_is_moved_aside_and_named(tmp_path, caplog, content):
    path = tmp_path / LATEST
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert read_latest(tmp_path) == []
    assert not path.exists()
    assert path.with_name("latest.json.damaged").read_bytes() == content
    assert "latest.json.damaged" in caplog.text


def test_without_latest_json_the_store_is_empty(tmp_path):
    assert read_latest(tmp_path) == []


class Rig:
    """Journal, files writer and depth persistor on one folder, as the writer process has them."""

    def __init__(self, root):
        self.root = root
        self.journal = Journal(root / "journal")
        self.journal.open()
        progress = DurablePosition(self.journal.durable)
        self.journal.on_durable = progress.advance
        self.aside = SetAside(root / "journal" / "set-aside.jsonl")
        source = JournalReader(root / "journal", progress, Cache(), self.aside, True)
        spots, depths = (
            GrowingFiles(root, root / "journal" / f"{name}.position", self.journal.id) for name in ("files", "depth")
        )
        spots.open()
        depths.open()
        self.depth = DepthPersistor(depths)
        self.files = FilesWriter(root, source, spots, self.depth)
        self.progress = progress

    def start(self):
        self.depth.start()
        self.files.start()
        return self

    def append(self, record):
        return self.journal.append(lambda: (record.encode() if hasattr(record, "encode") else record, None))

    def stop(self):
        self.progress.end()
        assert self.files.stop(PATIENCE)
        assert self.depth.stop(PATIENCE)
        self.journal.close()

    def lines(self, name):
        path = self.root / name
        return path.read_text().splitlines() if path.exists() else []


def gex(spot=1, ticker="SPX", webhook=None, timestamp=0, **more) -> Gex:
    part = Part(json.dumps({"data": {"timestamp": timestamp, "spot": spot, **more}}).encode(), "data")
    return Gex(AT, "gex_zero", TickerState(ticker).merged("snapshot", part, "gex_zero", None), webhook)


@pytest.fixture
def rig(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "INTERVAL", 0.01)
    return Rig(tmp_path)


DAY = "depth/SPX/1970-01-01.jsonl"


def test_every_payload_has_its_spot_and_depth_line_and_the_views_show_the_last(rig):
    rig.start()
    for spot in range(300):
        rig.append(gex(spot))
    rig.stop()
    assert rig.lines(SPOT_SERIES) == [f'{{"timestamp": 0, "spot": {spot}}}' for spot in range(300)]
    assert [json.loads(line)["spot"] for line in rig.lines(DAY)] == list(range(300))
    assert read_latest(rig.root)[0].snapshot == {"timestamp": 0, "spot": 299}
    assert (rig.files.spots.noted, rig.depth.files.noted) == (300, 300)


def test_webhooks_have_no_spot_and_no_depth_line_but_the_views_show_them(rig):
    rig.start()
    rig.append(gex(1, webhook=("127.0.0.1", "")))
    rig.append(Webhook(AT, "127.0.0.1", "", b'{"topic": "other"}'))
    rig.stop()
    assert rig.lines(SPOT_SERIES) == rig.lines(DAY) == []
    assert read_latest(rig.root)[0].snapshot["spot"] == 1


@pytest.mark.parametrize("missing", [{"spot": None}, {"timestamp": None}])
def test_without_spot_or_timestamp_there_is_no_spot_line(rig, missing):
    rig.start()
    rig.append(gex(**missing))
    rig.stop()
    assert rig.lines(SPOT_SERIES) == []
    assert sum(len(path.read_text().splitlines()) for path in rig.root.glob("depth/SPX/*")) == 1


def test_a_record_that_cannot_be_shown_is_set_aside_and_the_next_one_is_shown(rig):
    rig.start()
    rig.append(b"none of ours")
    rig.append(Gex(AT, None, TickerState("BAD", snapshot=Part(b'{"data": 5}', "data"), last_payload_kind="snapshot")))
    rig.append(gex(7))
    rig.stop()
    assert len(rig.lines(SPOT_SERIES)) == len(rig.lines(DAY)) == 1
    assert rig.aside.count == 2
    assert [json.loads(line)["record"] for line in rig.lines("journal/set-aside.jsonl")] == [1, 2]


def test_trouble_with_the_views_costs_no_line_and_doubles_none(rig, monkeypatch):
    latest = rig.root / LATEST
    rig.start()
    rig.append(gex(0))
    eventually(latest.is_file)
    latest.unlink()
    latest.mkdir()
    for spot in range(1, 5):
        rig.append(gex(spot))
    eventually(lambda: len(rig.lines(SPOT_SERIES)) == 5)
    latest.rmdir()
    eventually(lambda: rig.files.spots.position == 5)
    rig.stop()
    assert len(rig.lines(SPOT_SERIES)) == len(rig.lines(DAY)) == 5
    assert rig.depth.enqueued == 5


def test_a_latest_json_that_cannot_be_read_at_the_start_is_waited_for(rig, monkeypatch, caplog):
    (rig.root / LATEST).mkdir(parents=True)
    rig.start()
    rig.append(gex(1))
    eventually(lambda: rig.files.trouble)
    (rig.root / LATEST).rmdir()
    eventually(lambda: rig.files.spots.position == 1)
    rig.stop()
    assert len(rig.lines(SPOT_SERIES)) == len(rig.lines(DAY)) == 1
    assert caplog.text.count("files cannot be written") == 1


def test_after_a_stop_it_goes_on_behind_what_it_had_done(rig):
    rig.start()
    rig.append(gex(1))
    rig.stop()
    again = Rig(rig.root)
    again.append(gex(2))
    again.start().stop()
    assert len(again.lines(SPOT_SERIES)) == len(again.lines(DAY)) == 2


def test_nobody_sees_half_a_view(rig):
    rig.start()
    seen, done = [], threading.Event()

    def look():
        while not done.is_set():
            for name in (LATEST, "gex/SPX/snapshot.json", "gex/SPX/metadata.json"):
                if (rig.root / name).exists():
                    seen.append(json.loads((rig.root / name).read_bytes()))

    looking = threading.Thread(target=look)
    looking.start()
    for spot in range(100):
        rig.append(gex(spot, strikes=[[n, spot] for n in range(100)]))
    rig.stop()
    done.set()
    looking.join(PATIENCE)
    assert seen
