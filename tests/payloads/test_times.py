import datetime
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.payloads import times
from tests.helpers import strategies

RECEIVED = "2025-11-09T15:16:17.123456"
UTC = datetime.UTC


@pytest.mark.parametrize(
    "value, whole",
    [
        (1762700000, 1762700000),
        (1762700000.9, 1762700000),
        (-1.5, -1),
        (1762700000123, 1762700000123),
        (True, 1),
        ("1762700000", 1762700000),
        (" 1762700000 ", 1762700000),
        ("1762700000.9", 1762700000),
        ("1.7627e9", 1762700000),
        ("2025-11-09T14:53:20Z", 1762700000),
        (" 2025-11-09T14:53:20Z\n", 1762700000),
        ("2025-11-09T14:53:20", 1762700000),
        ("2025-11-09 14:53:20.999", 1762700000),
        ("2025-11-09T09:53:20-05:00", 1762700000),
        ("2025-11-09", 1762646400),
        (2**63 - 1, 2**63 - 1),
        (-(2**63), -(2**63)),
    ],
)
def test_seconds_of_numbers_numeric_text_and_iso_text(value, whole):
    assert times.seconds(value) == whole


@pytest.mark.parametrize(
    "value",
    [None, "", " ", "soon", "nan", "inf", "1e400", math.nan, math.inf, -math.inf, 2**63, -(2**63) - 1, str(2**63), 1e19]
    + [10**400, "9" * 5000, [], [1], {}, "2025-13-01", "\ud800", "2025-11-09T25:00:00"],
)
def test_what_is_no_time_or_has_more_than_64_bits_has_no_seconds(value):
    assert times.seconds(value) is None


@given(strategies.values)
def test_seconds_are_a_64_bit_int_or_null_whatever_comes(value):
    whole = times.seconds(value)
    assert whole is None or type(whole) is int and -(2**63) <= whole < 2**63


@given(st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2200, 1, 1), timezones=st.just(UTC)))
def test_every_way_to_write_a_moment_has_the_same_seconds_and_day(moment):
    whole = math.floor(moment.timestamp()) if moment >= datetime.datetime(1970, 1, 1, tzinfo=UTC) else None
    if whole is not None:
        assert times.seconds(moment.isoformat()) == whole
        assert times.seconds(moment.replace(tzinfo=None).isoformat()) == whole
        assert times.seconds(whole) == times.seconds(str(whole)) == whole
    elsewhere = moment.astimezone(datetime.timezone(datetime.timedelta(hours=-5)))
    for text in (moment.isoformat(), elsewhere.isoformat(), moment.replace(tzinfo=None).isoformat(" ")):
        assert times.day(text, RECEIVED) == moment.strftime("%Y-%m-%d")


@pytest.mark.parametrize(
    "timestamp, day",
    [
        (0, "1970-01-01"),
        (1762700000, "2025-11-09"),
        (1762732799.999, "2025-11-09"),
        (1762732800, "2025-11-10"),
        (1762732800000, "2025-11-10"),
        (1762732799999, "2025-11-09"),
        ("1762732800", "2025-11-10"),
        ("1762732800000", "2025-11-10"),
        ("2025-11-09T23:30:00-05:00", "2025-11-10"),
        ("2025-11-10T00:30:00+01:00", "2025-11-09"),
        (1e11, "5138-11-16"),
        (-62135596800, "0001-01-01"),
    ],
)
def test_the_day_is_the_utc_date_of_seconds_milliseconds_or_iso_text(timestamp, day):
    assert times.day(timestamp, RECEIVED) == day


@pytest.mark.parametrize(
    "timestamp",
    [
        None,
        "",
        "soon",
        "../../etc",
        math.nan,
        math.inf,
        10**400,
        -(10**30),
        [],
        {},
        "0001-01-01T00:00:00+05:00",
        "9" * 30,
    ],
)
def test_without_a_date_it_is_the_day_of_receipt(timestamp):
    assert times.day(timestamp, RECEIVED) == "2025-11-09"


@given(strategies.values)
def test_a_day_is_always_ten_characters_of_a_date(timestamp):
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", times.day(timestamp, RECEIVED), re.ASCII)


def test_a_receive_time_as_tables_have_it():
    assert times.row_time(RECEIVED) == "2025-11-09 15:16:17"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", times.row_time(times.utc_now_text()))
