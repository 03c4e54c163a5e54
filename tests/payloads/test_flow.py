import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.payloads.flow import option_flow
from data_pipeline.repository import schema

TRADE = {
    "id": "00000000-0000-4000-8000-000000000001",
    "option_chain_id": "XYZ260116C00118000",
    "price": "2.80",
    "size": 500,
    "premium": "140000.00",
    "underlying_price": "115.69",
    "tags": ["ask_side", "bullish"],
    "executed_at": "2026-01-07T20:00:32.287Z",
}
READ = {
    "symbol": "XYZ",
    "option_symbol": "XYZ260116C00118000",
    "option_type": "C",
    "strike": 118.0,
    "expiration": "2026-01-16",
    "price": 2.8,
    "size": 500,
    "premium": 140000.0,
    "underlying_price": 115.69,
    "side": "ask",
    "sentiment": "bullish",
    "executed_at": "2026-01-07 20:00:32.287",
    "tags_json": '["ask_side", "bullish"]',
}
ALERT = {
    "alert_rule": "RepeatedHits",
    "created_at": "2023-12-12T16:35:52.168490Z",
    "expiry": "2023-12-22",
    "has_floor": False,
    "has_multileg": False,
    "has_sweep": True,
    "open_interest": 7913,
    "option_chain": "MSFT231222C00375000",
    "price": "4.05",
    "strike": "375",
    "ticker": "MSFT",
    "total_ask_side_prem": "151875",
    "total_bid_side_prem": "405",
    "total_premium": "186705",
    "total_size": 461,
    "type": "call",
    "underlying_price": "372.99",
    "volume": 2442,
}


def one(payload: dict) -> dict:
    """The row's cells that are not null."""
    (row,) = option_flow(payload)
    assert sorted(row) == sorted(schema.columns("option_flow")[3:])
    return {name: value for name, value in row.items() if value is not None}


@pytest.mark.parametrize("topic", ["option_trades_super_algo", "option_trades", "option_trades:SPY", "whatever"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda trade: trade,
        lambda trade: {"payload": trade},
        lambda trade: {"data": trade},
        lambda trade: {"alert": trade},
        lambda trade: {"payload": {"data": trade}},
        lambda trade: {"payload": {"data": [trade]}},
    ],
)
def test_a_trade_is_found_wherever_it_lies_and_whatever_the_topic_is_called(topic, wrap):
    assert one({"topic": topic, **wrap(TRADE)}) == {"topic": topic, **READ}


def test_a_flow_alert_has_its_sums_its_rule_and_the_side_of_most_of_its_premium():
    assert one({"topic": "flow_alerts", "payload": ALERT}) == {
        "topic": "flow_alerts",
        "executed_at": "2023-12-12 16:35:52.168",
        "symbol": "MSFT",
        "option_symbol": "MSFT231222C00375000",
        "option_type": "C",
        "strike": 375.0,
        "expiration": "2023-12-22",
        "side": "ask",
        "size": 461,
        "price": 4.05,
        "premium": 186705.0,
        "volume": 2442,
        "open_interest": 7913,
        "underlying_price": 372.99,
        "rule": "RepeatedHits",
        "has_sweep": 1,
        "has_floor": 0,
        "has_multileg": 0,
    }


def test_several_in_a_list_are_as_many_rows():
    rows = option_flow({"topic": "t", "data": [TRADE, ALERT, {"no": "trade"}, 5, [TRADE]]})
    assert [row["symbol"] for row in rows] == ["XYZ", "MSFT", "XYZ"]


@pytest.mark.parametrize("when", [1726670167412, "1726670167412", 1726670167.412, "2024-09-18T14:36:07.412+00:00"])
def test_a_time_may_be_milliseconds_seconds_or_iso(when):
    assert one({**TRADE, "executed_at": when})["executed_at"] == "2024-09-18 14:36:07.412"


@pytest.mark.parametrize(
    "written, symbol, kind, strike, expiration",
    [
        ("SPXW  251110P05812500", "SPXW", "P", 5812.5, "2025-11-10"),
        ("O:BRK.B251219C00500000", "BRK.B", "C", 500.0, "2025-12-19"),
        ("spy251110c00600500", "SPY", "C", 600.5, "2025-11-10"),
        ("XYZ261399C00118000", "XYZ", "C", 118.0, None),
    ],
)
def test_what_is_not_named_comes_from_the_occ_symbol(written, symbol, kind, strike, expiration):
    for name in ("option_chain_id", "option_symbol", "option_chain"):
        (row,) = option_flow({name: written, "price": 1})
        assert (row["symbol"], row["option_type"], row["strike"], row["expiration"]) == (
            symbol,
            kind,
            strike,
            expiration,
        )


def test_names_win_over_the_occ_symbol_and_do_without_it():
    named = {"ticker": "SPX", "type": "put", "strike": "5800", "expiry": "2025-11-11", "price": "1"}
    for more in ({}, {"option_symbol": "SPXW251110C05812500"}):
        (row,) = option_flow({**named, **more})
        assert (row["symbol"], row["option_type"], row["strike"], row["expiration"]) == ("SPX", "P", 5800, "2025-11-11")


@pytest.mark.parametrize(
    "payload",
    [
        {"topic": "news"},
        {"topic": "gex", "payload": {"ticker": "SPY", "price": "593.06"}},
        {"option_symbol": "XYZ260116C00118000"},
        {"option_symbol": "no contract", "price": 1},
        {"data": {"strike": 5, "price": 1}},
    ],
)
def test_what_is_no_trade_makes_no_row(payload):
    assert option_flow(payload) == []


def test_numbers_that_no_column_holds_are_null():
    row = one({**TRADE, "size": 1e300, "premium": "1_0", "delta": "NaN", "gamma": 1e999, "vega": [], "executed_at": {}})
    assert not {"size", "premium", "delta", "gamma", "vega", "executed_at"} & row.keys()


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(list(TRADE.values())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*TRADE, *ALERT, "data"]), inner),
)


@given(st.dictionaries(st.sampled_from([*TRADE, *ALERT, "topic", "data", "payload", "side", "sentiment"]), anything))
def test_no_payload_can_do_any_harm(payload):
    for row in option_flow(payload):
        assert json.dumps(row, allow_nan=False)
