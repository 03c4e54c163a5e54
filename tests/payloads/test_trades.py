import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.payloads.trades import TOPIC, option_trade

RECORDINGS = pathlib.Path(__file__).parents[1] / "recordings"


def recorded_rows():
    table = json.loads((RECORDINGS / "state.json").read_text())["tables"]["option_trades_events"]
    return [dict(zip(table["columns"], row)) for row in table["rows"]]


def recorded_payloads():
    """The payloads of the topic, in the order in which they were sent."""
    for line in (RECORDINGS / "requests.jsonl").read_text().splitlines():
        case = json.loads(line)
        if case["name"].startswith("/uw algo"):
            yield json.loads(case["request"].split("\r\n\r\n", 1)[1].encode("latin-1"))


def row(**payload):
    return option_trade({"topic": TOPIC, **payload})


def test_every_recorded_row_comes_out_equal_and_nothing_else_makes_a_row():
    made = []
    for payload in recorded_payloads():
        found = option_trade(payload)
        if found is not None:
            made.append({**found, "raw_payload_json": json.dumps(payload)})
    expected = [{k: v for k, v in r.items() if k not in ("id", "received_at")} for r in recorded_rows()]
    assert made == expected
    assert [list(r) for r in made] == [list(r) for r in expected], "the columns are in the table's order"
    types = [[type(v) for v in r.values()] for r in made]
    assert types == [[type(v) for v in r.values()] for r in expected]


@pytest.mark.parametrize(
    "payload",
    [
        {"alert": "buy now"},
        {"alert": []},
        {"alert": 0},
        {"executions": ["x"]},
        {"executions": [None]},
        {"executions": {"0": {}}},
        {"executions": "text"},
        {"executions": 5},
        {"side": 5},
        {"alert": {"action": ["buy"]}},
        {"action": {"a": 1}, "side": "buy"},
    ],
)
def test_an_alert_or_execution_that_is_no_object_and_a_side_that_is_no_text_make_no_row(payload):
    assert row(**payload) is None


def test_null_counts_as_absent():
    assert row(alert=None, executions=None, symbol="A") == row(symbol="A")


@pytest.mark.parametrize(
    "value, number",
    [
        ("7", 7),
        (" 7 ", 7),
        (3.9, 3),
        (True, 1),
        ("3.9", None),
        (2**63, None),
        (-(2**63), -(2**63)),
        (2**63 - 1, 2**63 - 1),
    ]
    + [
        (float("nan"), None),
        (float("inf"), None),
        ("9" * 5000, None),
        ([1], None),
        ({"a": 1}, None),
        ("", 0),
        (None, 0),
        ([], 0),
    ],
)
def test_a_quantity_is_what_int_makes_of_it_or_null(value, number):
    assert row(alert={"quantity": value})["quantity"] == number
    assert row(executions=[{"quantity": value}])["execution_qty"] == number


@pytest.mark.parametrize(
    "value, number",
    [("1.5", 1.5), ("1e3", 1000.0), (2, 2.0), (True, 1.0), ("nan", None), ("inf", None), (float("nan"), None)]
    + [(float("-inf"), None), (10**400, None), ("x", None), ([1], None), ({"a": 1}, None)],
)
def test_a_price_and_a_strike_are_what_float_makes_of_them_or_null(value, number):
    made = row(alert={"price": value, "strike": value}, executions=[{"execution_price": value}])
    assert [made["price"], made["strike"], made["execution_price"]] == [number] * 3


def test_a_strike_of_zero_stays_and_one_that_is_absent_is_null():
    assert row(alert={"strike": 0})["strike"] == 0.0
    assert row()["strike"] is None


@pytest.mark.parametrize(
    "value, text",
    [
        ("C", "C"),
        (5, "5"),
        (1.5, "1.5"),
        (True, "1"),
        (float("nan"), None),
        (float("inf"), None),
        (["a", 1], '["a", 1]'),
    ]
    + [({"a": None}, '{"a": null}'), (2**70, str(2**70)), ("\ud800x", "\\ud800x"), ("é\0", "é\0"), (None, None)],
)
def test_what_is_not_text_becomes_text_where_text_is_due(value, text):
    made = row(alert={"option_type": value, "exp": value, "orderType": value}, executions=[{"venue": value}])
    assert [made["option_type"], made["expiration"], made["order_type"], made["broker"]] == [text] * 4


def test_a_symbol_becomes_text_as_python_writes_it():
    assert row(symbol=True)["symbol"] == "True"
    assert row(symbol=["A", 1])["symbol"] == "['A', 1]"
    assert row(symbol="\udfff")["symbol"] == "\\udfff"


def test_lists_too_deep_to_be_written_are_null():
    deep = []
    for _ in range(5000):
        deep = [deep]
    made = row(symbol=deep, alert={"option_type": deep})
    assert made["symbol"] is None and made["option_type"] is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
fields = st.sampled_from(
    "symbol action side quantity price strike option_type optionType expiration exp order_type orderType ticker "
    "dry_run broker venue execution_price".split()
)
objects = st.dictionaries(fields, json_values, max_size=6)


@given(objects, st.none() | objects | json_values, st.lists(objects | json_values, max_size=2) | json_values)
def test_whatever_comes_every_value_fits_its_column(top, alert, executions):
    made = option_trade({**top, "topic": TOPIC, "alert": alert, "executions": executions})
    if made is None:
        return
    for column, value in made.items():
        if column in ("quantity", "execution_qty"):
            assert value is None or type(value) is int and -(2**63) <= value < 2**63
        elif column in ("price", "strike", "execution_price"):
            assert value is None or type(value) is float and value - value == 0
        else:
            assert value is None or type(value) is str and value.encode().decode() == value
