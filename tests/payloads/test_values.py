import json
import math

import pytest
from hypothesis import given

from data_pipeline.payloads.values import json_text, number, text
from tests.helpers import strategies


@pytest.mark.parametrize(
    "value, kept",
    [
        (5300, 5300.0),
        (5300.25, 5300.25),
        ("5300.25", 5300.25),
        (" 7 ", 7.0),
        ("1e3", 1000.0),
        ("-0", 0.0),
        (2**70, 2.0**70),
    ]
    + [(True, 1.0), (math.inf, math.inf)],
)
def test_numbers_and_numeric_text_are_kept_as_numbers(value, kept):
    assert number(value) == kept


@pytest.mark.parametrize(
    "value", [None, math.nan, "nan", "", "x", "1_0", "0x10", "5300,5", 10**400, [], [1], {}, {"a": 1}, "\ud800"]
)
def test_what_cannot_be_a_number_is_null(value):
    assert number(value) is None


@given(strategies.values)
def test_a_number_is_a_float_that_equals_itself_or_null(value):
    found = number(value)
    assert found is None or type(found) is float and found == found


def test_a_lone_surrogate_becomes_its_escape_and_nothing_else_changes():
    assert text("plain") == "plain"
    assert text("Größe 😀") == "Größe 😀"
    assert text("a\ud800b\udfffc") == "a\\ud800b\\udfffc"
    assert text(None) is None


@given(strategies.texts)
def test_text_is_always_utf8_and_stays_as_it_is_where_it_can(value):
    kept = text(value)
    kept.encode("utf-8")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        assert kept != value
    else:
        assert kept == value


@given(strategies.values)
def test_json_text_is_utf8_and_means_the_same(value):
    written = json_text(value)
    written.encode("utf-8")
    assert json.dumps(json.loads(written)) == json.dumps(value)


@given(strategies.values)
def test_json_text_writes_letters_out_unless_a_lone_surrogate_forbids_it(value):
    plain = json.dumps(value, ensure_ascii=False)
    try:
        plain.encode("utf-8")
    except UnicodeEncodeError:
        assert json_text(value) == json.dumps(value)
    else:
        assert json_text(value) == plain
