"""What the page shows is in its address; rows, charts and spans by hand."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

import pytest
from kits.page import (
    PATHS,
    TOKEN,
    Window,
    alive,
    names,
    on_uvicorn,
    points,
    shown,
    until,
)
from kits.servers import Server
from playwright.sync_api import Page, expect

from metricsmw.adapters import dashboard


def fragment(url: str) -> dict[str, list[str]]:
    return parse_qs(urlsplit(url).fragment)


@on_uvicorn
def test_a_link_shows_the_same(anew: Server, window: Window) -> None:
    paths = PATHS[anew.name]
    for path in (paths.fast, "/items/1", "/items/1000", paths.slow):
        anew.get(path)
    page = window.open(anew)
    until(page, lambda: len(names(page)) == 3, "the table")
    assert fragment(page.url) == {}
    page.locator("th[data-key=time_share_pct] button").click()
    assert names(page)[0] == "/slow"  # which took longest
    page.get_by_role("button", name="Last hour").click()
    page.locator(".routes .name").nth(0).click()
    page.get_by_role("button", name=paths.item).click()
    page.get_by_label("Filter routes").fill("s")
    page.locator("#theme").click()
    expect(page.locator(".detail")).to_have_count(2)
    expect(page.locator(".detail .chart")).to_have_count(6)
    state = fragment(page.url)
    assert state == {
        "sort": ["-time_share_pct"],
        "span": ["60"],
        "open": ["GET /slow", f"GET {paths.item}"],
        "filter": ["s"],
        "theme": ["light"],
    }
    # Elsewhere, and signed in by the same link.
    page.evaluate("localStorage.clear()")
    page.context.clear_cookies()
    window.forgiven = lambda text: "status of 401" in text
    address = page.url
    page.goto("about:blank")
    page.goto(f"{address}&token={TOKEN}")
    alive(page)
    until(page, lambda: len(names(page)) == 3, "the table")
    assert fragment(page.url) == state
    expect(page.locator(".detail")).to_have_count(2)
    assert page.get_by_role("button", name="Last hour").get_attribute("aria-pressed") == "true"
    assert page.locator("th[data-key=time_share_pct]").get_attribute("aria-sort") == "descending"
    assert page.get_by_label("Filter routes").input_value() == "s"
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    # By hand, in the address.
    page.evaluate("location.hash = '#sort=route'")
    expect(page.locator(".detail")).to_have_count(0)
    assert names(page) == sorted(names(page))
    assert page.get_by_role("button", name="Live, 5 min").get_attribute("aria-pressed") == "true"


@on_uvicorn
def test_dragging_zooms(site: Server, window: Window) -> None:
    if dashboard.CHARTS not in dashboard.files():
        pytest.skip("built without charts")
    window.page.clock.install()
    page = window.open(site)
    alive(page)
    until(page, lambda: min(points(page)) >= 1, "a point")
    expect(page.locator("#unzoom")).to_be_hidden()
    drag(page)
    expect(page.locator("#unzoom")).to_be_visible()
    page.locator("#unzoom").click()
    expect(page.locator("#unzoom")).to_be_hidden()
    # What is zoomed to stays, as the history is loaded again from time to time.
    page.get_by_role("button", name="Last hour").click()
    drag(page)
    expect(page.locator("#unzoom")).to_be_visible()
    with page.expect_response("**/history?*by=route*"):
        page.clock.run_for(31_000)
    page.wait_for_timeout(200)
    expect(page.locator("#unzoom")).to_be_visible()


def drag(page: Page) -> None:
    """Drag over a part of the first chart."""
    over = page.locator("#charts .u-over").first
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.4, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, y, steps=4)
    page.mouse.up()


def test_a_paused_page_can_change_its_span(watched: Server, window: Window) -> None:
    watched.get("/ok")
    page = window.open(watched, signed_in=False)
    alive(page)
    until(page, lambda: (shown(page)["total_requests"] or 0) >= 1, "a request")
    traffic = page.locator("#group-traffic .of-window")
    expect(traffic).to_have_text("over the last 1 min")
    page.get_by_role("button", name="Pause").click()
    with page.expect_response("**/history?*") as answered:
        page.get_by_role("button", name="Last day").click()
    summary = answered.value.json()["summary"]
    until(page, lambda: min(points(page)) > 1, "the history")
    # Tiles are of the span, too.
    expect(traffic).to_have_text("over the last day")
    assert shown(page)["request_rate_rpm"] == summary["request_rate_rpm"]
    assert shown(page)["latency_ttfb_p95_ms"] is None
    assert page.get_attribute("body", "data-state") == "paused"
    page.get_by_role("button", name="Live, 1 min").click()
    expect(traffic).to_have_text("over the last 1 min")


@on_uvicorn
def test_on_a_phone_long_templates_are_cut_in_the_middle(site: Server, window: Window) -> None:
    long = "/" + "first/" * 20 + "{last}"
    row = {
        "method": "GET", "route": long, "requests": 3, "error_rate_pct": 0.0,
        **{f"latency_{name}_ms": 1234.56 for name in ("p50", "p95", "p99", "max")},
        **{f"latency_ttfb_{name}_ms": None for name in ("p50", "p95", "p99")},
        "statuses": {"2xx": 3}, "request_rate_rpm": 1.0, "time_share_pct": 100.0,
    }  # fmt: skip
    page = window.page
    page.set_viewport_size({"width": 360, "height": 800})
    page.route("**/stream", lambda route: route.abort())
    page.add_init_script("delete window.EventSource; window.EventSource = class { close() {}"
                         " addEventListener() {} };")  # fmt: skip
    page.clock.install()
    page.route("**/routes", lambda route: route.fulfill(json={"routes": [row]}))
    window.open(site)
    page.clock.run_for(7000)  # in which no event comes: it polls
    until(page, lambda: len(names(page)) == 1, "the table")
    (name,) = names(page)
    assert len(name) <= 48
    assert name.startswith("/first/")
    assert name.endswith("/{last}")
    assert "…" in name
    assert page.locator(".routes td[data-key=latency_p95_ms]").inner_text() == "1.235 s"
    page.set_viewport_size({"width": 1280, "height": 800})
    until(page, lambda: names(page) == [long], "all of it")
    head = page.locator(".routes thead th").first
    assert head.evaluate("e => getComputedStyle(e).position") == "sticky"
    page.unroute_all(behavior="ignoreErrors")


@on_uvicorn
def test_a_signed_out_page_stops_asking(site: Server, window: Window) -> None:
    window.forgiven = lambda text: "status of 401" in text
    page = window.page
    page.clock.install()
    asked = window.asked("current")
    window.open(site, signed_in=False)
    expect(page.locator("#signin")).to_be_visible()
    rested = page.locator("#signin-rested")
    for _ in range(400):
        if rested.is_visible():
            break
        page.clock.run_for(6500)
        page.wait_for_timeout(5)
    expect(rested).to_be_visible()
    count = len(asked)
    page.clock.run_for(120_000)
    assert len(asked) == count
    page.get_by_role("button", name="Look again").click()
    until(page, lambda: len(asked) == count + 1, "another look")
