import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.payloads.records import Gex, Link, RecordError, Webhook, decode
from data_pipeline.payloads.store import KINDS, Part, TickerState
from tests.helpers import strategies

AT = "2025-11-09T15:16:17.123456"

# Strikes that a client wrote to look like something else, too.
data = strategies.some_of(strikes=strategies.values | st.lists(st.lists(strategies.numbers, max_size=4), max_size=4))
bodies = data.map(lambda data: Part(json.dumps({"data": data}, ensure_ascii=True).encode(), "data"))
parts = bodies | data.map(Part.of)


@st.composite
def gex_records(draw):
    """As the bridge makes them: the payload's own kind is among the parts."""
    state = TickerState(draw(strategies.texts))
    for _ in range(draw(st.integers(1, 4))):
        endpoint = draw(st.none() | strategies.texts)
        state = state.merged(draw(st.sampled_from(KINDS)), draw(parts), endpoint, draw(st.none() | strategies.texts))
    webhook = draw(st.none() | st.tuples(strategies.texts, strategies.texts))
    return Gex(AT, endpoint, state, webhook)


webhooks = st.builds(
    Webhook, st.just(AT), strategies.texts, strategies.texts, strategies.objects.map(lambda o: json.dumps(o).encode())
)
links = st.builds(Link, st.just(AT), st.integers(1, 2**63 - 1), strategies.texts, strategies.texts, strategies.texts)


@given(gex_records() | webhooks | links)
def test_a_record_comes_back_as_it_was(record):
    written = record.encode()
    written.decode("utf-8")
    assert decode(written) == record


@given(gex_records())
def test_a_state_is_complete_in_its_record(record):
    back = decode(record.encode())
    for kind in KINDS:
        part = getattr(record.state, kind)
        assert json.dumps(getattr(back.loaded, kind)) == json.dumps(part.load() if part else None)
    assert back.loaded.document()
    assert back.strikes_json == json.dumps((back.loaded.snapshot or {}).get("strikes"))
    assert json.dumps(back.data) == back.data_json == json.dumps(getattr(record.state, record.kind).load())


def test_a_body_is_kept_byte_for_byte():
    raw = b'{ "ticker":"spx",\n\t"data" : {"a":1.50, "a":2, "\xc3\xa9": "\\ud800"} }'
    record = Gex(AT, None, TickerState("SPX").merged("majors", Part(raw, "data"), None, None))
    assert decode(record.encode()).state.majors.raw == raw
    assert record.encode().endswith(raw)
    webhook = Webhook(AT, "127.0.0.1", "agent", raw)
    assert decode(webhook.encode()).raw == raw


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\n",
        b"text",
        b"null",
        b"[]",
        b"{}",
        b"5\n",
        b"\xff\xfe",
        b'{"type": "new"}',
        b'{"type": "uw"}\n{}',
        b'{"type": "uw", "at": "", "client": "", "agent": "", "more": 1}\n{}',
        b'{"type": "link", "at": ""}',
        b'{"type": "gex", "at": ""}',
        b'{"type": "gex", "parts": [["majors", "data"]]}',
        b'{"type": "gex", "parts": 5}',
        b'{"type": ["uw"]}',
    ],
)
def test_what_is_no_record_is_refused_and_nothing_else_is_raised(payload):
    with pytest.raises(RecordError):
        decode(payload)


@given(gex_records() | links, st.data())
def test_a_record_cut_short_is_refused_or_another_record_but_never_an_accident(record, data):
    written = record.encode()
    cut = data.draw(st.integers(0, len(written)))
    try:
        decode(written[:cut])
    except RecordError:
        pass
