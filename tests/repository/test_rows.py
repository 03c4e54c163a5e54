import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.payloads.records import Gex, Link, Webhook
from data_pipeline.payloads.store import Part, TickerState
from data_pipeline.repository import rows, schema
from data_pipeline.repository.rows import Rows
from tests.helpers import strategies

AT = "2025-11-09T15:16:17.123456"
NOTHING = ([],) * 9


def strikes(entries):
    return rows.strikes(entries, json.dumps(entries))


def gex(data, kind="snapshot", before=None, endpoint="gex_zero", received_at=None, webhook=None, ticker="SPX") -> Gex:
    """A record as the bridge makes it: the state after the payload, bodies as they came in."""
    state = before.state if before else TickerState(ticker)
    part = Part(json.dumps({"ticker": ticker, "data": data}).encode(), "data")
    return Gex(AT, endpoint, state.merged(kind, part, endpoint, received_at), webhook)


def added(*records) -> Rows:
    made = Rows()
    for record in records:
        made.add(record)
    return made


def only_snapshot(made: Rows) -> dict:
    ((key, row),) = made.snapshots.items()
    assert row[:3] == key
    return dict(zip(schema.columns("gex_bridge_snapshots"), row, strict=True))


# Strikes as GEXBot sends them, and then anything in any place.
plain = st.integers(-(10**6), 10**6) | st.floats() | st.sampled_from([2**53 + 1, 2**70, -0.0, 0, 10**400])
uniform_entry = st.tuples(plain, plain, plain, st.lists(plain, min_size=5, max_size=5)).map(list)


@st.composite
def nearly_uniform(draw):
    """What GEXBot sends, but for one value."""
    entries = draw(st.lists(uniform_entry, min_size=1, max_size=3))
    row, place = draw(st.sampled_from(entries)), draw(st.integers(0, 8))
    target, index = (row, place) if place < 4 else (row[3], place - 4)
    target[index] = draw(strategies.scalars | st.lists(strategies.scalars, max_size=6))
    return entries


odd = strategies.scalars | st.lists(strategies.scalars, max_size=6)
entry = uniform_entry | st.lists(odd, max_size=6) | st.tuples(odd, odd, odd, odd).map(list) | strategies.values


@settings(max_examples=300)
@given(st.lists(uniform_entry, min_size=1, max_size=6) | nearly_uniform() | st.lists(entry, min_size=1, max_size=6))
def test_the_fast_way_makes_the_same_columns_as_the_slow_one_wherever_it_applies(entries):
    fast = rows._uniform_strikes(entries, json.dumps(entries))
    if fast is not None:
        # NaN equals nothing, and 0.0 equals -0.0: their texts tell.
        assert repr(fast) == repr(rows._any_strikes(entries))


@given(st.lists(st.floats(1, 1e5, allow_nan=False).map(lambda x: round(x, 2)), min_size=1, max_size=50, unique=True))
def test_the_fast_way_applies_to_what_gexbot_sends(levels):
    entries = [[strike, -1.5 * n, 2, [0.25, 1, 2, 3, n]] for n, strike in enumerate(levels)]
    fast = rows._uniform_strikes(entries, json.dumps(entries))
    assert fast is not None
    assert repr(fast) == repr(rows._any_strikes(entries))


@given(st.lists(entry, max_size=8) | strategies.values)
def test_strikes_are_nine_columns_of_equal_length_that_fit_the_table(entries):
    columns = strikes(entries)
    assert len(columns) == 9
    assert len({len(column) for column in columns}) == 1
    assert all(type(strike) is float and strike == strike for strike in columns[0])
    assert len(set(columns[0])) == len(columns[0])
    for column in columns[1:8]:
        assert all(value is None or type(value) is float and value == value for value in column)
    for history in columns[8]:
        assert history is None or json.loads(history) and history.isascii()


@pytest.mark.parametrize("entries", [None, [], {}, "strikes", 5, [[]], [[5300]], ["x", None, 5, {"strike": 5300}]])
def test_without_a_list_of_two_there_is_no_strike(entries):
    assert strikes(entries) == NOTHING


@pytest.mark.parametrize(
    "entry, row",
    [
        ([5300, 1.5], (5300.0, 1.5, None, None, None, None, None, None, None)),
        ([5300, 1.5, -2], (5300.0, 1.5, -2.0, None, None, None, None, None, None)),
        ([5300, 1.5, -2, None], (5300.0, 1.5, -2.0, None, None, None, None, None, None)),
        ([5300, 1.5, -2, []], (5300.0, 1.5, -2.0, None, None, None, None, None, None)),
        ([5300, 1.5, -2, [1, 2]], (5300.0, 1.5, -2.0, 1.0, 2.0, None, None, None, "[1, 2]")),
        ([5300, 1.5, -2, [1, 2, 3, 4, 5, 6]], (5300.0, 1.5, -2.0, 1.0, 2.0, 3.0, 4.0, 5.0, "[1, 2, 3, 4, 5, 6]")),
        ([5300, 1.5, -2, [1, 2, 3, 4, 5], "more"], (5300.0, 1.5, -2.0, 1.0, 2.0, 3.0, 4.0, 5.0, "[1, 2, 3, 4, 5]")),
        (["5300", "1.5", " -2 ", ["1", "x"]], (5300.0, 1.5, -2.0, 1.0, None, None, None, None, '["1", "x"]')),
        ([5300, "x", {}, "y"], (5300.0, None, None, None, None, None, None, None, None)),
        ([5300, math.nan, 1, [math.nan] * 5], (5300.0, None, 1.0, *[None] * 5, "[NaN, NaN, NaN, NaN, NaN]")),
        ([5300, 1, 10**400, [0, 1, 2, 3, 4]], (5300.0, 1.0, None, 0.0, 1.0, 2.0, 3.0, 4.0, "[0, 1, 2, 3, 4]")),
        ([5300, 1, 2, ["\ud800"]], (5300.0, 1.0, 2.0, *[None] * 5, '["\\ud800"]')),
    ],
)
def test_a_ragged_strike_keeps_what_it_has(entry, row):
    assert tuple(column[0] for column in strikes([entry])) == row


def test_a_strike_that_is_no_number_is_skipped_and_the_others_stay():
    bad = [[None, 1], ["x", 1], [math.nan, 1], [[5300], 1], [{}, 1], [10**400, 1], ["", 1], "text", None]
    assert strikes([[5300, 1], *bad, [5305, 2]])[0] == [5300.0, 5305.0]


def test_of_the_same_strike_twice_the_last_one_counts():
    uniform = [[s, g, 0, [0, 0, 0, 0, 0]] for s, g in ((5300, 1), (5305, 2), (5300.0, 3))]
    assert strikes(uniform)[:2] == ([5300.0, 5305.0], [3.0, 2.0])
    assert strikes([[5300, 1], ["5300", 2]])[:2] == ([5300.0], [2.0])
    assert strikes([[2**53, 1, 0, [0] * 5], [2**53 + 1, 2, 0, [0] * 5]])[1] == [2.0]


def test_a_snapshot_row_has_the_values_of_the_combined_view():
    data = {
        "timestamp": 1762700000.7,
        "spot": "5300.5",
        "zero_gamma": math.nan,
        "sum_gex_vol": 2**70,
        "net_gex_oi": [],
        "major_pos_vol": True,
        "strikes": [[5300, 1], ["x", 1]],
        "max_priors": None,
        "note": "é",
    }
    row = only_snapshot(added(gex(data, received_at="2025-11-09T15:00:00Z")))
    assert (row["ticker"], row["timestamp"], row["endpoint"]) == ("SPX", 1762700000, "gex_zero")
    assert (row["spot"], row["zero_gamma"], row["net_gex_vol"], row["net_gex_oi"]) == (5300.5, None, 2.0**70, None)
    assert (row["major_pos_vol"], row["strikes_count"], row["payload_kind"]) == (1.0, 1, "snapshot")
    assert (row["max_change_json"], row["max_priors_json"]) == ("{}", "[]")
    assert row["raw_payload_json"] == json.dumps(data, ensure_ascii=False)
    assert row["received_at"] == row["updated_at"] == "2025-11-09T15:00:00Z"


@pytest.mark.parametrize("timestamp", [None, "soon", math.nan, 2**63, [], {"a": 1}])
def test_without_a_usable_timestamp_there_is_no_row(timestamp):
    made = added(gex({"timestamp": timestamp, "spot": 1, "strikes": [[5300, 1]]}))
    reason = "without_time" if timestamp is None else "unreadable_time"
    assert made == Rows(left_out=[(reason, "SPX")])


def test_the_endpoint_is_the_requests_or_the_tickers_last_or_unknown():
    first = gex({"timestamp": 1}, endpoint="gex_one")
    assert only_snapshot(added(gex({"timestamp": 1}, endpoint=None, before=first)))["endpoint"] == "gex_one"
    assert only_snapshot(added(gex({"timestamp": 1}, endpoint=None)))["endpoint"] == "unknown"
    assert only_snapshot(added(gex({"timestamp": 1}, endpoint="")))["endpoint"] == "unknown"


def test_majors_bring_the_strikes_of_the_stored_snapshot_under_their_own_time():
    first = gex({"timestamp": 1, "strikes": [[5300, 1]]})
    second = gex({"timestamp": 2, "spot": 7}, "majors", before=first)
    made = added(first, second)
    assert [key[1] for key in made.snapshots] == [key[1] for key in made.strikes] == [1, 2]
    assert made.strikes["SPX", 2, "gex_zero"][0] == [5300.0]


def test_the_last_record_of_a_key_wins_and_strikes_stay_where_it_brings_none():
    made = added(gex({"timestamp": 1, "spot": 1, "strikes": [[5300, 1]]}), gex({"timestamp": 1, "spot": 2}))
    row = only_snapshot(made)
    assert (row["spot"], row["strikes_count"]) == (2.0, 0)
    assert made.strikes["SPX", 1, "gex_zero"][0] == [5300.0]


def test_lone_surrogates_reach_no_column():
    made = added(
        gex({"timestamp": 1, "x\ud800": "\udfff", "max_priors": ["\ud800"]}, endpoint="\ud800", ticker="\udfff")
    )
    for value in only_snapshot(made).values():
        assert not isinstance(value, str) or value.encode("utf-8")


def test_a_payload_of_the_webhook_endpoint_is_also_a_webhook_row_even_without_a_time():
    made = added(gex({"spot": 1}, webhook=("10.0.0.1", "agent\ud800")))
    ((at, payload_json, client, agent),) = made.webhooks
    assert (at, client, agent) == ("2025-11-09 15:16:17", "10.0.0.1", "agent\\ud800")
    assert json.loads(payload_json) == {"ticker": "SPX", "data": {"spot": 1}}
    assert not made.snapshots


def test_a_link_is_a_pending_row_with_its_own_id():
    made = added(Link(AT, 7, "http://x/\ud800", "SPX", "gex_zero"))
    at = "2025-11-09 15:16:17"
    assert made.links == [(7, "http://x/\\ud800", "SPX", "gex_zero", "pending", 0, None, at, at)]


def test_option_trades_are_a_webhook_and_a_trade():
    payload = {"topic": "option_trades_super_algo", "alert": {"symbol": "SPX", "action": "buy"}}
    made = added(Webhook(AT, "10.0.0.1", "", json.dumps(payload).encode()))
    assert len(made.webhooks) == len(made.trades) == 1
    assert len(made.trades[0]) == len(schema.columns("option_trades_events")) - 1
    made = added(Webhook(AT, "10.0.0.1", "", json.dumps({**payload, "alert": "none"}).encode()))
    assert (len(made.webhooks), len(made.trades)) == (1, 0)


@pytest.mark.parametrize(
    "record",
    [
        Webhook(AT, "10.0.0.1", "", b"{not json"),
        Webhook(AT, "10.0.0.1", "", b'["a list"]'),
        Link(AT, 1, 5, "SPX", "gex_zero"),
        Gex(AT, "gex_zero", TickerState("SPX", snapshot=Part(b"{}", "data"), last_payload_kind="snapshot")),
        gex({"timestamp": 1, "strikes": [[5300, 1]]}, received_at=5, webhook=("10.0.0.1", "agent")),
        gex({"timestamp": 1, "strikes": [[5300, 1]]}, webhook=("10.0.0.1", 5)),
    ],
)
def test_a_record_that_cannot_be_rows_adds_nothing_at_all(record):
    made = Rows()
    with pytest.raises((ValueError, TypeError, AttributeError, KeyError)):
        made.add(record)
    assert made == Rows()


fields = strategies.some_of(
    timestamp=strategies.numbers | strategies.values,
    spot=strategies.values,
    net_gex=strategies.values,
    strikes=st.lists(entry, max_size=4) | strategies.values,
    max_priors=strategies.values,
    topic=strategies.values,
    current=st.lists(strategies.values, max_size=3),
)


@given(
    fields, fields, st.sampled_from(["snapshot", "majors", "maxchange"]), strategies.texts, st.none() | strategies.texts
)
def test_whatever_comes_every_value_fits_its_column(data, later, kind, ticker, endpoint):
    first = gex(data, ticker=ticker, webhook=("10.0.0.1", ticker))
    made = added(
        first, gex(later, kind, first, endpoint, ticker=ticker), Webhook(AT, "::1", ticker, json.dumps(later).encode())
    )
    assert len(made.webhooks) == 2
    for table, tuples in (("gex_bridge_snapshots", made.snapshots.values()), ("universal_webhooks", made.webhooks)):
        kinds = [kind for _, kind in schema.TABLES[table]][-len(next(iter(tuples), ())) :]
        for row in tuples:
            for value, kind_ in zip(row, kinds, strict=True):
                fits = {"VARCHAR": str, "BIGINT": int, "DOUBLE": float}[kind_.split()[0]]
                assert value is None and "NOT NULL" not in kind_ or type(value) is fits
                assert type(value) is not str or value.encode("utf-8") is not None
    for key, columns in made.strikes.items():
        assert columns[0] and key in made.snapshots


def test_a_snapshot_of_which_no_strike_can_be_read_is_named_and_others_are_not():
    assert added(gex({"timestamp": 1, "spot": 1, "zgr": 1.1})).left_out == [("without_strikes", "SPX")]
    assert added(gex({"timestamp": 1, "strikes": [["x", 1], 5]})).left_out == [("without_strikes", "SPX")]
    fetched = gex({"timestamp": 1, "spot": 1}, webhook=("127.0.0.1", "GEXBotPoller"))
    for record in (fetched, gex({"timestamp": 1}, "majors"), gex({"timestamp": 1, "strikes": [[1, 2]]})):
        assert added(record).left_out == []


def test_a_flow_row_knows_its_webhook():
    trade = {"option_symbol": "XYZ260116C00118000", "price": "2.80"}
    payloads = [{"n": 1}, {"topic": "option_trades", "data": [trade, trade]}, {"alert": trade}]
    made = added(*[Webhook(AT, "::1", "", json.dumps(payload).encode()) for payload in payloads])
    assert [row[0] for row in made.flow] == [1, 1, 2]
    names = schema.columns("option_flow")[1:]
    assert dict(zip(names, made.flow[0], strict=True)) | {"webhook_id": 1, "symbol": "XYZ", "strike": 118.0} == dict(
        zip(names, made.flow[0], strict=True)
    )


def test_own_values_give_each_payload_a_row_of_its_own():
    majors = {"timestamp": 1762700000, "spot": 5000, "zero_gamma": 4990, "net_gex_vol": 111, "major_pos_vol": 5100}
    first = gex(majors, "majors", endpoint="gex_full")
    second = gex({"timestamp": 1762700060, "spot": 5010, "strikes": [[5000, 1]]}, before=first)
    third = gex({"timestamp": 1762700120, "spot": 5020, "strikes": [[5010, 7]]}, before=second)
    fourth = gex({"timestamp": 1762700150, "current": [1, 2]}, "maxchange", before=third)
    made = Rows(own=True)
    for record in (first, second, third, fourth):
        made.add(record)
    assert [(key[1], row[5]) for key, row in made.snapshots.items()] == [
        (1762700000, 5000.0),
        (1762700060, 5010.0),
        (1762700120, 5020.0),
        (1762700150, 5020.0),
    ]
    assert all(row[9] == 5100.0 for row in made.snapshots.values()), "what the snapshots do not have is the majors'"
    original = added(first, second, third)
    assert [key[1] for key in original.snapshots] == [1762700000, 1762700000], "and one row a minute as the original"
