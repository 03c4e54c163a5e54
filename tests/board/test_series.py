"""The board's series: each payload counts with its own time and its own numbers."""

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.board.series import Series, _plain_column, trading_day
from data_pipeline.files.levels import MINUTE
from data_pipeline.payloads import reading
from data_pipeline.payloads.times import NEW_YORK

OPEN = datetime.datetime(2026, 11, 24, 9, 30, tzinfo=NEW_YORK).timestamp()


def chain(moment: object, spot: float = 6800.0, **more: object) -> dict:
    return {"timestamp": moment, "spot": spot, **more}


def filled(*payloads: tuple[str, dict]) -> Series:
    series = Series("SPX", "gex_zero")
    for kind, data in payloads:
        series.add(kind, data, OPEN)
    return series


def test_a_row_has_the_payloads_own_time_and_numbers_whatever_the_other_kind_says():
    series = filled(
        ("majors", {"timestamp": OPEN + 60, "spot": 6810.0, "mpos_vol": 6850.0}),
        ("snapshot", chain(OPEN + 61, 6811.0, major_pos_vol=6845.0, sum_gex_vol=1.5)),
    )
    rows = list(series.rows(0, 1e11))
    assert [(moment, row["spot"], row["major_pos_vol"], row["net_gex_vol"]) for moment, row in rows] == [
        (OPEN + 60, 6810.0, 6850.0, None),
        (OPEN + 61, 6811.0, 6845.0, 1.5),
    ]
    assert series.latest()["major_pos_vol"] == 6845.0


def test_payloads_of_the_same_time_share_a_row_and_a_late_one_finds_its_place():
    series = filled(
        ("snapshot", chain(OPEN + 2, 2.0)),
        ("majors", {"timestamp": OPEN + 2, "zero_gamma": 5.0}),
        ("snapshot", chain(OPEN + 1, 1.0)),
    )
    assert [(moment - OPEN, row["spot"], row["zero_gamma"]) for moment, row in series.rows(0, 1e11)] == [
        (1, 1.0, None),
        (2, 2.0, 5.0),
    ]
    assert series.latest()["spot"] == 2.0
    assert series.reading("snapshot").time == OPEN + 2


@pytest.mark.parametrize(
    "written",
    [
        lambda t: t,
        lambda t: int(t * 1000),
        lambda t: str(int(t)),
        lambda t: datetime.datetime.fromtimestamp(t, datetime.UTC).isoformat(),
    ],
)
def test_seconds_milliseconds_and_iso_text_are_the_same_time(written):
    assert filled(("snapshot", chain(written(OPEN)))).updated == OPEN


def test_a_payload_without_a_time_that_can_be_read_counts_as_received_now():
    for unreadable in (None, "soon", [1], float("nan"), -(2**63)):
        assert filled(("snapshot", chain(unreadable))).updated == OPEN


def test_a_new_day_begins_anew_and_yesterdays_payloads_change_nothing():
    series = filled(("snapshot", chain(OPEN)), ("snapshot", chain(OPEN + 86_400, 7000.0)))
    assert [row["spot"] for _, row in series.rows(0, 1e11)] == [7000.0]
    assert not series.add("snapshot", chain(OPEN + 1), OPEN)
    assert series.updated == OPEN + 86_400


@pytest.mark.parametrize("date", ["2026-03-08", "2026-11-01", "2026-11-24"])
def test_a_day_is_new_yorks_from_midnight_to_midnight_also_where_the_clock_is_changed(date):
    midnight = datetime.datetime.combine(datetime.date.fromisoformat(date), datetime.time(), NEW_YORK)
    series = filled(("snapshot", chain(midnight.timestamp())))
    next_day = datetime.date.fromisoformat(date) + datetime.timedelta(days=1)
    last = datetime.datetime.combine(next_day, datetime.time(), NEW_YORK).timestamp() - 1
    assert series.add("snapshot", chain(last), last)
    assert series.day == trading_day(last) == datetime.date.fromisoformat(date)
    assert len(list(series.rows(0, 1e11))) == 2


def test_the_grid_has_a_column_a_minute_with_its_first_snapshot():
    strikes = [[5.0, 1.0, 0.5], [6.0, -2.0]]
    series = filled(
        ("snapshot", chain(OPEN + 1, strikes=strikes)),
        ("snapshot", chain(OPEN + 59, strikes=[[5.0, 9.0]])),
        ("snapshot", chain(OPEN + 60, strikes=[[7.0, 3.0, None]])),
    )
    grid = series.grid()
    assert [minute * MINUTE - OPEN for minute in grid] == [0, 60]
    first = grid[int(OPEN) // MINUTE]
    assert list(first[0]) == [5.0, 6.0] and list(first[1]) == [1.0, -2.0]
    assert first[2][0] == 0.5 and first[2][1] != first[2][1]
    assert [one.strike for one in series.strikes_at(OPEN + 200)[1]] == [7.0]
    assert series.strikes_at(OPEN - 1) is None


def test_a_majors_payload_without_strikes_takes_none_away():
    series = filled(("snapshot", chain(OPEN, strikes=[[5.0, 1.0]])), ("majors", chain(OPEN + 1)))
    assert [one.strike for one in series.reading("snapshot").strikes] == [5.0]


@pytest.mark.parametrize(
    "entries",
    [
        None,
        "x",
        {},
        [[]],
        [[1]],
        [["a", 1]],
        [[None, 1]],
        [[1, None]],
        [[[1], 2]],
        [{"strike": 1}],
        [[float("nan"), 1]],
    ],
)
def test_what_is_no_strike_is_left_out(entries):
    assert reading.strikes(entries) == ()


def test_numeric_text_is_a_number_and_the_last_of_a_strike_counts():
    (one,) = reading.strikes([["5", "1"], [5, "2.5", "x", ["7", None]]])
    assert (one.strike, one.volume, one.open_interest, one.priors) == (5.0, 2.5, None, (7.0, None, None, None, None))


numbers = st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.integers(-(10**40), 10**40), st.booleans())
values = st.one_of(numbers, st.none(), st.text(max_size=3), st.lists(numbers, max_size=2))


@given(st.one_of(values, st.lists(st.one_of(st.lists(values, max_size=5), values), max_size=5)))
def test_the_fast_way_to_a_column_gives_what_the_careful_one_gives(entries):
    fast = _plain_column(entries)
    careful = Series("A", "e")
    careful.add_column(0, reading.strikes(entries))
    if fast is not None and len(fast[0]):
        assert [list(column) for column in fast] == [list(column) for column in careful.grid()[0]]


def test_what_gexbot_sends_takes_the_fast_way():
    assert _plain_column([[5.0, 1.5, -2, [1, 2]], [6, 2, 0.5, []]]) is not None
