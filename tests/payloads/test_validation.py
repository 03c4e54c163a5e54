import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.payloads.validation import GexPayload, HistoryLink, ValidationError, gex_payload, history_link
from tests.helpers import strategies

GOOD = {"ticker": "spx", "kind": "snapshot", "data": {"spot": 1}}


def problems(payload, *args) -> str:
    with pytest.raises(ValidationError) as raised:
        gex_payload(payload, *args)
    return str(raised.value)


def test_a_good_payload_comes_back_with_its_ticker_in_upper_case():
    assert gex_payload(GOOD) == GexPayload("SPX", "snapshot", {"spot": 1}, None, None)
    whole = gex_payload({**GOOD, "endpoint": "gex_zero", "received_at": "10:00", "more": 1})
    assert (whole.endpoint, whole.received_at) == ("gex_zero", "10:00")


FIELDS: dict[str, dict[str, list]] = {
    "ticker": {
        "field required": [None],
        "must be a string": [5, [], {}, False],
        "must not be empty": ["", " \t\n"],
        "must not be longer than 256 characters": ["x" * 257, "\N{GRINNING FACE}" * 257],
    },
    "received_at": {
        "must be a string": [5, [], {}, False, 0],
        "must not be longer than 256 characters": ["x" * 257],
    },
    "endpoint": {"must be a string": [5, [], {}, True], "must not be longer than 256 characters": ["x" * 257]},
    "kind": {"must be one of majors, maxchange, snapshot": [None, "", "Snapshot", 5, [], {}, ["snapshot"]]},
    "data": {
        "field required": [None],
        "must be an object": [[], "text", 5, False],
        "must not hold more than 20000 strikes": [{"strikes": [0] * 20_001}],
    },
}
CASES = [(f, w, value) for f, wordings in FIELDS.items() for w, values in wordings.items() for value in values]


@pytest.mark.parametrize("field, wording, value", CASES)
def test_a_wrong_field_is_named_with_its_problem(field, wording, value):
    assert problems({**GOOD, field: value}) == f"Validation error: {field}: {wording}"


@pytest.mark.parametrize("fields", list(itertools.combinations(FIELDS, 3)))
def test_every_problem_is_reported_in_order(fields):
    wrong = {field: next(iter(FIELDS[field].items())) for field in fields}
    expected = "; ".join(f"{field}: {wording}" for field, (wording, _) in wrong.items())
    values = {field: values[0] for field, (_, values) in reversed(wrong.items())}
    assert problems({**GOOD, **values}) == f"Validation error: {expected}"


def test_an_empty_object_lacks_ticker_kind_and_data():
    assert problems({}) == (
        "Validation error: ticker: field required; kind: must be one of majors, maxchange, snapshot; "
        "data: field required"
    )


@pytest.mark.parametrize("nothing", [{}, {"received_at": None, "endpoint": None}, {"received_at": "", "endpoint": ""}])
def test_times_and_endpoints_may_be_absent_null_or_empty(nothing):
    assert gex_payload({**GOOD, **nothing}).ticker == "SPX"


def test_an_empty_data_object_is_good():
    assert gex_payload({**GOOD, "data": {}}).data == {}


def test_webhooks_have_their_data_in_payload_and_defaults():
    universal = ("payload", "snapshot", "gex_zero")
    found = gex_payload({"ticker": "spx", "payload": {}}, *universal)
    assert (found.kind, found.endpoint) == ("snapshot", "gex_zero")
    for empty in (None, ""):
        found = gex_payload({"ticker": "spx", "payload": {}, "kind": empty, "endpoint": empty}, *universal)
        assert (found.kind, found.endpoint) == ("snapshot", "gex_zero")
    found = gex_payload({"ticker": "spx", "payload": {}, "kind": "majors", "endpoint": "gex_one"}, *universal)
    assert (found.kind, found.endpoint) == ("majors", "gex_one")
    for value in (0, False, [], {}):
        assert "kind: must be one of" in problems({"ticker": "spx", "payload": {}, "kind": value}, *universal)
    assert problems({"ticker": "spx", "data": {}, "kind": "x"}, *universal) == (
        "Validation error: kind: must be one of majors, maxchange, snapshot; payload: field required"
    )


anything = strategies.some_of(
    **dict.fromkeys(("ticker", "kind", "data", "payload", "endpoint", "received_at"), strategies.values)
)


@given(anything, st.sampled_from(["data", "payload"]))
def test_whatever_comes_is_typed_or_refused(payload, data_key):
    try:
        found = gex_payload(payload, data_key, "snapshot", "gex_zero")
    except ValidationError as problem:
        assert str(problem).startswith("Validation error: ")
    else:
        assert found.ticker.strip() and found.ticker == found.ticker.upper()
        assert isinstance(found.data, dict) and isinstance(found.kind, str) and isinstance(found.endpoint, str)
        assert found.received_at is None or isinstance(found.received_at, str)


def test_a_history_link_takes_the_first_truthy_of_endpoint_feed_and_kind():
    link = {"url": "http://x", "ticker": "spx"}
    assert history_link({**link, "endpoint": "a", "feed": "b", "kind": "c"}) == HistoryLink("http://x", "spx", "a")
    assert history_link({**link, "endpoint": "", "feed": "b", "kind": "c"}).endpoint == "b"
    assert history_link({**link, "endpoint": 0, "feed": [], "kind": "c"}).endpoint == "c"
    assert history_link({**link, "endpoint": ["a", 1]}).endpoint == ["a", 1]


@pytest.mark.parametrize("missing", ["url", "ticker", "endpoint"])
@pytest.mark.parametrize("value", [None, "", 0, False, [], {}])
def test_a_link_without_url_ticker_or_endpoint_is_refused(missing, value):
    with pytest.raises(ValidationError, match="^Missing url, ticker, or endpoint$"):
        history_link({"url": "http://x", "ticker": "spx", "endpoint": "a", missing: value})


def test_the_longest_texts_and_the_most_strikes_are_taken():
    text = "\N{GRINNING FACE}" * 256
    data = {"strikes": [[1, 2]] * 20_000}
    found = gex_payload({**GOOD, "ticker": text, "endpoint": text, "received_at": text, "data": data})
    assert (found.ticker, found.endpoint, found.received_at, found.data) == (text, text, text, data)


def test_strikes_of_a_uw_payload_are_counted_under_its_own_name():
    payload = {"ticker": "SPX", "payload": {"strikes": [0] * 20_001}}
    assert problems(payload, "payload", "snapshot") == (
        "Validation error: payload: must not hold more than 20000 strikes"
    )
