"""A real browser, found by path.  Where none is installed these tests are skipped; in CI that is a failure."""

import os
import shutil

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# As root, as CI runs, Chromium has no sandbox; and it asks nobody for updates.
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip


@pytest.fixture(scope="module")  # the browser's driver is a child of this process and runs an event loop in it
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        message = f"no browser is installed (looked for {', '.join(BROWSERS)})"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        yield running
        running.close()


@pytest.fixture
def page(browser):
    """A page of which every complaint and every request to another host is a failure."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    opened = context.new_page()
    complaints, foreign = [], []
    opened.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    opened.on("pageerror", lambda problem: complaints.append(str(problem)))
    opened.on("request", lambda asked: asked.url.startswith(("http:", "https:", "ws"))
              and not asked.url.startswith("http://127.0.0.1:") and foreign.append(asked.url))  # fmt: skip
    opened.complaints = complaints
    yield opened
    context.close()
    assert foreign == []
    assert complaints == []
