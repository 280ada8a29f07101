"""The live page in a real browser, on real servers: what it shows, says, and survives."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kits import servers
from kits.servers import APPS_ROOT, Server, missing, serve, wait_until

from metricsmw import MetricsSnapshot
from metricsmw.adapters import dashboard

sync_api = pytest.importorskip("playwright.sync_api")
from playwright.sync_api import (  # noqa: E402
    Browser,
    BrowserContext,
    Page,
    Request,
    Response,
    Route,
    expect,
)

expect.set_options(timeout=20_000)

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "a token of the tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
PATH = "/api/metrics"
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
NONE = "\N{EN DASH}"  # where the page has no number
# Numbers that move by themselves.
RESTLESS = {"timestamp", "cpu_usage_pct", "memory_usage_pct", "memory_usage_mb"}
COLUMNS = [
    *("requests", "error_rate_pct"),
    *(f"latency_{name}_ms" for name in ("p50", "p95", "p99", "max")),
]
FIELDS = [name for name in MetricsSnapshot.__dataclass_fields__ if name not in RESTLESS]

SITES = {
    "demo on uvicorn": partial(serve, "uvicorn", "metricsmw.cli.demo_app:app", workers=2),
    "Flask on gunicorn": partial(serve, "gunicorn", "apps.flask_app:app", workers=4),
}
on_uvicorn = pytest.mark.parametrize("site", ["demo on uvicorn"], indirect=True, scope="module")
on_gunicorn = pytest.mark.parametrize("site", ["Flask on gunicorn"], indirect=True, scope="module")


class Paths:
    """What a site has, and how it names it."""

    def __init__(self, fast: str, item: str, slow: str, login: tuple[str, str]) -> None:
        self.fast, self.item, self.slow, self.login = fast, item, slow, login


PATHS = {
    "uvicorn": Paths("/fast", "/items/{number:int}", "/slow", ("GET", "/login/ada")),
    "gunicorn": Paths("/hello", "/items/<int:id>", "/slow?ms=60", ("POST", "/login")),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # That without a screen takes a third less of the machine.
    names = ("chromium-headless-shell", "chromium")
    found = [os.environ.get("CHROMIUM"), *map(shutil.which, names)]
    chromium = next(filter(None, found), None)
    if chromium is None:
        missing("Chromium is not installed (Debian: apt-get install chromium-headless-shell)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=SITES)
def site(request: pytest.FixtureRequest) -> Iterator[Server]:
    with SITES[request.param](env={"METRICSMW_TOKEN": TOKEN}) as server:
        yield server


@pytest.fixture
def anew(site: Server) -> Server:
    """The site, with nothing counted yet."""
    assert site.post(f"{PATH}/reset", BEARER).status == 200
    return site


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A site with alert rules, and with a history of three days."""
    environment = {"HISTORY": str(tmp_path_factory.mktemp("history") / "metrics.db")}
    fill = "import os, pathlib, apps.past; apps.past.write(pathlib.Path(os.environ['HISTORY']), 3)"
    subprocess.run(
        [sys.executable, "-c", fill],
        env={**os.environ, **environment, "PYTHONPATH": str(APPS_ROOT)},
        cwd="/",
        check=True,
        timeout=60,
    )
    with serve("uvicorn", "apps.watched:app", workers=2, env=environment) as server:
        yield server


class Window:
    """A page of a browser of its own, and what went wrong in it."""

    def __init__(self, context: BrowserContext) -> None:
        self.page: Page = context.new_page()
        self.page.set_default_timeout(20_000)
        self.problems: list[str] = []
        self.forgiven: Callable[[str], bool] = lambda text: False
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))

    def asked(self, path: str) -> list[Request]:
        """From now on: the requests for that path below the mount."""
        requests: list[Request] = []
        self.page.on(
            "request",
            lambda request: requests.append(request) if f"{PATH}/{path}" in request.url else None,
        )
        return requests

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning") and not self.forgiven(message.text):
            self.problems.append(f"{message.text} ({message.location['url']})")

    def open(self, server: Server, *, signed_in: bool = True) -> Page:
        """Go to the server's page; with a cookie that a sign-in gave."""
        if signed_in:
            answer = self.page.context.request.post(f"{server.url}{PATH}/signin", headers=BEARER)
            assert answer.ok
        self.page.goto(f"{server.url}{PATH}/")
        return self.page


@pytest.fixture
def window(browser: Browser) -> Iterator[Window]:
    # The dot that breathes while the page lives would have every frame painted.
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    window = Window(context)
    yield window
    context.close()
    assert window.problems == []


def current(server: Server) -> dict[str, Any]:
    metrics: dict[str, Any] = server.get(f"{PATH}/current", BEARER).json()["metrics"]
    return metrics


def shown(page: Page) -> dict[str, float | None]:
    """The numbers on the page, by field."""
    texts: dict[str, str] = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('[data-field]')]"
        ".map(e => [e.dataset.field, e.textContent]))"
    )
    return {
        name: None if text == NONE else float(text.replace(",", "")) for name, text in texts.items()
    }


def until(page: Page, probe: Callable[[], object], what: str) -> None:
    """As `wait_until`, but the page goes on meanwhile."""
    for _ in range(200):
        if probe():
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"waited 20 s for {what}")


def alive(page: Page) -> None:
    page.wait_for_selector("[data-state=live], [data-state=polling]")


def points(page: Page) -> list[int]:
    """How many points each chart has."""
    return [
        int(n)
        for n in page.eval_on_selector_all("#charts .chart", "l => l.map(e => e.dataset.points)")
    ]


def happened(page: Page) -> str:
    return page.locator("#events").inner_text()


# -- numbers ---------------------------------------------------------------------------------------


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
            all(now[name] == api[name] for name in FIELDS)
            and api["total_requests"] >= 40
            and wanted.items() <= api.items()
        )

    until(page, equal, "the page to show what the API says")
    if busy is not None:
        busy.join()
    assert set(shown(page)) == set(MetricsSnapshot.__dataclass_fields__) - {"timestamp"}
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
            ".routes tbody tr",
            "rows => rows.map(row => [...row.children].map(cell => cell.textContent))",
        )
        seen[:] = [rows, now]
        return [[row[0], *(float(cell.replace(",", "")) for cell in row[1:])] for row in now] == [
            [row["method"] + row["route"], *(row[name] for name in COLUMNS)] for row in rows
        ]

    until(page, equal, "the table to show what the API says")


def test_charts_grow(site: Server, window: Window) -> None:
    page = window.open(site)
    alive(page)
    site.get(PATHS[site.name].fast)
    until(page, lambda: min(points(page)) >= 1, "a first point")
    before = points(page)
    assert len(before) == 5
    until(page, lambda: all(b > a for a, b in zip(before, points(page), strict=True)), "more")
    summary = page.locator("#charts figure p.hidden").first.text_content() or ""
    assert "now" in summary
    assert "start at" in summary
    if dashboard.CHARTS not in dashboard.files():
        return
    assert page.locator("#charts canvas").count() == 5
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
    assert page.locator("#charts .at").all_inner_texts() == [last.partition(": ")[0]] * 5
    page.keyboard.press("ArrowLeft")
    before_last = page.locator("#charts .at").first.inner_text()
    assert before_last not in ("", last.partition(": ")[0])
    page.get_by_role("button", name="log scale").focus()
    assert page.locator("#charts .at").first.inner_text() == ""


@on_gunicorn
def test_a_history_that_is_still_empty_is_said_so(site: Server, window: Window) -> None:
    window.page.route("**/history?*", lambda route: route.fulfill(json={"history": []}))
    page = window.open(site)
    alive(page)
    assert page.locator("#spans button").all_inner_texts() == ["Live, 5 min", "Last hour"]
    page.get_by_role("button", name="Last hour").click()
    expect(page.get_by_text("No minute has passed yet.")).to_be_visible()
    assert points(page) == [0] * 5
    page.get_by_role("button", name="Live, 5 min").click()
    expect(page.locator("#no-history")).to_be_hidden()


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
    for _ in range(3):
        watched.get("/fail")
    firing = page.locator("#alerts-list li.firing")
    expect(firing).to_have_count(1)
    expect(page.locator("#alerts-list li.pending")).to_have_count(1)
    (row,) = (
        row for row in watched.get(f"{PATH}/alerts").json()["alerts"] if row["state"] == "firing"
    )
    assert firing.inner_text().split("\n")[:3] == [
        "Firing", "ERROR_RATE critical", "error_rate_pct is 100 (threshold > 50)",
    ]  # fmt: skip
    assert firing.locator("time").get_attribute("datetime") == row["since"]
    pending = page.locator("#alerts-list li.pending")
    assert "requests of /fail is 3 (threshold > 0)" in pending.inner_text()
    assert count.inner_text() == "1 firing, 1 pending · 2 rules"
    tile = page.locator("dd", has=page.locator("[data-field=error_rate_pct]"))
    expect(tile).to_have_class("raised")
    assert page.locator("dd.raised").count() == 1
    assert "Alert: ERROR_RATE, error_rate_pct is 100" in happened(page)
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 800})
        assert faults(page, axe) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    for _ in range(5):
        watched.get("/ok")
    until(page, lambda: "Alert over: ERROR_RATE" in happened(page), "its end")
    expect(firing).to_have_count(0)
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
    assert "Server restarted" not in happened(page)


def test_a_killed_worker_shows(site: Server, window: Window) -> None:
    workers = len(site.worker_pids())
    page = window.open(site)
    alive(page)  # a first look alone is not remembered
    until(page, lambda: shown(page)["workers"] == workers, "all workers")
    window.forgiven = lambda text: "ERR_" in text  # its connections die with it
    site.signal(signal.SIGSTOP)  # so that the master does not put another in its place yet
    try:
        os.kill(site.worker_pids()[-1], signal.SIGKILL)
        until(page, lambda: shown(page)["workers"] == workers - 1, "one less")
        until(
            page, lambda: f"Worker lost: {workers} → {workers - 1}" in happened(page), "word of it"
        )
    finally:
        site.signal(signal.SIGCONT)
    until(page, lambda: shown(page)["workers"] == workers, "another in its place")
    assert "Worker joined" in happened(page)
    wait_until(lambda: len(site.worker_pids()) == workers, "all workers")


# -- the connection --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SITES)
def test_a_server_that_ends_and_comes_back(
    name: str, window: Window, axe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"METRICSMW_TOKEN": TOKEN}
    with SITES[name](env=environment) as server:
        page = window.open(server)
        alive(page)
        window.forgiven = lambda text: "ERR_" in text
        # An open page does not keep it from ending.
        server.signal(signal.SIGTERM)
        until(page, server.ended, "the server's end")
        page.wait_for_selector("[data-state=lost]")
        expect(page.locator("#lost")).to_be_visible()
        assert "Connection lost" in page.locator("#connection").inner_text()
        for scheme in ("light", "dark") if name == "demo on uvicorn" else ():
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            assert faults(page, axe) == []
    monkeypatch.setattr(servers, "free_port", lambda: server.port)
    with SITES[name](env=environment) as again:
        alive(page)
        expect(page.locator("#lost")).to_be_hidden()
        until(page, lambda: "Connection restored" in happened(page), "word of it")
        until(page, lambda: "Server restarted" in happened(page), "word of the restart")
        again.get("/items/1")
        until(page, lambda: shown(page)["total_requests"] == 1, "new numbers")
        # The workers of another server are not those that were lost.
        assert "Worker lost" not in happened(page)


@on_gunicorn
def test_a_clock_that_jumps_is_no_restart(site: Server, window: Window) -> None:
    def later(route: Route) -> None:
        text = route.fetch().text()
        jumped = re.sub(
            r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00",
            lambda found: (datetime.fromisoformat(found[0]) + timedelta(hours=1)).isoformat(),
            text,
        )
        route.fulfill(body=jumped, content_type="application/json")

    page = window.open(site)
    alive(page)
    until(page, lambda: min(points(page)) >= 1, "a point")
    before = page.locator("#updated").get_attribute("datetime") or ""
    page.route(re.compile("/(current|series)"), later)
    with page.expect_response("**/series?*"):
        pass
    with page.expect_response("**/current"):
        pass
    now = page.locator("#updated").get_attribute("datetime") or ""
    assert datetime.fromisoformat(now) - datetime.fromisoformat(before) > timedelta(minutes=50)
    assert happened(page) == ""
    assert min(points(page)) >= 1
    page.unroute_all(behavior="wait")


@on_uvicorn
def test_a_stream_that_ends_is_gone_on_with(site: Server, window: Window) -> None:
    data = site.get(f"{PATH}/current", BEARER).json()
    series = site.get(f"{PATH}/series", BEARER).json()
    event = json.dumps({**series, "metrics": data["metrics"], "window_seconds": 300})
    body = f"retry: 1\n\nid: 7\nevent: update\ndata: {event}\n\n"
    page = window.page
    page.route(
        "**/stream",
        lambda route: route.fulfill(body=body, content_type="text/event-stream"),
        times=1,
    )
    streams = window.asked("stream")
    page.add_init_script(
        "window.opened = 0; window.EventSource = class extends EventSource"
        " { constructor(...given) { super(...given); window.opened += 1; } };"
    )
    window.open(site)
    until(page, lambda: len(streams) == 2, "the browser to come back")
    # By itself, as it does with Last-Event-ID; Chromium does not always tell its tests that header.
    assert page.evaluate("opened") == 1
    total = current(site)["total_requests"]
    site.get("/fast")
    until(page, lambda: shown(page)["total_requests"] == total + 1, "what goes on")
    assert happened(page) == ""


@on_uvicorn
def test_where_events_are_held_back_it_polls(site: Server, window: Window) -> None:
    page = window.page
    page.clock.install()
    page.route("**/stream", lambda route: None)  # as a proxy that waits for more
    window.open(site)
    until(page, lambda: shown(page)["workers"] == 2, "a first look")
    assert page.get_attribute("body", "data-state") == "loading"
    page.clock.run_for(7000)
    page.wait_for_selector("[data-state=polling]")
    until(page, lambda: "2 rules" in page.locator("#alerts-count").inner_text(), "the rules")
    page.unroute_all(behavior="ignoreErrors")


def hide(page: Page, hidden: bool) -> None:
    """As if the tab were hidden, or seen again."""
    page.evaluate(
        "value => { Object.defineProperty(document, 'hidden', {value, configurable: true});"
        " document.dispatchEvent(new Event('visibilitychange')); }",
        hidden,
    )


def test_a_page_that_nobody_sees_rests(site: Server, window: Window) -> None:
    page = window.page
    page.clock.install()
    window.open(site)
    alive(page)
    page.get_by_role("button", name="Last hour").click()
    hide(page, True)
    page.clock.run_for(11_000)
    asked = window.asked("")
    page.clock.run_for(120_000)
    site.get(PATHS[site.name].fast)
    assert [request.url for request in asked] == []
    hide(page, False)
    until(page, lambda: shown(page)["total_requests"] == current(site)["total_requests"], "more")


@on_gunicorn
def test_it_pauses(site: Server, window: Window) -> None:
    page = window.page
    page.clock.install()
    window.open(site)
    alive(page)
    page.get_by_role("button", name="Pause").click()
    page.wait_for_selector("[data-state=paused]")
    assert "Paused" in page.locator("#connection").inner_text()
    asked = window.asked("")
    site.get(PATHS[site.name].fast)
    page.clock.run_for(60_000)
    hide(page, True)
    page.clock.run_for(60_000)
    hide(page, False)
    assert [request.url for request in asked] == []
    page.get_by_role("button", name="Pause").click()
    until(page, lambda: shown(page)["total_requests"] == current(site)["total_requests"], "more")
    assert happened(page) == ""


# -- the table -------------------------------------------------------------------------------------


def names(page: Page) -> list[str]:
    return page.eval_on_selector_all(".routes .path", "l => l.map(e => e.textContent)")


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
    lines = [line.replace("\u00a0", " ") for line in detail.locator("li").all_inner_texts()]
    assert (
        lines[:-3]
        == {
            "uvicorn": ["2xx success 3 · 75 %", "4xx client error 1 · 25 %"],
            "gunicorn": ["2xx success 4 · 100 %"],
        }[anew.name]
    )
    expect(detail.locator(".chart")).to_be_visible()
    until(page, lambda: "reset at" in (detail.locator("p.hidden").text_content() or ""), "marks")
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


# -- who may look ----------------------------------------------------------------------------------


def test_signing_in_and_out(site: Server, window: Window, axe: str) -> None:
    window.forgiven = lambda text: "status of 4" in text
    page = window.open(site, signed_in=False)
    form = page.locator("#signin")
    expect(form).to_be_visible()
    expect(page.locator("#content")).to_be_hidden()
    page.get_by_label("Access token").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("That is not the token of this server.")).to_be_visible()
    assert page.context.cookies() == []
    page.route(
        "**/signin",
        lambda route: route.fulfill(status=429, headers={"Retry-After": "42"}),
        times=1,
    )
    page.keyboard.press("Enter")
    expect(page.get_by_text("Too many failed tries. Try again in 42 seconds.")).to_be_visible()
    if site.name == "uvicorn":
        assert faults(page, axe) == []
    page.get_by_label("Access token").fill(TOKEN)
    page.keyboard.press("Enter")
    alive(page)
    expect(form).to_be_hidden()
    (cookie,) = page.context.cookies()
    assert cookie["httpOnly"] is True
    assert cookie["sameSite"] == "Strict"
    assert TOKEN not in cookie["value"]
    page.reload()
    alive(page)
    page.get_by_text("Actions").click()
    page.get_by_role("button", name="Sign out").click()
    expect(form).to_be_visible()
    assert page.context.cookies() == []
    page.reload()
    expect(form).to_be_visible()
    # The app's own session would do, too; the page finds out by itself.
    expect(page.get_by_text("Or sign in to the application itself")).to_be_visible()
    method, path = PATHS[site.name].login
    page.context.request.fetch(f"{site.url}{path}", method=method)
    alive(page)
    expect(form).to_be_hidden()


def test_basic_credentials_are_the_browsers_business(browser: Browser, tmp_path: Path) -> None:
    environment = {"HISTORY": str(tmp_path / "metrics.db")}
    with serve("uvicorn", "apps.watched:guarded", env=environment) as server:
        window = Window(browser.new_context(http_credentials={"username": "ann", "password": "x"}))
        window.forgiven = lambda text: "status of 401" in text or "ERR_INVALID_AUTH" in text
        page = window.page
        page.clock.install()
        asked = window.asked("current")
        window.open(server, signed_in=False)
        button = page.get_by_role("button", name="Sign in…")
        expect(button).to_be_visible()
        expect(page.get_by_text("Sign in to the application itself")).to_be_hidden()
        expect(page.get_by_label("Access token")).to_be_hidden()
        # Each look has the browser ask again: so there is one where somebody wants it.
        page.clock.run_for(60_000)
        assert len(asked) == 1
        button.click()
        until(page, lambda: len(asked) == 2, "another look")
        page.context.close()
        assert window.problems == []
        known = Window(
            browser.new_context(http_credentials={"username": "ann", "password": "secret"})
        )
        alive(known.open(server, signed_in=False))
        known.page.context.close()
        assert known.problems == []


@on_uvicorn
def test_where_nothing_may_be_stored(site: Server, window: Window) -> None:
    window.page.add_init_script(
        "Object.defineProperty(window, 'localStorage', {get() { throw new Error('blocked'); }})"
    )
    page = window.open(site)
    alive(page)
    page.locator("#theme").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"


def test_without_a_token_it_says_who_may(window: Window) -> None:
    window.forgiven = lambda text: "status of 401" in text
    with serve("uvicorn", "metricsmw.cli.demo_app:app") as server:
        page = window.open(server, signed_in=False)
        expect(page.get_by_text("Sign in to the application itself")).to_be_visible()
        expect(page.get_by_label("Access token")).to_be_hidden()
        page.context.request.get(f"{server.url}/login/ada")
        alive(page)
        expect(page.locator("#signin")).to_be_hidden()
        page.close()


# -- looks -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, as package-lock.json has it."""
    script = Path("node_modules", "axe-core", "axe.min.js")
    if (ROOT / script).is_file():
        return (ROOT / script).read_text()
    npm = shutil.which("npm")
    if npm is None:
        missing("npm is not installed, which brings axe-core")
    folder = tmp_path_factory.mktemp("axe")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(ROOT / name, folder)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
    if done.returncode:
        missing(f"npm cannot bring axe-core: {done.stderr[-300:]}")
    return (folder / script).read_text()


def faults(page: Page, axe: str) -> list[str]:
    """What axe finds that is serious."""
    # The page's own policy allows no foreign script; the debugger's evaluation is exempt.
    if not page.evaluate("'axe' in window"):
        page.evaluate(f"{axe}; null")
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{fault['id']}: {node['html']} {node['failureSummary']}"
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


@pytest.mark.parametrize(
    ("site", "scheme"),
    [("demo on uvicorn", "light"), ("Flask on gunicorn", "dark")],
    indirect=["site"],
    scope="module",
)
def test_themes_widths_and_accessibility(
    site: Server, browser: Browser, axe: str, scheme: str
) -> None:
    item = PATHS[site.name].item
    for path in (PATHS[site.name].fast, "/items/1", "/fail", "/nope"):
        site.get(path)
    context = browser.new_context(
        color_scheme=scheme,  # type: ignore[arg-type]
        reduced_motion="reduce",
    )
    try:
        window = Window(context)
        page = window.open(site)
        page.get_by_role("button", name=item).click()
        expect(page.locator(".detail .chart")).to_be_visible()
        assert faults(page, axe) == []
        other = {"light": "dark", "dark": "light"}[scheme]
        background = "getComputedStyle(document.body).backgroundColor"
        own = page.evaluate(background)
        while page.evaluate("document.documentElement.dataset.theme") != other:
            page.locator("#theme").click()
        assert page.evaluate(background) != own
        assert faults(page, axe) == []
        page.reload()
        alive(page)
        assert page.evaluate("document.documentElement.dataset.theme") == other
        page.get_by_role("button", name=item).click()
        for width in (360, 390, 480, 640, 699, 700, 768, 1024, 1080, 1240, 1440, 1920):
            page.set_viewport_size({"width": width, "height": 800})
            page.wait_for_timeout(50)
            too_wide = page.evaluate(
                "[document.documentElement.scrollWidth, ...[...document.querySelectorAll("
                "'.tile, .chart, .bar > *, .card')].map(e => e.getBoundingClientRect().right)]"
            )
            assert max(too_wide) <= width + 0.5, width
            if width == 360:
                assert faults(page, axe) == []
        assert window.problems == []
    finally:
        context.close()


@on_uvicorn
def test_times_are_those_of_a_day_of_24_hours(browser: Browser, site: Server) -> None:
    context = browser.new_context(locale="en-US", timezone_id="Asia/Kolkata")
    page = Window(context).open(site)
    alive(page)
    module = page.get_attribute("script[type=module]", "src")
    said = page.evaluate(
        "async (at) => { const f = await import(at); const night = new Date(2026, 0, 1, 0, 5);"
        " return [f.time(night), f.tick(night, 300), f.dated(night)]; }",
        f"{site.url}{PATH}/{module}".replace("dashboard.js", "format.js").replace("/./", "/"),
    )
    assert said == ["00:05:00", "00:05", "Jan 1, 00:05:00"]
    assert page.locator("#updated").inner_text().endswith(" GMT+5:30")
    context.close()


@on_uvicorn
def test_reduced_motion(site: Server, browser: Browser) -> None:
    running = "document.getAnimations().length"
    for motion, number in (("no-preference", 1), ("reduce", 0)):
        context = browser.new_context(reduced_motion=motion)  # type: ignore[arg-type]
        page = Window(context).open(site)
        alive(page)
        assert page.evaluate(running) == number
        context.close()


@on_uvicorn
def test_without_charts_there_are_numbers(site: Server, window: Window, axe: str) -> None:
    # As a build without npm leaves it.
    window.page.route(
        "**/uPlot*",
        lambda route: route.fulfill(
            body="", content_type="text/css" if "css" in route.request.url else "text/javascript"
        ),
    )
    site.get("/fast")
    page = window.open(site)
    alive(page)
    expect(page.locator("#no-charts")).to_be_visible()
    until(page, lambda: min(points(page)) >= 1, "a point")
    table = page.locator("#charts table").first
    until(page, lambda: NONE not in table.inner_text(), "numbers")
    assert page.locator("#charts canvas").count() == 0
    assert faults(page, axe) == []


@pytest.mark.parametrize(("name", "app"), [("uvicorn", "app"), ("gunicorn", "wsgi_app")])
def test_names_that_mean_harm_are_text(name: str, app: str, window: Window) -> None:
    with serve(name, f"apps.hostile:{app}") as server:
        number = int(server.get("/record").text)
        page = window.open(server, signed_in=False)
        until(page, lambda: len(names(page)) >= 2 * number, "the table")
        rows = server.get(f"{PATH}/routes").json()["routes"]
        routes = {row["route"] for row in rows} - {"/record"}
        assert len(routes) >= number  # the long one is shortened by its method's length
        cut = {route if len(route) <= 300 else route[:300] + "…" for route in routes}
        assert cut <= set(names(page))
        for row in range(page.locator(".routes .name").count()):
            page.locator(".routes .name").nth(row).click()
        expect(page.locator(".detail")).to_have_count(1)
        assert page.evaluate("window.hacked") is None
        assert page.locator("main img, main script, main table b[onmouseover]").count() == 0
        for width in (360, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.close()


@on_uvicorn
def test_what_is_loaded_comes_from_here(site: Server, window: Window) -> None:
    loaded: list[Response] = []
    window.page.on("response", lambda response: loaded.append(response))
    page = window.open(site)
    alive(page)
    assert all(response.url.startswith(site.url + PATH) for response in loaded)
    static = [response for response in loaded if "/static/" in response.url]
    assert len(static) >= 6
    for response in static:
        assert "immutable" in response.headers["cache-control"]
        assert response.headers["etag"]


# -- the widget ------------------------------------------------------------------------------------


@contextmanager
def hosted(window: Window, server: Server, markup: str) -> Iterator[Page]:
    """A page of the app's own with the widget on it."""
    page = window.page
    html = (
        '<!DOCTYPE html><title>x</title><link rel="icon" href="data:,">'
        f'<script type="module" src="{PATH}/widget.js"></script>{markup}'
    )
    page.route("**/own.html", lambda route: route.fulfill(body=html, content_type="text/html"))
    page.goto(f"{server.url}/own.html")
    yield page


def test_the_widget(site: Server, window: Window) -> None:
    for _ in range(3):
        site.get(PATHS[site.name].fast)
    window.page.context.request.post(f"{site.url}{PATH}/signin", headers=BEARER)
    markup = (
        "<metrics-widget></metrics-widget>"
        '<metrics-widget fields="workers, total_requests" interval="1" '
        f'href="{PATH}"></metrics-widget>'
    )
    with hosted(window, site, markup) as page:
        first, second = page.locator("metrics-widget").all()
        assert first.locator("dt").all_inner_texts() == [
            "Request rate", "Error rate", "P95 latency", "Active users",
        ]  # fmt: skip
        expect(first.locator("b").first).not_to_have_text(NONE)
        total = second.locator("[data-field=total_requests]")
        site.get(PATHS[site.name].fast)
        expect(total).to_have_text(f"{current(site)['total_requests']:,}")
        expect(second.locator("b").first).to_have_text(str(current(site)["workers"]))
        page.evaluate(
            "document.querySelectorAll('metrics-widget')[1].setAttribute('fields', 'cpu_usage_pct')"
        )
        assert second.locator("dt").all_inner_texts() == ["CPU"]


@on_uvicorn
def test_the_widget_without_permission_or_server(site: Server, window: Window) -> None:
    window.forgiven = lambda text: "status of 401" in text or "ERR_FAILED" in text
    with hosted(window, site, "<metrics-widget></metrics-widget>") as page:
        expect(page.get_by_text("Sign in to see the numbers.")).to_be_visible()
        page.route("**/current", lambda route: route.abort())
        page.evaluate("document.querySelector('metrics-widget').setAttribute('interval', '2')")
        expect(page.get_by_text("No connection. Trying again…")).to_be_visible()


@on_uvicorn
def test_the_interval_of_the_widget_is_held_to_its_bounds(site: Server, window: Window) -> None:
    window.page.context.request.post(f"{site.url}{PATH}/signin", headers=BEARER)
    window.page.add_init_script(
        "window.waits = []; const own = setTimeout;"
        " window.setTimeout = (call, wait) => { waits.push(wait); return own(call, wait); };"
    )
    with hosted(window, site, "<metrics-widget></metrics-widget>") as page:
        for interval, wait in (
            ("2", 2000), ("0", 1000), ("-5", 1000), ("1e9", 3_600_000), ("often", 5000),
        ):  # fmt: skip
            page.evaluate(
                "each => { waits.length = 0;"
                " document.querySelector('metrics-widget').setAttribute('interval', each); }",
                interval,
            )
            page.wait_for_function("waits.length > 0")
            assert page.evaluate("waits[0]") == wait, interval


@on_uvicorn
def test_json_is_all_there_is_in_an_event(site: Server) -> None:
    """A stream over a real server: events as documented."""
    import http.client

    connection = http.client.HTTPConnection(site.host, site.port, timeout=20)
    connection.request("GET", f"{PATH}/stream", headers=BEARER)
    answer = connection.getresponse()
    assert answer.status == 200
    lines = [answer.readline().decode().rstrip("\n") for _ in range(6)]
    connection.close()
    assert lines[0] == "retry: 1000"
    assert lines[2].startswith("id: ")
    assert lines[3] == "event: update"
    assert set(json.loads(lines[4].removeprefix("data: "))) >= {
        *("metrics", "series", "routes", "alerts"),
    }
