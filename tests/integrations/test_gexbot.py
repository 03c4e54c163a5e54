import json
import logging
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from urllib.parse import parse_qs, urlsplit

import pytest

from data_pipeline.integrations import gexbot
from data_pipeline.integrations.gexbot import SYMBOLS, GexBotClient, GexBotError, Poller, StatusRefresher, status_pause
from data_pipeline.payloads import store
from data_pipeline.payloads.validation import gex_payload
from data_pipeline.repository.journal import NotDurable
from tests.helpers.support import eventually
from tests.helpers.web import Answer, Service, script

KEY = "gexbot_custom_s3cr3t/+&"
NOW = 1777492800
NOW_TEXT = "2026-04-29T20:00:00+00:00"
CHAIN = {
    "timestamp": NOW,
    "ticker": "SPX",
    "min_dte": 0,
    "sec_min_dte": 1,
    "spot": 7138.55,
    "zero_gamma": 7112.95,
    "major_pos_vol": 7135,
    "major_pos_oi": 7200,
    "major_neg_vol": 7100,
    "major_neg_oi": 6900,
    "strikes": [[6890, -228.01, -86.9, [-240.55, -243.15, -245.22, -221.27, -220.12]]],
    "sum_gex_vol": 1712585.519,
    "sum_gex_oi": 51521.105,
    "delta_risk_reversal": 0.118,
    "max_priors": [[7140, 170979.742]],
}
MAJORS = {
    "timestamp": NOW,
    "ticker": "SPX",
    "spot": 7138.55,
    "mpos_vol": 7135,
    "mpos_oi": 7200,
    "mneg_vol": 7100,
    "mneg_oi": 6900,
    "zero_gamma": 7112.95,
    "net_gex_vol": 1712585.519,
    "net_gex_oi": 51521.105,
}
SUMMARY = {
    "ticker": "SPX",
    "spot": 7138.55,
    "zero_gamma": 7112.95,
    "net_gex_oi": 51521.105,
    "net_gex_vol": 1712585.519,
    "major_pos_oi": 7200,
    "major_neg_oi": 6900,
    "major_pos_vol": 7135,
    "major_neg_vol": 7100,
    "timestamp": NOW_TEXT,
}
MAXCHANGE = {
    "timestamp": NOW,
    "ticker": "SPX",
    "current": [7140, 1.5],
    "one": [7135, -2.0],
    "five": [7135, 3],
    "ten": [7135, 4],
    "fifteen": [7135, 5],
    "thirty": [7135, 6],
}
WINDOWS = {name: MAXCHANGE[name] for name in store.WINDOWS}


def api(request):
    """As the API answers everyone."""
    path = urlsplit(request.path).path
    return Answer(MAXCHANGE if path.endswith("/maxchange") else CHAIN)


def is_now(text):
    return abs(datetime.now(UTC) - datetime.fromisoformat(text)) < timedelta(minutes=5)


@pytest.fixture
def asking():
    """asking(answer, time_limit): a service and a client of it."""
    made = []

    def make(answer=api, time_limit=5):
        service = Service(answer).__enter__()
        client = GexBotClient(KEY, service.url, time_limit)
        made.append((service, client))
        return service, client

    yield make
    for service, client in made:
        service.__exit__()
        client.close()


@pytest.fixture
def running():
    """running(part): started, and ended after the test."""
    parts = []

    def start(part):
        parts.append(part)
        part.start()
        return part

    yield start
    for part in parts:
        part.stop(20)


# -- the client


def test_the_key_goes_as_a_query_and_as_a_bearer_beside_user_agent_and_accept(asking):
    service, client = asking()
    client.chain("NQ_NDX"), client.maxchange("NQ_NDX")
    assert [urlsplit(r.path).path for r in service.requests] == [
        "/NQ_NDX/classic/zero",
        "/NQ_NDX/classic/zero/maxchange",
    ]
    for request in service.requests:
        assert request.method == "GET" and parse_qs(urlsplit(request.path).query) == {"key": [KEY]}
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        assert request.headers["Accept"] == "application/json" and request.headers["User-Agent"].startswith(
            "gex-bridge/"
        )


@pytest.mark.parametrize(
    "api_url, address",
    [
        ("https://api.gexbot.com", "https://api.gexbot.com/SPX/classic/zero/maxchange"),
        ("https://api.gexbot.com/", "https://api.gexbot.com/SPX/classic/zero/maxchange"),
        ("https://api.gex.bot/v2", "https://api.gex.bot/v2/SPX/classic/gex_zero/maxchange"),
        ("http://127.0.0.1:1/v2", "http://127.0.0.1:1/v2/SPX/classic/zero/maxchange"),
    ],
)
def test_each_api_has_its_own_name_for_the_category(api_url, address):
    assert GexBotClient("k", api_url).address("SPX", "/maxchange") == address


def test_a_symbol_cannot_leave_its_place_in_the_address():
    assert GexBotClient("k").address("../a?b#c") == "https://api.gexbot.com/..%2Fa%3Fb%23c/classic/zero"


older = {**CHAIN, "timestamp": NOW - 60, "spot": 1}


@pytest.mark.parametrize(
    "reply",
    [
        CHAIN,
        {"data": CHAIN},
        [CHAIN],
        [older, CHAIN],
        [CHAIN, older],
        {"data": [CHAIN, older]},
        [{**older, "timestamp": (NOW - 60) * 1000}, {**CHAIN, "timestamp": NOW * 1000}, {**older, "timestamp": None}],
        [
            {**older, "timestamp": "2026-04-29T19:59:59Z"},
            {**CHAIN, "timestamp": "2026-04-29T20:00:00"},
            "text",
            None,
            5,
        ],
        [older, {**CHAIN, "timestamp": str(NOW)}],
        [{**older, "timestamp": NOW}, CHAIN],
        {**CHAIN, "timestamp": "2026-04-29T16:00:00-04:00"},
        {**CHAIN, "error": None},
    ],
)
def test_a_chain_of_any_shape_gives_the_latest_summary(asking, reply):
    service, client = asking(script(Answer(reply)))
    found = client.chain("SPX")
    assert found == SUMMARY and list(found) == list(SUMMARY)


def test_majors_and_sums_may_have_their_other_names(asking):
    service, client = asking(script(Answer(MAJORS)))
    assert client.chain("SPX") == SUMMARY


def test_a_value_of_zero_is_a_value_and_a_missing_one_is_null(asking):
    service, client = asking(script(Answer({"spot": 0, "sum_gex_oi": None, "net_gex_oi": 0, "timestamp": NOW})))
    assert client.chain("SPX") == {
        **dict.fromkeys(SUMMARY),
        "ticker": "SPX",
        "spot": 0,
        "net_gex_oi": 0,
        "timestamp": NOW_TEXT,
    }


@pytest.mark.parametrize("timestamp", [None, "soon", -1e18, 10**400, True, [1], "nan", "inf", "0001-01-01T00:00+05:00"])
def test_a_chain_without_a_usable_time_has_the_time_of_now(asking, timestamp):
    service, client = asking(script(Answer({"spot": 1, "timestamp": timestamp})))
    assert is_now(client.chain("SPX")["timestamp"])


@pytest.mark.parametrize(
    "reply, windows",
    [
        (MAXCHANGE, WINDOWS),
        ([{**MAXCHANGE, "timestamp": NOW - 1, "one": [0, 1]}, MAXCHANGE], WINDOWS),
        ({"data": [MAXCHANGE]}, WINDOWS),
        ({"current": [1, 2], "one": None}, {**dict.fromkeys(store.WINDOWS, [0, 0]), "current": [1, 2]}),
        ({}, dict.fromkeys(store.WINDOWS, [0, 0])),
    ],
)
def test_maxchange_of_any_shape_gives_six_windows(asking, reply, windows):
    service, client = asking(script(Answer(reply)))
    assert client.maxchange("SPX") == windows


@pytest.mark.parametrize(
    "answer, text",
    [
        (Answer(b"<html>"), "the reply is not JSON"),
        (Answer(b'{"spot": 1'), "the reply is not JSON"),
        (Answer("text"), "the reply holds no object"),
        (Answer([]), "the reply holds no object"),
        (Answer({"data": [1]}), "the reply holds no object"),
        (Answer({}), "the reply has none of the fields of a chain"),
        (Answer({"error": "invalid key"}), "the reply is an error"),
        (Answer({}, 403), "HTTP 403"),
        (Answer({"spot": 1}, 204), "HTTP 204"),
        (Answer(CHAIN, manner="half"), "the connection closed before the reply was whole"),
        (Answer(manner="close"), "the connection closed before the reply was whole"),
        (Answer(manner="hang"), "no answer within 0.2 s"),
        (Answer(b"{", manner="drip"), "no answer within 0.2 s"),
    ],
)
def test_a_reply_that_is_of_no_use_is_an_error_that_says_why(asking, answer, text):
    service, client = asking(script(answer), time_limit=0.2)
    with pytest.raises(GexBotError) as caught:
        client.chain("SPX")
    assert str(caught.value) == text


def test_500_is_tried_twice_more(asking):
    service, client = asking(script(Answer(b"", 500), Answer(b"", 503, {"Retry-After": "60"}), Answer(CHAIN)))
    assert client.chain("SPX") == SUMMARY and len(service.requests) == 3
    service, client = asking(script(Answer(b"", 502)))
    with pytest.raises(GexBotError, match="^HTTP 502$"):
        client.chain("SPX")
    assert len(service.requests) == 3


def test_429_is_not_tried_again_and_names_the_pause(asking):
    service, client = asking(script(Answer(b"", 429, {"Retry-After": "30"})))
    with pytest.raises(GexBotError) as caught:
        client.chain("SPX")
    assert caught.value.retry_after == 30 and len(service.requests) == 1


def test_the_key_is_in_no_log_line_and_no_exception(asking, caplog):
    caplog.set_level(logging.DEBUG)
    answers = [
        Answer(manner="close"),
        Answer(manner="hang"),
        Answer(b"", 500),
        Answer(b"", 302, {"Location": "/a"}),
        Answer(b"x"),
    ]
    for answer in answers:
        service, client = asking(script(answer), time_limit=0.2)
        with pytest.raises(GexBotError) as caught:
            client.chain("SPX")
        problem, chain = caught.value, []
        while problem is not None:
            chain.append(repr(problem))
            problem = problem.__cause__ or problem.__context__
        assert "s3cr3t" not in "".join(chain)
    assert "s3cr3t" not in caplog.text


# -- the poller


def test_every_symbol_is_delivered_as_two_payloads(asking, running):
    service, client = asking()
    got = []
    poller = running(Poller(client, 60, got.append))
    eventually(lambda: len(got) == 12)
    for symbol, chain, change in zip(SYMBOLS, got[::2], got[1::2]):
        for payload in (chain, change):
            assert is_now(payload.pop("received_at"))
        assert chain == {
            "topic": "gex",
            "ticker": symbol,
            "endpoint": "gex_zero",
            "kind": "snapshot",
            "payload": {**SUMMARY, "ticker": symbol},
        }
        assert change == {
            "topic": "gex",
            "ticker": symbol,
            "endpoint": "gex_maxchange",
            "kind": "maxchange",
            "payload": WINDOWS,
        }
    assert (
        poller.stop(5) and len(got) == 12 and poller.stats() == {"done": 12, "failed": 0, "not_stored": 0, "failing": 0}
    )


def test_what_is_delivered_passes_as_a_uw_payload(asking, running):
    service, client = asking()
    got = []
    running(Poller(client, 60, got.append, ("SPX",)))
    eventually(lambda: len(got) == 2)
    for payload, data in zip(got, (SUMMARY, WINDOWS)):
        taken = gex_payload(payload, "payload", "snapshot", "gex_zero")
        assert taken.ticker == "SPX" and taken.kind == payload["kind"] and taken.endpoint == payload["endpoint"]
        assert taken.received_at == payload["received_at"] and json.loads(json.dumps(payload))["payload"] == data


def test_it_polls_again_after_the_interval(asking, running):
    service, client = asking()
    got = []
    running(Poller(client, 0.05, got.append, ("SPX",)))
    requests = [r for r in service.wait_for(8) if "maxchange" not in r.path]
    assert all(b.at - a.at >= 0.05 for a, b in zip(requests, requests[1:]))


def test_one_symbols_failure_never_stops_the_others(asking, running, caplog):
    broken = {
        "/A/": Answer(manner="hang"),
        "/B/": Answer(b"<html>"),
        "/C/": Answer(manner="half"),
        "/D/": Answer(b"", 404),
    }
    service, client = asking(
        lambda r: next((a for part, a in broken.items() if part in r.path), None) or api(r), time_limit=0.1
    )
    got = []
    poller = running(Poller(client, 0.05, got.append, ("A", "B", "C", "D", "SPY")))
    eventually(lambda: len(got) >= 6)
    assert {payload["ticker"] for payload in got} == {"SPY"}
    assert poller.stats()["failing"] == 8
    assert "A chain failed (no answer within 0.1 s)" in caplog.text and "D maxchange failed (HTTP 404)" in caplog.text
    assert "s3cr3t" not in caplog.text


def test_pauses_grow_after_failures_and_come_back(asking, running, caplog):
    caplog.set_level(logging.INFO)
    bad = Answer(b"no", 404)
    service, client = asking(lambda r, left=[bad] * 4: left.pop() if left and "max" not in r.path else api(r))
    got = []
    poller = running(Poller(client, 0.05, got.append, ("SPX",)))
    eventually(lambda: sum(1 for payload in got if payload["kind"] == "snapshot") >= 3)
    times = [r.at for r in service.requests if "max" not in r.path][:7]
    pauses = [b - a for a, b in zip(times, times[1:])]
    for pause, least in zip(pauses, (0.1, 0.2, 0.4, 0.8, 0.05)):
        assert pause >= least
    assert pauses[4] < pauses[3], "back to the interval"
    assert "SPX chain is back after 4 failures" in caplog.text and "next try in 0.8 s" in caplog.text
    changes = [payload for payload in got if payload["kind"] == "maxchange"]
    assert len(changes) > 10, "what does not fail keeps its interval"
    assert poller.stats()["failing"] == 0


def test_pauses_end_at_the_longest_and_an_interval_that_is_longer_stays(asking):
    service, client = asking()
    for interval, after_many in ((60, gexbot.LONGEST_PAUSE), (3600, 3600)):
        poller = Poller(client, interval, print, ("SPX",))
        poller._failures = {"SPX chain": 10**6}
        assert poller._pause_after("SPX chain") == after_many


def test_a_429_that_names_a_pause_holds_every_symbol(asking, running):
    service, client = asking(lambda r, left=[Answer(b"", 429, {"Retry-After": "0.5"})]: left.pop() if left else api(r))
    running(Poller(client, 0.01, lambda payload: None, ("A", "B")))
    first, second = service.wait_for(2)[:2]
    assert second.at - first.at >= 0.5


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), NotDurable("journal: No space left")])
def test_what_cannot_be_stored_is_one_line_and_no_failure_of_the_api(asking, running, caplog, problem):
    service, client = asking()
    got, room = [], threading.Event()

    def deliver(payload):
        got.append(payload)
        if not room.is_set():
            raise problem

    poller = running(Poller(client, 0.05, deliver, ("A", "B")))
    eventually(lambda: len(got) >= 12)
    assert caplog.text.count("cannot be stored") == 1 and "Traceback" not in caplog.text
    stats = poller.stats()
    assert stats["failed"] == stats["failing"] == 0 and stats["not_stored"] >= 11
    room.set()
    stored = poller.stats()["not_stored"]
    eventually(lambda: len(got) >= 20)
    assert poller.stats()["not_stored"] <= stored + 1


def test_each_category_has_endpoints_of_its_own_and_zero_the_original_s(asking, running):
    service, client = asking()
    got = []
    running(Poller(client, 60, got.append, ("SPX",), ("zero", "one", "full")))
    eventually(lambda: len(got) == 6)
    assert [payload["endpoint"] for payload in got] == [
        "gex_zero",
        "gex_maxchange",
        "gex_one",
        "gex_one_maxchange",
        "gex_full",
        "gex_full_maxchange",
    ]
    paths = [request.path.partition("?")[0] for request in service.requests]
    assert [path for path in paths if "max" not in path] == [f"/SPX/classic/{name}" for name in ("zero", "one", "full")]


def test_a_whole_chain_keeps_its_strikes(asking):
    chain = {"spot": 1, "strikes": [[5000, 1, 2, [1, 2, 3, 4, 5]]], "max_priors": [[1, 2]], "min_dte": 0, "other": 1}
    service, client = asking(lambda r: Answer(json.dumps(chain).encode()))
    more = {name: chain[name] for name in ("strikes", "max_priors", "min_dte")}
    assert client.chain("SPX", whole=True).items() >= more.items()
    assert not more.keys() & client.chain("SPX").keys()


@pytest.mark.parametrize(
    "moment, open_",
    [
        ("2025-11-10T09:29:59-05:00", False),
        ("2025-11-10T14:30:00+00:00", True),
        ("2025-11-10T15:59:59-05:00", True),
        ("2025-11-10T16:00:00-05:00", False),
        ("2025-07-10T13:30:00+00:00", True),
        ("2025-11-09T12:00:00-05:00", False),
    ],
)
def test_with_rth_it_polls_in_regular_hours_only(asking, running, moment, open_):
    service, client = asking()
    got, asked = [], []
    now = datetime.fromisoformat(moment)
    running(Poller(client, 0.01, got.append, ("SPX",), rth=True, now=lambda: asked.append(1) or now))
    eventually(lambda: len(asked) > 5 and len(got) >= 4 * open_)
    assert bool(got) is open_


def test_a_delivery_that_fails_is_logged_and_the_next_one_comes(asking, running, caplog):
    service, client = asking()
    got = []

    def deliver(payload):
        got.append(payload)
        raise RuntimeError("the disk is full")

    running(Poller(client, 60, deliver, ("A", "B")))
    eventually(lambda: len(got) == 4)
    eventually(lambda: caplog.text.count("RuntimeError: the disk is full") == 1)


def test_stop_meets_its_deadline_while_a_request_hangs_and_nothing_is_delivered_after(asking, running):
    came, go = threading.Event(), threading.Event()

    def answer(request):
        came.set()
        go.wait(20)
        return api(request)

    service, client = asking(answer, time_limit=30)
    got = []
    poller = running(Poller(client, 60, got.append))
    assert came.wait(10)
    began = time.monotonic()
    assert poller.stop(0.2) is False
    assert time.monotonic() - began < 10
    go.set()
    poller._thread.join(10)
    assert not poller._thread.is_alive() and got == [] and poller.stop(0) is True


def test_without_a_key_there_is_a_warning_and_no_thread(caplog):
    poller = Poller(GexBotClient(""), 60, print)
    poller.start()
    assert "GEXBOT_API_KEY not set; GEX polling disabled" in caplog.text
    assert "GEXBotPoller" not in [t.name for t in threading.enumerate()] and poller.stop(0) is True


# -- the status files


@pytest.mark.parametrize(
    "clock, pause",
    [("00:00", 60), ("09:29:59", 60), ("09:30", 1), ("12:00", 1), ("15:59:59", 1), ("16:00", 60), ("17:59:59", 60)]
    + [("18:00", 300), ("19:00", 300), ("20:15:59", 300), ("20:16", 60), ("23:59", 60)],
)
def test_the_pause_of_the_status_files_goes_by_the_local_time(clock, pause):
    assert status_pause(datetime.fromisoformat(f"2026-01-05T{clock}")) == pause


def test_status_files_hold_the_reply_with_the_time_it_was_fetched(asking, running, tmp_path):
    service, client = asking(script(Answer([older, CHAIN])))
    noon = datetime(2026, 1, 5, 12, 0, tzinfo=timezone(timedelta(hours=-5)))
    refresher = running(StatusRefresher(client, ("NQ_NDX", "../Up"), tmp_path / "gex", lambda: noon))
    eventually(lambda: refresher.stats()["done"] == 2)
    assert refresher.stop(5)
    assert sorted(p.name for p in (tmp_path / "gex").iterdir()) == ["..%2Fup_gex_status.json", "nq_ndx_gex_status.json"]
    status = json.loads((tmp_path / "gex" / "nq_ndx_gex_status.json").read_text())
    assert status == {**CHAIN, "timestamp": "2026-01-05T17:00:00+00:00"} and list(status) == list(CHAIN)
    assert [urlsplit(r.path).path for r in service.requests] == ["/NQ_NDX/classic/zero", "/..%2FUp/classic/zero"]


def test_a_status_file_stays_as_it_was_when_the_api_fails(asking, running, tmp_path):
    path = tmp_path / "spx_gex_status.json"
    path.write_text("old")
    service, client = asking(script(Answer(b"<html>")))
    refresher = running(StatusRefresher(client, ("SPX",), tmp_path))
    eventually(lambda: refresher.stats()["failed"] == 1)
    assert path.read_text() == "old"
