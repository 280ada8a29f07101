"""The page's evidence: which worker is sick, and the shape of latency."""

from __future__ import annotations

import os
import re
import signal
from datetime import datetime, timezone

from kits.page import BEARER, PATH, Window, alive, on_gunicorn, until
from kits.servers import Server
from playwright.sync_api import expect


@on_gunicorn
def test_a_stopped_worker_is_marked_and_comes_first(anew: Server, window: Window) -> None:
    for _ in range(3):
        anew.get("/hello")
    page = window.open(anew)
    alive(page)
    rows = page.locator("#workers-table tbody tr")
    expect(rows).to_have_count(4)
    expect(page.locator("#workers-table .sick")).to_have_count(0)
    expect(page.locator("#workers-count")).to_have_text("4 processes")
    requests = page.locator("#workers-table [data-key=requests]")
    until(page, lambda: sum(map(int, requests.all_inner_texts())) == 3, "the requests")

    pid = anew.worker_pids()[-1]
    os.kill(pid, signal.SIGSTOP)
    try:
        sick = page.locator("#workers-table .sick")
        expect(sick).to_have_count(1)
        expect(rows.first.locator("th")).to_have_text(str(pid))
        expect(sick.locator("[data-key=state]")).to_have_text("stopped")
        expect(page.locator("#workers-count")).to_have_text("4 processes, 1 marked")
        notes = page.locator("#workers").get_by_role("definition")
        expect(notes).to_have_text(["It was stopped (SIGSTOP)."])
    finally:
        os.kill(pid, signal.SIGCONT)
    expect(page.locator("#workers-table .sick")).to_have_count(0)
    expect(notes).to_have_count(0)

    page.locator("#workers summary").click()
    asked = window.asked("workers")
    looks = window.asked("routes")
    until(page, lambda: looks, "a look at the tables")
    assert not asked
    assert anew.get(f"{PATH}/workers", BEARER).status == 200


@on_gunicorn
def test_the_shape_of_latency(anew: Server, window: Window) -> None:
    for path in ["/hello"] * 20 + ["/slow?ms=300", "/slow?ms=20"]:
        anew.get(path)
    page = window.open(anew)
    alive(page)
    heat = page.locator("#shape .heatmap")
    expect(heat).to_have_attribute("data-requests", "22")  # once their steps have ended
    summary = heat.locator("p.hidden")
    expect(summary).to_contain_text("22 requests in")
    expect(summary).to_contain_text("reset at")

    # By the keyboard, from the fullest cell of the latest step that has any.
    canvas = heat.locator("canvas")
    canvas.focus()
    cell = re.compile(r"[\d:]+, [\d.,]+ m?s to [\d.,]+ m?s: [1-9]\d* requests?")
    page.keyboard.press("ArrowLeft")
    expect(canvas).to_have_attribute("aria-valuetext", cell)
    expect(heat.locator(".at")).to_have_text(cell)
    page.keyboard.press("ArrowUp")
    expect(canvas).to_have_attribute("aria-valuetext", re.compile(" to "))

    # Axes have two labels at least, also where no two powers of ten lie in their span.
    module = page.get_attribute("script[type=module]", "src") or ""
    labels = page.evaluate(
        "async (at) => { const { roundLatencies: of } = await import(at);"
        " return [of(-40, 8, 2), of(-12, -8, 2)]; }",
        f"{anew.url}{PATH}/{module}".replace("dashboard.js", "canvas.js").replace("/./", "/"),
    )
    assert labels == [[1, 10, 100, 1000], [150, 200]]

    # What is drawn is there: more than the page's own colour.
    drawn = "c => new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size"
    assert canvas.evaluate(drawn) > 10


@on_gunicorn
def test_the_distribution_of_an_open_route(anew: Server, window: Window) -> None:
    for _ in range(10):
        anew.get("/hello")
    anew.get("/slow?ms=300")
    now = datetime.now(timezone.utc).isoformat()
    past = {"field": "latency_p95_ms", "since": now, "ended": None}
    alerts = [{**past, "type": f"OF{route}", "route": route} for route in ("/hello", "/slow")]
    window.page.route("**/alerts/history", lambda route: route.fulfill(json={"alerts": alerts}))
    page = window.open(anew)
    alive(page)
    page.get_by_role("button", name="GET /slow").click()
    figure = page.locator(".detail .distribution")
    expect(figure).to_have_attribute("data-requests", "1")
    row = page.locator(".routes > tbody > tr", has_text="/slow").first
    p95 = row.locator("[data-key=latency_p95_ms]")
    expect(figure.locator(".legend li").nth(1)).to_have_text(f"P95 {p95.inner_text()} ms")
    label = re.compile(r"1 request, from [\d.]+ ms to [\d.]+ ms\. .*P50 3\d\d")
    expect(figure.get_by_role("img")).to_have_attribute("aria-label", label)
    expect(page.locator(".detail .heatmap canvas")).to_be_visible()
    # It has the marks of its own alerts, and that of all requests those of each.
    expect(page.locator("#shape-place .heatmap p.hidden")).to_contain_text("OF/hello at")
    summary = page.locator(".detail .heatmap p.hidden")
    expect(summary).to_contain_text("OF/slow at")
    expect(summary).not_to_contain_text("OF/hello")
    page.get_by_role("button", name="GET /slow").click()
    expect(page.locator(".detail")).to_have_count(0)


@on_gunicorn
def test_the_slowest_requests_of_an_open_route(anew: Server, window: Window) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    sent = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "X-Request-ID": "<b>id</b>"}
    # Longer than any before: workers see a reset by another one within two steps.
    assert anew.get("/slow?ms=700", sent).status == 200
    page = window.open(anew)
    alive(page)
    page.get_by_role("button", name="GET /slow").click()
    slowest = page.locator(".detail .slowest")
    rows = slowest.locator("tbody tr")
    expect(rows).to_have_count(1)
    expect(rows.locator("[data-key=trace_id]")).to_have_text(trace)
    expect(rows.locator("[data-key=request_id]")).to_have_text("<b>id</b>")
    expect(rows.locator("[data-key=latency_ms]")).to_have_text(re.compile(r"[78]\d\d(\.\d+)? ms"))
    expect(rows.locator("[data-key=pid]")).to_have_text(re.compile(r"\d+"))
    expect(rows.locator("b")).to_have_count(0)
    expect(rows.locator("[data-key=path]")).to_have_count(0)

    # Of all routes, and of a cell of the heat map.
    heat, slowest = page.locator("#shape .heatmap"), page.locator("#shape .slowest")
    rows = slowest.locator("tbody tr")
    expect(rows.locator("[data-key=route]")).to_have_text(["GET /slow"])
    expect(heat).to_have_attribute("data-requests", "1")  # once its step has ended
    heat.locator("canvas").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    expect(slowest.locator(".title")).to_contain_text("Captured requests that ended")
    expect(rows).to_have_count(1)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(rows).to_have_count(0)
    slowest.get_by_role("button", name="All of the window").click()
    expect(slowest.locator(".title")).to_have_text("Slowest requests")
    expect(rows).to_have_count(1)
