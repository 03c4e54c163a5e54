import json
import resource
import threading

import pytest

from data_pipeline import config
from data_pipeline.bridge import Bridge
from data_pipeline.files.views import Views
from data_pipeline.payloads import records
from data_pipeline.payloads.store import TickerSnapshot, TickerState
from data_pipeline.payloads.validation import ValidationError
from data_pipeline.repository.journal import NotDurable
from data_pipeline.repository.repository import Repository
from data_pipeline.repository.rows import Rows
from data_pipeline.repository.segments import Reader
from tests.helpers.support import PATIENCE, gex_payload

HEARTBEAT = {"status": "ignored", "reason": "heartbeat"}
RECEIVED = {"status": "received", "message": "Universal webhook processed"}


class Rig:
    """A bridge on a real journal; nothing takes the journal further."""

    def __init__(self, root, **parts):
        self.settings = config.load(None, root, {"DATA_DIR": "data"})
        self.repository = Repository(self.settings)
        self.repository.open()
        self.bridge = Bridge(self.repository, **parts)
        self.bridge.restore(self.settings.data_dir)

    def gex(self, payload):
        return self.bridge.gex(json.dumps(payload).encode(), payload)

    def universal(self, payload):
        return self.bridge.universal(json.dumps(payload).encode(), payload, "127.0.0.1", "agent")

    def link(self, n=1):
        return self.bridge.history_link({"url": f"http://x/{n}", "ticker": "spx", "endpoint": "gex_zero"})

    @property
    def records(self):
        reader, found = Reader(self.repository.folder, 0), []
        while part := reader.read(self.repository.journal.durable):
            found += part
        return [records.decode(record.payload) for record in found]

    def close(self):
        self.repository.journal.close()


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path)
    yield made
    made.close()


def loaded(state: TickerState) -> dict:
    """A state of the store with its data as objects."""
    kinds = ("majors", "maxchange", "snapshot")
    return {**state.__dict__, **{kind: part.load() if (part := getattr(state, kind)) else None for kind in kinds}}


def test_an_acknowledged_payload_is_in_the_journal_with_the_state_after_it(rig):
    first, second = gex_payload(), gex_payload(kind="majors", endpoint="", spot=1)
    assert rig.gex(first) == rig.gex(second) == {"status": "ok", "ticker": "SPX"}
    one, two = rig.records
    assert (one.data, one.endpoint, one.webhook) == (first["data"], "gex_zero", None)
    assert (two.data, two.endpoint, two.loaded.snapshot) == (second["data"], "", first["data"])
    assert two.state.last_endpoint == "gex_zero"
    assert two.state == rig.bridge.store.get("SPX")


def test_every_payload_of_one_ticker_at_once_has_its_own_values_in_its_own_record(rig):
    def work(n):
        for i in range(10):
            rig.gex(gex_payload(kind=("snapshot", "majors")[i % 2], spot=100 * n + i))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(record.data["spot"] for record in rig.records) == sorted(
        100 * n + i for n in range(8) for i in range(10)
    )
    state = TickerSnapshot("SPX")
    for record in rig.records:
        state = state.merged(record.kind, record.data, "gex_zero", "2025-11-09T15:00:00Z")
        assert record.loaded == state, "the journal's order is the order of the states"


def test_a_wrong_payload_leaves_no_trace(rig):
    with pytest.raises(ValidationError):
        rig.gex({"ticker": "SPX"})
    with pytest.raises(ValidationError):
        rig.universal({"topic": "gex", "ticker": "SPX"})
    assert rig.records == [] and rig.bridge.store.tickers() == []


def test_what_is_not_durable_never_happened(rig):
    rig.gex(gex_payload(spot=1))
    rig.link()
    before = rig.bridge.store.get("SPX")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limit[1]))
    try:
        for refused in (
            lambda: rig.gex(gex_payload(spot=2)),
            lambda: rig.gex(gex_payload("NDX")),
            rig.link,
            lambda: rig.universal({"topic": "any"}),
        ):
            with pytest.raises(NotDurable):
                refused()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert rig.bridge.store.tickers() == [before]
    assert rig.link()["id"] == 2
    assert len(rig.records) == 3


@pytest.mark.parametrize("key", ["eventType", "event_type", "event", "type"])
def test_a_heartbeat_is_not_stored_whatever_else_it_says(rig, key):
    assert rig.universal({key: "heartbeat", "topic": "gex"}) == HEARTBEAT
    assert rig.records == []


def test_only_the_first_event_name_that_is_not_empty_counts(rig):
    assert rig.universal({"eventType": "", "event": "heartbeat"}) == HEARTBEAT
    assert rig.universal({"eventType": "other", "event": "heartbeat"}) == RECEIVED


def test_an_acknowledgement_of_phoenix_is_not_stored(rig):
    reply = {"topic": "phoenix", "event": "phx_reply", "payload": {"status": "ok"}}
    assert rig.universal(reply) == {"status": "ignored", "reason": "heartbeat phoenix phx_reply"}
    kept = [
        {**reply, "payload": {"status": "error"}},
        {**reply, "payload": "ok"},
        {**reply, "topic": "other"},
        {**reply, "event": None, "type": "phx_reply"},
    ]
    for payload in kept:
        assert rig.universal(payload) == RECEIVED
    assert [payload for record in rig.records for payload in record.payloads] == kept


def test_gamma_exposure_as_a_webhook_is_both(rig):
    payload = {"topic": "gex", "ticker": "spx", "payload": {"timestamp": 1, "spot": 2}}
    assert rig.universal(payload) == RECEIVED
    (record,) = rig.records
    assert (record.kind, record.endpoint, record.webhook) == ("snapshot", "gex_zero", ("127.0.0.1", "agent"))
    assert (record.data, record.payload) == (payload["payload"], payload)


class Dashboard:
    def __init__(self, takes):
        self.takes = takes
        self.offered = []

    def offer(self, *link):
        self.offered.append(link)
        return self.takes


class Downloads:
    def __init__(self):
        self.submitted = []

    def submit(self, *link):
        self.submitted.append(link)


def test_links_get_ids_that_count_up_and_are_handed_on(tmp_path):
    downloads = Downloads()
    rig = Rig(tmp_path, dashboard=Dashboard(False), downloads=downloads)
    assert [rig.link(n) for n in (1, 2)] == [{"status": "queued", "id": n, "via": "local"} for n in (1, 2)]
    assert downloads.submitted == [(n, f"http://x/{n}", "SPX", "gex_zero") for n in (1, 2)]
    assert [(r.id, r.url, r.ticker) for r in rig.records] == [(1, "http://x/1", "SPX"), (2, "http://x/2", "SPX")]
    rig.close()


def test_a_link_that_the_dashboard_takes_is_not_stored(tmp_path):
    rig = Rig(tmp_path, dashboard=Dashboard(True))
    assert rig.link() == {"status": "queued", "via": "dashboard"}
    assert rig.bridge.dashboard.offered == [("http://x/1", "spx", "gex_zero")]
    assert rig.records == []
    rig.close()


def test_values_of_a_link_become_text(rig):
    rig.bridge.history_link({"url": ["u"], "ticker": 5, "feed": {"a": 1}})
    (record,) = rig.records
    assert (record.url, record.ticker, record.endpoint) == ("['u']", "5", "{'a': 1}")


def test_store_and_ids_come_back_from_the_journal(tmp_path):
    rig = Rig(tmp_path)
    rig.repository.journal.segment_bytes = 2000
    for n in range(10):
        rig.gex(gex_payload(("SPX", "NDX")[n % 2], kind=("snapshot", "majors", "maxchange")[n % 3], spot=n))
        rig.link(n)
    before = [loaded(state) for state in rig.bridge.store.tickers()]
    rig.close()
    again = Rig(tmp_path)
    assert [loaded(state) for state in again.bridge.store.tickers()] == before
    assert again.link()["id"] == 11
    again.close()


def test_store_comes_back_from_latest_json_with_what_it_had_not_seen_over_it(tmp_path):
    rig = Rig(tmp_path)
    views = Views(rig.settings.data_dir)
    for spot in (1, 2):
        views.update(
            TickerSnapshot("SPX", snapshot={"spot": spot}, last_endpoint="gex_one", last_payload_kind="snapshot"), ""
        )
        views.update(TickerSnapshot("OLD", majors={"spot": spot}), "")
    views.write()
    rig.close()
    rig = Rig(tmp_path)
    assert loaded(rig.bridge.store.get("OLD"))["majors"] == {"spot": 2}
    rig.gex(gex_payload(kind="majors", endpoint=None, spot=3))
    (record,) = rig.records
    assert record.loaded.snapshot == {"spot": 2} and record.state.last_endpoint == "gex_one"
    rig.close()
    again = Rig(tmp_path)
    assert loaded(again.bridge.store.get("SPX"))["majors"]["spot"] == 3
    assert loaded(again.bridge.store.get("OLD"))["majors"] == {"spot": 2}
    again.close()


FRAME = [None, "7", "option_trades", "new_msg", {"data": {"option_symbol": "XYZ260116C00118000", "price": "2.80"}}]
ACKNOWLEDGEMENT = ["1", "1", "option_trades", "phx_reply", {"status": "ok", "response": {}}]


def framed(rig, payload):
    assert rig.bridge.takes_frames(payload)
    return rig.universal(payload)


def test_frames_become_objects_and_all_of_a_request_are_one_record(tmp_path):
    rig = Rig(tmp_path, uw_frames=True)
    assert framed(rig, FRAME) == framed(rig, ["gex:SPY", {"price": "1"}]) == RECEIVED
    assert framed(rig, [FRAME, ACKNOWLEDGEMENT, ["news", {}]]) == RECEIVED
    one = {"topic": "option_trades", "event": "new_msg", "payload": FRAME[4]}
    assert [record.payloads for record in rig.records] == [
        [one],
        [{"topic": "gex:SPY", "payload": {"price": "1"}}],
        [one, {"topic": "news", "payload": {}}],
    ]
    made = Rows()
    for record in rig.records:
        made.add(record)
    assert len(made.webhooks) == 4 and [row[0] for row in made.flow] == [0, 2]
    rig.close()


def test_acknowledgements_and_heartbeats_in_frames_leave_nothing(tmp_path):
    rig = Rig(tmp_path, uw_frames=True)
    assert framed(rig, ACKNOWLEDGEMENT) == {"status": "ignored", "reason": "heartbeat phoenix phx_reply"}
    assert framed(rig, [[None, None, "phoenix", "heartbeat", {}]]) == HEARTBEAT
    with pytest.raises(ValidationError):
        framed(rig, [FRAME, ["gex", {"ticker": "SPX"}]])
    assert rig.records == []
    rig.close()


@pytest.mark.parametrize(
    "payload",
    [[], [1], ["a", "b"], FRAME[:4], [*FRAME, 1], [1, *FRAME[1:]], [FRAME, 5], [["news", {}]] * 1001, "text", None, 5],
)
def test_what_is_no_frame_is_not_taken(tmp_path, payload):
    rig = Rig(tmp_path, uw_frames=True)
    assert not rig.bridge.takes_frames(payload)
    assert rig.bridge.takes_frames([["news", {}]] * 1000)
    rig.close()


def test_without_the_setting_frames_are_refused_with_one_hint(rig, caplog):
    caplog.set_level("INFO")
    assert not any(rig.bridge.takes_frames(payload) for payload in (FRAME, [FRAME], FRAME))
    assert caplog.text.count("UW_FRAMES=1") == 1


def test_a_trade_without_a_symbol_is_not_told_to_discord(tmp_path):
    told = []

    class Told:
        send = staticmethod(told.append)

    rig = Rig(tmp_path, discord=Told)
    named = {"topic": "option_trades_super_algo", "alert": {"symbol": "SPX"}}
    for payload in ({"topic": "option_trades_super_algo", "payload": FRAME[4]}, named):
        assert rig.universal(payload) == RECEIVED
    assert told == [named] and len(rig.records) == 2
    rig.close()


def test_a_new_ticker_over_the_most_is_refused_unless_one_was_silent_for_a_day(tmp_path):
    rig = Rig(tmp_path, max_tickers=2)
    for ticker in ("A", "B", "A"):
        rig.gex(gex_payload(ticker=ticker))
    with pytest.raises(ValidationError, match="ticker: there are 2 already"):
        rig.gex(gex_payload(ticker="C"))
    rig.bridge.heard["A"] -= 86401
    rig.gex(gex_payload(ticker="C"))
    assert sorted(rig.bridge.store) == ["B", "C"] and rig.records[-1].replaces == "A"
    rig.close()
    again = Rig(tmp_path)
    assert sorted(again.bridge.store) == ["B", "C"], "after a restart too"
    again.close()
