"""The page in a real browser, on a real bridge: what was posted is seen, and client text stays text."""

import re
import time

import pytest
from playwright.sync_api import expect

from tests.helpers.support import RunningBridge

SOON = 2_000  # ms that a payload may take from its 202 to the page
PATIENCE = 20_000  # ms


def post(bridge: RunningBridge, ticker: str = "SPX", spot: float = 6812.25, **data) -> None:
    strikes = [[6700.0 + 5 * n, 1000.0 * (n - 20), 700.0 * (n - 20), [900.0 * (n - 20)] * 5] for n in range(41)]
    known = {"timestamp": time.time(), "spot": spot, "zero_gamma": 6800.0, "sum_gex_vol": -125000.0, "strikes": strikes}
    envelope = {"ticker": ticker, "kind": "snapshot", "endpoint": "gex_zero", "data": known | data}
    assert bridge.post("/gex", envelope) == 202


def field(page, name: str):
    return page.locator(f"[data-field={name}]")


def test_an_empty_bridge_says_what_to_do_and_shows_what_comes_within_two_seconds(bridge, page):
    page.goto(f"http://127.0.0.1:{bridge.port}/")
    expect(page.locator("#empty")).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#example")).to_contain_text(f"http://127.0.0.1:{bridge.port}/gex")
    post(bridge)
    expect(page.locator("[data-ticker=SPX]")).to_be_visible(timeout=SOON)
    expect(field(page, "spot")).to_have_text("6,812.25")
    post(bridge, spot=6820.5, major_pos_vol=6850.0)
    expect(field(page, "spot")).to_have_text("6,820.5", timeout=SOON)
    expect(field(page, "major_pos_vol")).to_have_text("6,850")
    expect(field(page, "net_gex_vol")).to_have_text("-125K")


def test_the_three_charts_are_drawn(bridge, page):
    post(bridge)
    page.goto(f"http://127.0.0.1:{bridge.port}/")
    for chart in ("#heat .heatmaplayer image", "#ladder .bars path", "#net .scatterlayer"):
        expect(page.locator(chart).first).to_be_attached(timeout=PATIENCE)


def test_tickers_are_chosen_by_mouse_and_by_key_and_stand_in_the_address(bridge, page):
    post(bridge, "NDX", 24_500.0)
    post(bridge, "SPX", 6_800.0)
    page.goto(f"http://127.0.0.1:{bridge.port}/?ticker=SPX")
    expect(field(page, "spot")).to_have_text("6,800", timeout=PATIENCE)
    page.keyboard.press("1")
    expect(field(page, "spot")).to_have_text("24,500")
    page.locator("[data-ticker=SPX]").click()
    expect(field(page, "spot")).to_have_text("6,800")
    expect(page).to_have_url(re.compile("ticker=SPX"))


def test_the_first_payload_alone_is_seen_on_the_heat_map(bridge, page):
    post(bridge, strikes=[[6800.0, 60228.8, -40374.4, [1.0] * 5]])
    page.goto(f"http://127.0.0.1:{bridge.port}/")
    picture = page.locator("#heat .heatmaplayer image")
    expect(picture).to_be_visible(timeout=PATIENCE)
    assert picture.bounding_box()["width"] > 100 and picture.bounding_box()["height"] > 5


HOSTILE = "<img src=x onerror=\"document.title='owned'\">"


def test_hostile_names_stay_text(bridge, page):
    post(bridge, HOSTILE)
    page.goto(f"http://127.0.0.1:{bridge.port}/")
    expect(page.locator("#tabs")).to_contain_text(HOSTILE.upper(), timeout=PATIENCE)
    expect(page.locator("#tabs img")).to_have_count(0)
    assert page.title() == "GEX bridge"


def test_the_page_says_when_the_bridge_is_away_and_goes_on_when_it_is_back(page, tmp_path):
    with RunningBridge(tmp_path / "data") as bridge:
        post(bridge)
        page.goto(f"http://127.0.0.1:{bridge.port}/")
        expect(field(page, "spot")).to_have_text("6,812.25", timeout=PATIENCE)
        port = bridge.port
    expect(page.locator("#away")).to_be_visible(timeout=PATIENCE)
    expect(field(page, "spot")).to_have_text("6,812.25")
    with RunningBridge(tmp_path / "data", "--port", str(port)) as again:
        post(again, spot=6900.0)
        expect(field(page, "spot")).to_have_text("6,900", timeout=PATIENCE)
        expect(page.locator("#away")).to_be_hidden(timeout=PATIENCE)
        # What the browser says of a bridge that is not there is no complaint about the page.
        page.complaints[:] = [line for line in page.complaints if "Failed to load resource" not in line]


@pytest.mark.parametrize("theme", ["light", "safe"])
def test_a_theme_is_kept_in_the_address_and_changes_the_ground(bridge, page, theme):
    post(bridge)
    page.goto(f"http://127.0.0.1:{bridge.port}/?theme={theme}")
    expect(page.locator("html")).to_have_attribute("data-theme", theme, timeout=PATIENCE)
    expect(page.locator("#theme")).to_have_value(theme)


def test_option_flow_is_on_the_tape_within_two_seconds_and_takes_filters(bridge, page):
    post(bridge)
    page.goto(f"http://127.0.0.1:{bridge.port}/")
    expect(page.locator("#noflow")).to_be_visible(timeout=PATIENCE)
    for premium in ("5000", "250000"):
        alert = {
            "ticker": "SPX",
            "type": "put",
            "strike": "6800",
            "expiry": "2026-12-18",
            "size": 7,
            "price": "5",
            "premium": premium,
        }
        assert bridge.post("/uw", {"topic": "flow_alerts", "payload": {**alert, "alert_rule": HOSTILE}}) == 200
    expect(page.locator("[data-flow]")).to_have_count(2, timeout=SOON)
    expect(page.locator("[data-flow]").first).to_contain_text("2026-12-18 6,800 P")
    expect(page.locator("#flow")).to_contain_text(HOSTILE)
    expect(page.locator("#flow img")).to_have_count(0)
    page.locator("#premium").select_option("100000")
    expect(page.locator("[data-flow]")).to_have_count(1)
    expect(page.locator("[data-flow]")).to_contain_text("250K")
