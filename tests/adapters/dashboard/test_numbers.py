"""The page shows the numbers, the alerts and the table of the API."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest
from kits.page import (
    BEARER,
    COLUMNS,
    FIELDS,
    NONE,
    PATH,
    PATHS,
    Window,
    alive,
    current,
    faults,
    happened,
    names,
    on_gunicorn,
    parsed,
    points,
    shown,
    told,
    until,
)
from kits.servers import Server, wait_until
from playwright.sync_api import (
    Route,
    expect,
)

from metricsmw import MetricsSnapshot
from metricsmw.adapters import dashboard


def test_the_numbers_are_those_of_the_api(site: Server, window: Window) -> None:
    page = window.open(site)
    alive(page)
    paths = PATHS[site.name]
    for number in range(40):
        site.get((paths.fast, "/items/1", "/items/1000", "/fail")[number % 4])
    site.request(*paths.login)
    wanted = {"active_users": 1}
    busy: threading.Thread | None = None
    if site.name == "uvicorn":
        page.evaluate("window.socket = new WebSocket(`ws://${location.host}/ws`)")
        wanted["websocket_connections"] = 1
    else:
        busy = threading.Thread(target=site.get, args=("/slow?ms=6000",))
        busy.start()
        wanted["requests_in_flight"] = 1
    seen: dict[str, Any] = {}

    def equal() -> bool:
        api = current(site)
        now = shown(page)
        seen.update(api=api, page=now)
        return (
            all(now[name] == told(name, api[name]) for name in FIELDS)
            and api["total_requests"] >= 40
            and wanted.items() <= api.items()
        )

    until(page, equal, "the page to show what the API says")
    if busy is not None:
        busy.join()
    expected = {*MetricsSnapshot.__dataclass_fields__, "latency_ttfb_p95_ms"} - {"timestamp"}
    until(page, lambda: shown(page)["latency_ttfb_p95_ms"] is not None, "the first bytes")
    assert set(shown(page)) == expected
    expect(page.locator("#group-latency .of-window")).to_have_text("over the last 5 min")
    expect(page.locator("#banners .banner")).to_have_count(0)
    assert all(isinstance(value, float) for value in shown(page).values())
    assert shown(page)["memory_usage_mb"] == pytest.approx(
        current(site)["memory_usage_mb"], rel=0.2
    )
    expect(page.locator("#empty")).to_be_hidden()
    # Under ASGI by a stream, under WSGI by polling; nobody told it.
    expected = "polling" if site.name == "gunicorn" else "live"
    assert page.get_attribute("body", "data-state") == expected
    # Only the demo has rules.
    expect(page.locator("#alerts")).to_be_visible(visible=site.name == "uvicorn")


def test_the_table_is_that_of_the_api(site: Server, window: Window) -> None:
    for method, path in (
        *(("GET", path) for path in (PATHS[site.name].fast, "/items/1", "/fail")),
        ("POST", PATHS[site.name].fast),  # a row that has its route in common with another
    ):
        site.request(method, path)
    page = window.open(site)
    seen: list[Any] = []

    def equal() -> bool:
        rows = site.get(f"{PATH}/routes", BEARER).json()["routes"]
        now = page.eval_on_selector_all(
            ".routes > tbody > tr",
            "rows => rows.map(row => [...row.children].map(cell => cell.textContent))",
        )
        seen[:] = [rows, now]
        return [[row[0], *map(parsed, row[1:])] for row in now] == [
            [row["method"] + row["route"], *(told(name, row[name]) for name in COLUMNS)]
            for row in rows
        ]

    until(page, equal, "the table to show what the API says")


def test_charts_grow(site: Server, window: Window) -> None:
    page = window.open(site)
    alive(page)
    site.get(PATHS[site.name].fast)
    until(page, lambda: min(points(page)) >= 1, "a first point")
    before = points(page)
    assert len(before) == 6
    until(page, lambda: all(b > a for a, b in zip(before, points(page), strict=True)), "more")
    summary = page.locator("#charts figure p.hidden").first.text_content() or ""
    assert "now" in summary
    assert "start at" in summary
    if dashboard.CHARTS not in dashboard.files():
        return
    assert page.locator("#charts canvas").count() == 6
    page.get_by_role("button", name="Pause").click()
    paint = "document.querySelectorAll('#charts canvas')[1].toDataURL()"
    latency = page.evaluate(paint)
    assert (
        page.locator("#charts canvas")
        .nth(1)
        .evaluate(
            "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v > 0)"
        )
    )
    page.get_by_role("button", name="log scale").click()
    assert page.evaluate(paint) != latency
    page.get_by_role("button", name="log scale").click()
    assert page.evaluate(paint) == latency
    # A point by the keyboard: every chart says of when it is.
    page.get_by_role("slider", name="Request rate").focus()
    page.keyboard.press("End")
    last = page.get_by_role("slider", name="Request rate").get_attribute("aria-valuetext") or ""
    assert re.fullmatch(r".*\d\d:\d\d:\d\d: Requests [\d,.]+ a minute", last)
    assert page.locator("#charts .at").all_inner_texts() == [last.partition(": ")[0]] * 6
    page.keyboard.press("ArrowLeft")
    before_last = page.locator("#charts .at").first.inner_text()
    assert before_last not in ("", last.partition(": ")[0])
    page.get_by_role("button", name="log scale").focus()
    assert page.locator("#charts .at").first.inner_text() == ""


@on_gunicorn
def test_a_step_that_ended_after_the_numbers_were_taken_is_in_its_chart(
    site: Server, window: Window
) -> None:
    def earlier(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        told = datetime.fromisoformat(body["metrics"]["timestamp"]) - timedelta(seconds=20)
        body["metrics"]["timestamp"] = told.isoformat()
        route.fulfill(response=answer, json=body)

    window.page.route("**/current", earlier)
    page = window.open(site)
    alive(page)
    if dashboard.CHARTS not in dashboard.files():
        return
    until(page, lambda: min(points(page)) >= 1, "a first point")
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("slider", name="Request rate").focus()
    page.keyboard.press("End")
    last = page.get_by_role("slider", name="Request rate").get_attribute("aria-valuetext") or ""
    assert page.locator("#charts .at").first.inner_text() == last.partition(": ")[0] != ""


@on_gunicorn
def test_a_history_that_is_still_empty_is_said_so(site: Server, window: Window) -> None:
    window.page.route("**/history?*", lambda route: route.fulfill(json={"history": []}))
    page = window.open(site)
    alive(page)
    assert page.locator("#spans button").all_inner_texts() == ["Live, 5 min", "Last hour"]
    page.get_by_role("button", name="Last hour").click()
    expect(page.get_by_text("No minute has passed yet.")).to_be_visible()
    assert points(page) == [0] * 6
    page.get_by_role("button", name="Live, 5 min").click()
    expect(page.locator("#no-history")).to_be_hidden()


@on_gunicorn
def test_a_history_of_routes_that_is_not_kept_is_said_so(site: Server, window: Window) -> None:
    site.get("/hello")
    page = window.open(site)
    alive(page)
    page.get_by_role("button", name="/hello").first.click()
    page.get_by_role("button", name="Last hour").click()
    expect(page.get_by_text("is not kept here")).to_be_visible()
    expect(page.locator(".detail-charts")).to_be_hidden()
    page.get_by_role("button", name="Live, 5 min").click()
    expect(page.locator(".detail-charts")).to_be_visible()


def test_it_looks_back_as_long_as_the_server_does(
    watched: Server, window: Window, axe: str
) -> None:
    page = window.open(watched, signed_in=False)
    alive(page)
    spans = page.locator("#spans button")
    assert spans.all_inner_texts() == ["Live, 1 min", "Last hour", "Last day", "Last 3 days"]
    for number, minutes in ((1, 60), (2, 1440), (3, 3 * 1440)):
        with page.expect_response("**/history?*") as answered:
            spans.nth(number).click()
        answer = answered.value.json()
        assert answer["minutes"] == minutes
        assert answer["step_minutes"] == {60: 1, 1440: 5, 4320: 15}[minutes]
        times = [datetime.fromisoformat(row["timestamp"]) for row in answer["history"]]
        assert times[-1] - times[0] > timedelta(minutes=minutes) / 3
        until(page, lambda: set(points(page)) == {len(times)}, "the history")  # noqa: B023
        assert spans.nth(number).get_attribute("aria-pressed") == "true"
        expect(page.locator("#no-history")).to_be_hidden()
    assert faults(page, axe) == []
    answers = page.locator("figure", has_text="Statuses").locator("p.hidden")
    assert "2xx: now 0.05 a minute" in (answers.text_content() or "")
    # So do the table and its open rows.
    expect(page.locator("#routes-count")).to_have_text("1 in the last 3 days")
    cells = page.locator(".routes > tbody > tr > td")
    assert cells.first.inner_text() == str(len(times))
    with page.expect_response("**/history?method=GET&route=*") as answered:
        page.get_by_role("button", name="/ok").click()
    answer = answered.value.json()
    assert (answer["kept"], answer["minutes"], answer["step_minutes"]) == (True, 3 * 1440, 15)
    assert {row["requests"] for row in answer["history"]} == {1}
    chart = page.locator(".detail .chart").first
    expect(chart).to_have_attribute("data-points", str(len(answer["history"])))
    page.get_by_role("button", name="/ok").click()
    # Charts name the day, and the lines of two servers do not meet.
    if dashboard.CHARTS in dashboard.files():
        page.get_by_role("slider", name="Memory").focus()
        page.keyboard.press("Home")
        assert page.locator("#charts .at").first.inner_text().startswith(f"{times[0]:%b} ")
        for _ in times:
            page.keyboard.press("ArrowRight")
            if page.locator("#charts .legend b").last.inner_text() == NONE:
                break
        else:
            raise AssertionError("no gap between the servers")


def test_a_history_that_cannot_be_loaded_is_asked_for_again(
    watched: Server, window: Window
) -> None:
    page = window.page
    window.forgiven = lambda text: "status of 500" in text
    page.clock.install()
    page.route("**/history?*", lambda route: route.fulfill(status=500))
    window.open(watched, signed_in=False)
    alive(page)
    page.get_by_role("button", name="Last day").click()
    expect(page.get_by_text("The history cannot be loaded.")).to_be_visible()
    page.unroute("**/history?*")
    page.clock.run_for(6000)
    expect(page.locator("#no-history")).to_be_hidden()
    assert min(points(page)) > 1


# -- alerts ----------------------------------------------------------------------------------------


def test_alerts_show(watched: Server, window: Window, axe: str) -> None:
    page = window.open(watched, signed_in=False)
    count = page.locator("#alerts-count")
    until(page, lambda: "2 rules" in count.inner_text(), "the rules")
    assert count.inner_text() == "none firing · 2 rules"
    assert page.locator("#alerts-list li").count() == 0
    firing = page.locator("#alerts-list li.firing")
    # Where clients err there is no kind of error: the link leads to the route that has most.
    for _ in range(3):
        watched.get("/nowhere")
    stray = page.locator(".routes").get_by_role("button", name="<unmatched>")
    expect(stray).to_be_visible()
    firing.get_by_role("button", name="Errors").click()
    expect(stray).to_be_focused()
    expect(stray).to_have_attribute("aria-expanded", "true")
    stray.click()
    for _ in range(3):
        watched.get("/fail")
    expect(firing).to_have_count(1)
    expect(page.locator("#alerts-list li.pending")).to_have_count(1)
    (row,) = (
        row for row in watched.get(f"{PATH}/alerts").json()["alerts"] if row["state"] == "firing"
    )
    assert firing.inner_text().split("\n")[:3] == [
        "Firing", "ERROR_RATE critical", "error_rate_pct is 100 % (threshold > 50 %)",
    ]  # fmt: skip
    assert firing.locator("time").get_attribute("datetime") == row["since"]
    pending = page.locator("#alerts-list li.pending")
    assert "requests of /fail is 3 (threshold > 0)" in pending.inner_text()
    assert count.inner_text() == "1 firing, 1 pending · 2 rules"
    tile = page.locator("dd", has=page.locator("[data-field=error_rate_pct]"))
    expect(tile).to_have_class("raised")
    assert page.locator("dd.raised").count() == 1
    assert "Alert: ERROR_RATE, error_rate_pct is 100 % (threshold > 50 %)" in happened(page)
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 800})
        assert faults(page, axe) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Title, icon and the chart of errors show it, also in a tab that nobody looks at.
    assert page.title().startswith("(1) Alert")
    icon = page.locator("link[rel=icon]")
    assert (icon.get_attribute("href") or "").endswith("icon-alert.svg")
    marked = page.locator("#charts figure p.hidden", has_text="ERROR_RATE at")
    expect(marked).to_have_count(1)
    # From the alert to the guilty line: one click.
    watched.get("/raise")
    kinds = page.locator("#errors-list > li")
    expect(kinds.first.locator(".type")).to_have_text("RuntimeError")
    firing.get_by_role("button", name="Errors").click()
    expect(kinds.first.locator(".own-line").last).to_contain_text("apps.watched.raise_")
    assert kinds.nth(1).locator("summary").inner_text().startswith("HTTP 500")
    opened = kinds.first.inner_text()
    assert "GET /raise" in opened
    assert "a value" not in opened
    read = kinds.first.locator(".trace").element_handle()
    watched.get("/raise")
    expect(kinds.first.locator(".times")).to_have_text("2 in total, 2 in the last hour")
    assert read.evaluate("list => list.isConnected"), "it was replaced as somebody read it"
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 800})
        assert faults(page, axe) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    silence = firing.get_by_role("button", name="Silence ERROR_RATE")
    silence.focus()
    watched.get("/ok")
    expect(firing.locator(".said").first).not_to_contain_text("is 100 %")
    expect(silence).to_be_focused()  # where a keyboard was, whatever the value is now
    silence.click()
    assert faults(page, axe) == []
    page.get_by_role("dialog").get_by_role("button", name="Silence").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(firing).to_contain_text("silenced until")
    (one,) = watched.get(f"{PATH}/alerts").json()["silences"]
    assert one["type"] == "ERROR_RATE"
    firing.get_by_role("button", name="End").click()
    expect(firing).not_to_contain_text("silenced until")
    for _ in range(9):
        watched.get("/ok")
    until(page, lambda: "Alert over: ERROR_RATE" in happened(page), "its end")
    expect(firing).to_have_count(0)
    expect(page.locator("#charts figure p.hidden", has_text="ERROR_RATE over at")).to_have_count(1)
    assert not page.title().startswith("(")
    assert not (icon.get_attribute("href") or "").endswith("icon-alert.svg")
    expect(tile).not_to_have_class("raised")


def test_a_reset_shows(site: Server, window: Window, axe: str) -> None:
    for _ in range(5):
        site.get(PATHS[site.name].fast)
    page = window.open(site)
    until(page, lambda: (shown(page)["total_requests"] or 0) >= 5, "requests")
    until(page, lambda: min(points(page)) >= 1, "a point")
    page.get_by_text("Actions").click()
    if site.name == "uvicorn":
        assert faults(page, axe) == []
    page.get_by_role("button", name="Reset all counts").click()
    if site.name == "uvicorn":
        assert faults(page, axe) == []
    page.get_by_role("dialog").get_by_role("button", name="Reset").click()
    until(page, lambda: shown(page)["total_requests"] == 0, "the reset")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.get_by_text("Actions")).to_be_focused()
    until(page, lambda: "Counts were reset" in happened(page), "word of it")
    summary = page.locator("#charts figure p.hidden").first
    until(page, lambda: "reset at" in (summary.text_content() or ""), "its mark in the charts")
    expect(page.locator("#empty")).to_be_visible()
    assert happened(page).count("Server started") == 1
    assert "Counts were reset by a browser that has signed in with the token" in happened(page)
    # What happened is there for whoever comes later, too.
    page.reload()
    until(page, lambda: "Counts were reset by" in happened(page), "what was before")


def test_a_killed_worker_shows(site: Server, window: Window) -> None:
    workers = len(site.worker_pids())
    page = window.open(site)
    alive(page)  # a first look alone is not remembered
    until(page, lambda: shown(page)["workers"] == workers, "all workers")
    window.forgiven = lambda text: "ERR_" in text  # its connections die with it
    site.signal(signal.SIGSTOP)  # so that the master does not put another in its place yet
    try:
        victim = site.worker_pids()[-1]
        os.kill(victim, signal.SIGKILL)
        until(page, lambda: shown(page)["workers"] == workers - 1, "one less")
        until(page, lambda: f"Worker {victim} is gone" in happened(page), "word of it")
    finally:
        site.signal(signal.SIGCONT)
    until(page, lambda: shown(page)["workers"] == workers, "another in its place")
    until(page, lambda: "New worker" in happened(page).partition(str(victim))[0], "word of it")
    wait_until(lambda: len(site.worker_pids()) == workers, "all workers")


def test_sorting_and_filtering(anew: Server, window: Window) -> None:
    paths = PATHS[anew.name]
    fast, item, slow = paths.fast, paths.item, paths.slow.partition("?")[0]
    for path, times in ((fast, 3), ("/items/1", 2), ("/fail", 1), (paths.slow, 1)):
        for _ in range(times):
            anew.get(path)
    page = window.open(anew)
    expect(page.get_by_text("Loading…")).to_be_hidden()
    until(page, lambda: len(names(page)) == 4, "the table")
    assert names(page)[:2] == [fast, item]
    head = page.locator(".routes thead")
    assert page.locator("th[data-key=requests]").get_attribute("aria-sort") == "descending"
    head.get_by_role("button", name="Requests").click()
    assert names(page)[-1] == fast
    assert page.locator("th[data-key=requests]").get_attribute("aria-sort") == "ascending"
    head.get_by_role("button", name="Route").click()
    assert names(page) == sorted(names(page))
    assert page.locator("th[data-key=requests]").get_attribute("aria-sort") is None
    head.get_by_role("button", name="Slowest").click()
    assert names(page)[0] == slow
    head.get_by_role("button", name="Errors").click()
    assert names(page)[0] == "/fail"

    # A row that overtakes another keeps the focus.
    head.get_by_role("button", name="Requests").click()
    assert names(page)[1] == item
    page.get_by_role("button", name=item).focus()
    for _ in range(3):
        anew.get("/items/1")
    until(page, lambda: names(page)[0] == item, "the new order")
    expect(page.get_by_role("button", name=item)).to_be_focused()

    page.keyboard.press("/")
    page.keyboard.type("ITEMS")
    assert names(page) == [item]
    assert page.locator("#routes-count").inner_text() == "1 of 4 in the window"
    page.get_by_label("Filter routes").fill("no such")
    assert names(page) == []
    expect(page.get_by_text("No route matches the filter.")).to_be_visible()


def test_a_row_opens_its_own_detail(anew: Server, window: Window) -> None:
    item = PATHS[anew.name].item
    for path in ("/items/1", "/items/2", "/items/3", "/items/1000"):
        anew.get(path)
    page = window.open(anew)
    button = page.get_by_role("button", name=item)
    button.focus()
    with page.expect_response("**/series?method=GET&route=*") as answered:
        page.keyboard.press("Enter")
    assert answered.value.json()["route"] == item
    assert button.get_attribute("aria-expanded") == "true"
    detail = page.locator(".detail")
    lines = [
        line.replace("\u00a0", " ") for line in detail.locator(".statuses li").all_inner_texts()
    ]
    assert (
        lines
        == {
            "uvicorn": ["2xx success 3 · 75 %", "4xx client error 1 · 25 %"],
            "gunicorn": ["2xx success 4 · 100 %"],
        }[anew.name]
    )
    expect(detail.locator(".chart")).to_have_count(3)
    marks = detail.locator("p.hidden").first
    until(page, lambda: "reset at" in (marks.text_content() or ""), "marks")
    rows = anew.get(f"{PATH}/routes", BEARER).json()["routes"]
    (row,) = (row for row in rows if row["route"] == item)
    first = " · ".join(f"P{p} {row[f'latency_ttfb_p{p}_ms']:g} ms" for p in (50, 95, 99))
    assert detail.locator(".first-byte").inner_text() == first
    # Filtered out, it is not asked for any more.
    page.get_by_label("Filter routes").fill("no such")
    asked = window.asked("series?method")
    anew.get(PATHS[anew.name].fast)
    expect(page.locator("#routes-count")).to_have_text("0 of 2 in the window")
    assert asked == []
    page.get_by_label("Filter routes").fill("")
    button.click()
    expect(detail).to_have_count(0)
    assert button.get_attribute("aria-expanded") == "false"


@on_gunicorn
def test_statuses_are_told_by_class(anew: Server, window: Window) -> None:
    for path in ("/hello", "/hello", "/nowhere", "/fail"):
        anew.get(path)
    page = window.open(anew)
    alive(page)
    figure = page.locator("figure", has_text="Statuses")
    until(page, lambda: int(figure.get_attribute("data-points") or 0) >= 2, "a step that ended")

    def steps() -> list[dict[str, int]]:
        series = anew.get(f"{PATH}/series", BEARER).json()["series"]
        return [step["statuses"] for step in series if step["requests"]]

    until(page, lambda: sum(sum(step.values()) for step in steps()) == 4, "all answers")
    assert sum((Counter(step) for step in steps()), Counter()) == {"2xx": 2, "4xx": 1, "5xx": 1}
    summary = figure.locator("p.hidden")
    expect(summary).to_have_text(re.compile(r"4xx: now 0 .* highest [1-9].* 5xx: .* highest [1-9]"))
    keys = figure.locator(".key").evaluate_all("l => l.map(e => getComputedStyle(e).color)")
    assert len(set(keys)) == 4
    assert keys[-1] == "rgb(185, 28, 28)"  # --bad
