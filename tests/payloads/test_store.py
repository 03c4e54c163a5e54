import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.payloads.store import COMBINED, KINDS, NUMBERS, SnapshotStore, TickerSnapshot, normalise
from tests.helpers import strategies
from tests.helpers.support import RECORDINGS


def combined(snapshot=None, majors=None, maxchange=None, **more):
    return TickerSnapshot("SPX", majors, maxchange, snapshot, **more).combined()


def test_the_recorded_store_combines_as_the_original_did():
    recorded = json.loads(json.loads((RECORDINGS / "state.json").read_text())["files"]["raw/gex/latest.json"])
    assert len(recorded) > 5
    for ticker, document in recorded.items():
        assert TickerSnapshot.from_document(ticker, document).document() == document, ticker


def test_without_anything_every_key_is_null():
    assert combined() == {**dict.fromkeys(COMBINED), "max_change": {}, "has_snapshot": False}


@pytest.mark.parametrize("key, target", NUMBERS)
def test_a_number_is_taken_from_its_name_and_its_aliases_unless_it_is_null(key, target):
    assert combined({key: 5})[target] == 5
    assert combined({key: 0})[target] == 0
    assert combined({key: "text stays"})[target] == "text stays"
    assert combined({key: None})[target] is None
    assert combined({key: 5}, {key: None})[target] == 5
    assert combined({key: 5}, {key: 6})[target] == 6


def test_the_later_alias_wins_whatever_the_order_in_the_payload():
    assert combined({"sum_gex_vol": 3, "net_gex_vol": 2, "net_gex": 1, "sum_gex_oi": 5, "net_gex_oi": 4}) == {
        **combined(),
        "net_gex_vol": 3,
        "net_gex_oi": 5,
        "has_snapshot": True,
    }


@pytest.mark.parametrize("value", [None, [], {}, [1762700000]])
def test_a_timestamp_that_is_no_number_or_text_leaves_the_last_one(value):
    assert combined({"timestamp": 1}, {"timestamp": value})["timestamp"] == 1
    assert combined({"timestamp": 1}, {"timestamp": "later"})["timestamp"] == "later"


@pytest.mark.parametrize("key", ["delta_risk_reversal", "strikes", "max_priors"])
def test_a_key_that_is_there_counts_even_where_it_is_null(key):
    assert combined({key: 1}, {key: None})[key] is None
    assert combined({key: 1}, {})[key] == 1


def test_max_change_has_a_window_for_each_list_of_two():
    data = {
        "thirty": [1, 2],
        "current": [5300, 1.5, "more"],
        "one": [5300],
        "five": None,
        "ten": {"0": 1},
        "other": [1, 2],
    }
    assert list(combined(maxchange=data)["max_change"].items()) == [
        ("Now", {"strike": 5300, "net_gex": 1.5}),
        ("30 min", {"strike": 1, "net_gex": 2}),
    ]


def test_the_source_endpoint_is_there_where_it_is_known():
    assert combined(last_endpoint="gex_zero")["source_endpoint"] == "gex_zero"
    for unknown in (None, ""):
        assert "source_endpoint" not in combined(last_endpoint=unknown)


def test_a_payload_makes_a_new_state_and_leaves_the_old_one_as_it_was():
    first = TickerSnapshot("SPX").merged("snapshot", {"spot": 1}, "gex_zero", "10:00")
    second = first.merged("majors", {"spot": 2}, None, "")
    assert first.majors is None and first.last_payload_kind == "snapshot"
    assert (second.snapshot, second.majors, second.last_payload_kind) == ({"spot": 1}, {"spot": 2}, "majors")
    assert (second.last_endpoint, second.received_at, second.updated_at) == ("gex_zero", "10:00", "10:00")
    third = second.merged("majors", {}, "gex_one", "11:00")
    assert (third.majors, third.last_endpoint, third.received_at) == ({}, "gex_one", "11:00")
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.snapshot = None


data = st.none() | strategies.some_of(
    timestamp=strategies.values, spot=strategies.values, current=st.lists(strategies.values)
)


@given(data, data, data, st.none() | strategies.texts, st.none() | strategies.texts)
def test_a_state_comes_back_from_its_document(majors, maxchange, snapshot, endpoint, received_at):
    state = TickerSnapshot("SPX", majors, maxchange, snapshot, received_at, received_at, endpoint, "majors")
    document = json.loads(json.dumps(state.document()))
    assert json.dumps(TickerSnapshot.from_document("SPX", document).document()) == json.dumps(document)


@pytest.mark.parametrize(
    "document", [None, [], "text", 5, {"metadata": []}, {"snapshot": []}, {"majors": "text"}, {"maxchange": 5}]
)
def test_what_is_no_entry_of_a_ticker_is_refused(document):
    with pytest.raises(ValueError):
        TickerSnapshot.from_document("SPX", document)


def test_an_entry_without_anything_is_an_empty_ticker():
    assert TickerSnapshot.from_document("SPX", {}) == TickerSnapshot("SPX")


def test_tickers_are_upper_case_and_nothing_else():
    assert normalise("nq_ndx ") == "NQ_NDX "
    assert normalise("straße") == "STRASSE"


def test_changes_are_taken_back_in_reverse_order():
    store = SnapshotStore(TickerSnapshot)
    states = [TickerSnapshot("SPX", last_payload_kind=kind) for kind in KINDS]
    undos = [store.put(state) for state in states]
    store.put(TickerSnapshot("NDX"))
    assert store.get("SPX") is states[2]
    undos[2]()
    assert store.get("SPX") is states[1]
    undos[1]()
    undos[0]()
    assert store.get("SPX") == TickerSnapshot("SPX")
    assert [state.ticker for state in store.tickers()] == ["NDX"]


def at(timestamp, **more):
    return {"timestamp": timestamp, **more}


NOON = 1762700000


@pytest.mark.parametrize(
    "majors, snapshot, spot",
    [
        (NOON, NOON + 600, "majors"),
        (NOON, NOON + 601, "snapshot"),
        (NOON * 1000, NOON + 601, "snapshot"),
        (str(NOON), (NOON + 601) * 1000, "snapshot"),
        (NOON, "2025-11-09T15:03:20Z", "majors"),
        (NOON, "2025-11-09T15:03:22Z", "snapshot"),
        (NOON + 86400, NOON, "majors"),
        (None, NOON, "majors"),
        (NOON, "no time", "majors"),
    ],
)
def test_majors_more_than_ten_minutes_older_no_longer_cover_the_snapshot(majors, snapshot, spot):
    view = combined(at(snapshot, spot="snapshot"), at(majors, spot="majors", zero_gamma=1))
    assert view["spot"] == spot
    assert view["zero_gamma"] == 1, "what the snapshot does not have is still theirs"
    if spot == "snapshot":
        assert view["timestamp"] == snapshot


def test_own_values_put_the_newer_of_two_over_the_older():
    def spot(majors, snapshot, kind):
        state = TickerSnapshot("SPX", at(majors, spot="m"), None, at(snapshot, spot="s"), last_payload_kind=kind)
        return state.combined(own=True)["spot"]

    assert spot(NOON, NOON + 1, "majors") == "s"
    assert spot(NOON + 1, NOON, "snapshot") == "m"
    for one, other in ((NOON, NOON), (None, NOON), (NOON, None)):
        assert spot(one, other, "snapshot") == "s", "of the same or no time the last one to come is the newer"
        assert spot(one, other, "majors") == "m"


def test_with_own_values_a_row_has_its_payload_s_time_and_numbers_and_the_rest_from_the_other_kind():
    majors = at(NOON, spot=1, mpos_vol=620, mneg_vol=595, mpos_oi=625, mneg_oi=580, major_neg_oi=581)
    snapshot = at(NOON - 60, spot=2, major_pos_vol=610, zero_gamma=3, strikes=[[1, 2]])
    state = TickerSnapshot("SPX", majors, None, snapshot, last_payload_kind="majors")
    row = state.row(own=True)
    assert (row["timestamp"], row["spot"], row["zero_gamma"], row["strikes"]) == (NOON, 1, 3, [[1, 2]])
    assert (row["major_pos_vol"], row["major_neg_vol"], row["major_pos_oi"], row["major_neg_oi"]) == (
        620,
        595,
        625,
        581,
    )
    row = dataclasses.replace(state, last_payload_kind="snapshot").row(own=True)
    assert (row["timestamp"], row["spot"], row["major_pos_vol"], row["major_neg_vol"]) == (NOON - 60, 2, 610, 595)
    assert state.row() == state.combined() and state.row()["major_pos_vol"] == 610, (
        "the original does not read mpos_vol"
    )


def test_with_own_values_a_maxchange_has_its_own_time_if_it_names_one():
    state = TickerSnapshot("SPX", None, at(NOON + 5, current=[1, 2]), at(NOON, spot=2), last_payload_kind="maxchange")
    assert (state.row(own=True)["timestamp"], state.row(own=True)["spot"], state.row()["timestamp"]) == (
        NOON + 5,
        2,
        NOON,
    )
    without = dataclasses.replace(state, maxchange={"current": [1, 2]})
    assert without.row(own=True)["timestamp"] == NOON
    alone = TickerSnapshot("SPX", maxchange=at(NOON, current=[1, 2]), last_payload_kind="maxchange")
    assert alone.row(own=True)["timestamp"] == NOON and alone.row()["timestamp"] is None
