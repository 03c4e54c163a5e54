"""The read API: a real bridge, asked over HTTP, and its OpenAPI page held against its answers."""

import csv
import gzip
import http.client
import io
import json
import time

import jsonschema
import pytest

from data_pipeline.http_server.api import ROUTES
from tests.helpers.support import RunningBridge

NOW = int(time.time())
STRIKES = [[6790.0, -5.5, 1.0, [1, 2, 3, 4, 5]], [6800.0, 7.25, None, []]]


@pytest.fixture(scope="module")
def fed(tmp_path_factory):
    with RunningBridge(tmp_path_factory.mktemp("api") / "data") as bridge:
        for second in range(3):
            data = {"timestamp": NOW + second, "spot": 6800.5 + second, "zero_gamma": 6795.0, "strikes": STRIKES}
            assert (
                bridge.post("/gex", {"ticker": "spx", "kind": "snapshot", "endpoint": "gex_zero", "data": data}) == 202
            )
        majors = {"timestamp": NOW + 2, "mpos_vol": 6850.0}
        assert bridge.post("/gex", {"ticker": "spx", "kind": "majors", "endpoint": "gex_zero", "data": majors}) == 202
        named = {"ticker": "=1+1", "kind": "snapshot", "endpoint": "e", "data": {"timestamp": NOW, "spot": 1}}
        assert bridge.post("/gex", named) == 202
        topic = {"topic": "gex", "ticker": "NDX", "payload": {"timestamp": NOW, "spot": 24000}}
        assert bridge.post("/uw", topic) == 200
        for premium, side in ((5000, "ask_side"), (90_000, "bid_side")):
            alert = {
                "ticker": "SPX",
                "type": "call",
                "strike": "6800",
                "expiry": "2026-12-18",
                "size": 10,
                "price": "5",
            }
            alert |= {"premium": str(premium), "tags": [side], "executed_at": 1000 * NOW}
            assert bridge.post("/uw", {"topic": "flow_alerts", "payload": alert}) == 200
        yield bridge


def get(bridge, path: str, method: str = "GET", **headers: str) -> tuple[int, dict, bytes]:
    client = http.client.HTTPConnection("127.0.0.1", bridge.port, timeout=30)
    client.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = client.getresponse()
    return answer.status, dict(answer.headers), answer.read()


def ask(bridge, path: str):
    status, _, body = get(bridge, path)
    assert status == 200, body
    return json.loads(body)


SPX = "ticker=spx&endpoint=gex_zero"


def test_every_series_stands_there_with_its_last_values_and_its_age(fed):
    rows = {row["ticker"]: row for row in ask(fed, "/api/state")}
    assert set(rows) == {"SPX", "NDX", "=1+1"}
    assert (rows["SPX"]["spot"], rows["SPX"]["major_pos_vol"], rows["SPX"]["updated"]) == (6802.5, 6850.0, NOW + 2)
    assert rows["SPX"]["age"] is not None
    assert {"ticker": "NDX", "endpoint": "gex_zero"} in ask(fed, "/api/tickers")


def test_the_ladder_has_volume_open_interest_and_priors(fed):
    found = ask(fed, f"/api/strikes?{SPX}")
    assert found["time"] == NOW + 2
    assert found["strikes"] == [
        {"strike": 6790.0, "volume": -5.5, "oi": 1.0, "priors": [1, 2, 3, 4, 5]},
        {"strike": 6800.0, "volume": 7.25, "oi": None, "priors": [None] * 5},
    ]
    at = ask(fed, f"/api/strikes?{SPX}&at={NOW + 100}")
    assert [row["strike"] for row in at["strikes"]] == [6790.0, 6800.0]


def test_the_timeline_takes_start_inclusive_end_exclusive_and_since(fed):
    def times(more: str) -> list[float]:
        return [row["time"] - NOW for row in ask(fed, f"/api/timeline?{SPX}{more}")["rows"]]

    assert times("") == [0, 1, 2]
    assert times(f"&start={NOW + 1}&end={NOW + 2}") == [1]
    assert times(f"&since={NOW + 1}") == [2]
    assert times("&limit=1") == [2]
    assert len(times("&step=86400")) <= 2


def test_the_heat_map_has_strikes_by_time_of_either_measure(fed):
    found = ask(fed, f"/api/heatmap?{SPX}&step=3600&measure=oi")
    assert found["strikes"] == [6790.0, 6800.0] and found["values"][-1] == [1.0, None]


def test_the_tape_has_the_newest_first_and_takes_filters(fed):
    def premiums(query: str) -> list[float]:
        return [row["premium"] for row in ask(fed, f"/api/flow?{query}")]

    assert premiums("") == [90_000, 5000]
    assert premiums("min_premium=6000") == premiums("side=bid") == premiums("limit=1") == [90_000]
    assert premiums("symbol=ndx") == premiums(f"since={NOW}") == []
    (row, _) = ask(fed, "/api/flow?symbol=spx")
    assert (row["time"], row["option_type"], row["strike"], row["expiration"]) == (NOW, "C", 6800.0, "2026-12-18")


def test_csv_has_the_same_rows_and_no_formula_of_a_client(fed):
    status, headers, body = get(fed, f"/api/timeline.csv?{SPX}")
    rows = list(csv.DictReader(io.StringIO(body.decode())))
    assert (status, headers["Content-Type"]) == (200, "text/csv; charset=utf-8")
    assert [float(row["spot"]) for row in rows] == [6800.5, 6801.5, 6802.5]
    tickers = [row["ticker"] for row in csv.DictReader(io.StringIO(get(fed, "/api/tickers.csv")[2].decode()))]
    assert "'=1+1" in tickers


def test_a_poll_that_has_the_newest_gets_304_until_something_came(fed):
    path = f"/api/strikes?{SPX}"
    _, headers, _ = get(fed, path)
    status, again, body = get(fed, path, If_None_Match=headers["ETag"])
    assert (status, body, again["ETag"]) == (304, b"", headers["ETag"])
    assert get(fed, path + "&at=1", If_None_Match=headers["ETag"])[0] == 200


def test_gzip_comes_to_who_takes_it_and_to_nobody_else(fed):
    plain, packed = get(fed, "/api/openapi.json"), get(fed, "/api/openapi.json", Accept_Encoding="br, gzip")
    assert "Content-Encoding" not in plain[1] and packed[1]["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed[2]) == plain[2]


@pytest.mark.parametrize(
    ("path", "status", "parameter"),
    [
        ("/api/strikes?endpoint=gex_zero", 400, "ticker"),
        ("/api/strikes?ticker=SPX", 400, "endpoint"),
        (f"/api/strikes?{SPX}&at=soon", 400, "at"),
        (f"/api/timeline?{SPX}&limit=0", 400, "limit"),
        (f"/api/timeline?{SPX}&limit=10001", 400, "limit"),
        (f"/api/timeline?{SPX}&limit=" + "9" * 500, 400, "limit"),
        (f"/api/timeline?{SPX}&step=-1", 400, "step"),
        (f"/api/heatmap?{SPX}&step=90", 400, "step"),
        (f"/api/heatmap?{SPX}&measure=charm", 400, "measure"),
        ("/api/flow?side=up", 400, "side"),
        ("/api/flow?min_premium=nan", 400, "min_premium"),
        (f"/api/timeline?{SPX}&day=yesterday", 400, "day"),
        (f"/api/timeline?{SPX}&day=2020-02-30", 400, "day"),
        (f"/api/timeline?{SPX}&day=2020-02-03", 404, "day"),
        (f"/api/strikes?{SPX}&ticker=NDX", 400, "ticker"),
        (f"/api/strikes?{SPX}&colour=red", 400, "colour"),
        ("/api/strikes?" + "x=" + "y" * 3000, 400, None),
        ("/api/strikes?ticker=NOBODY&endpoint=gex_zero", 404, "ticker"),
        ("/api/nothing", 404, None),
        ("/api/state.xlsx", 404, None),
        ("/api/state.", 404, None),
        ("/api/../status", 404, None),
    ],
)
def test_a_question_that_does_not_fit_names_its_parameter(fed, path, status, parameter):
    found, headers, body = get(fed, path)
    assert (found, headers["Content-Type"]) == (status, "application/json")
    assert json.loads(body)["parameter"] == parameter and json.loads(body)["error"]


def test_a_foreign_page_may_neither_ask_nor_read(fed):
    for path in ("/", "/page/page.js", "/api/state"):
        status, headers, _ = get(fed, path, Host="evil.example")
        assert status == 421
        assert "Access-Control-Allow-Origin" not in get(fed, path, Origin="http://evil.example")[1]


def test_the_openapi_page_names_every_route_and_every_answer_fits_it(fed):
    page = ask(fed, "/api/openapi.json")
    assert set(page["paths"]) == {f"/api/{name}" for name in ROUTES}
    for name, route in ROUTES.items():
        needed = {"ticker": "SPX", "endpoint": "gex_zero"}
        given = "&".join(f"{one.name}={needed[one.name]}" for one in route.parameters if one.required)
        schema = page["paths"][f"/api/{name}"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(ask(fed, f"/api/{name}?{given}"), schema)
        problem = page["paths"][f"/api/{name}"]["get"]["responses"]["400"]["content"]["application/json"]["schema"]
        jsonschema.validate(json.loads(get(fed, f"/api/{name}?wrong=1")[2]), problem)
