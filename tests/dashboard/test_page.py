"""The live page in a real browser, on real servers: what it shows, says, and survives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kits import servers
from kits.servers import Server, missing, serve, wait_until

from metricsmw import MetricsSnapshot
from metricsmw.adapters import dashboard

sync_api = pytest.importorskip("playwright.sync_api")
from playwright.sync_api import Browser, BrowserContext, Page, Response, expect  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent.parent
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
FIELDS = [name for name in MetricsSnapshot.__dataclass_fields__ if name not in RESTLESS]

SITES = {
    "demo on uvicorn": partial(serve, "uvicorn", "metricsmw.demo_app:app", workers=2),
    "Flask on gunicorn": partial(serve, "gunicorn", "apps.flask_app:app", workers=4),
}
ROUTES = {
    "demo on uvicorn": ["/fast", "/items/1", "/items/1000", "/fail"],
    "Flask on gunicorn": ["/hello", "/items/1", "/items/7", "/no/such/page"],
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        missing("Chromium is not installed (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=SITES)
def site(request: pytest.FixtureRequest) -> Iterator[Server]:
    with SITES[request.param](env={"METRICSMW_TOKEN": TOKEN}) as server:
        server.routes = ROUTES[request.param]  # type: ignore[attr-defined]
        yield server


@pytest.fixture
def demo() -> Iterator[Server]:
    with serve("uvicorn", "metricsmw.demo_app:app", env={"METRICSMW_TOKEN": TOKEN}) as server:
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


Open = Callable[..., Page]


@pytest.fixture
def window(browser: Browser) -> Iterator[Window]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
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
    for _ in range(400):
        if probe():
            return
        page.wait_for_timeout(50)
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
    for number in range(40):
        site.get(site.routes[number % 4])  # type: ignore[attr-defined]
    seen: dict[str, Any] = {}

    def equal() -> bool:
        api = current(site)
        now = shown(page)
        seen.update(api=api, page=now)
        return all(now[name] == api[name] for name in FIELDS) and api["total_requests"] >= 40

    until(page, equal, "the page to show what the API says")
    assert set(shown(page)) == set(MetricsSnapshot.__dataclass_fields__) - {"timestamp"}
    assert all(isinstance(value, float) for value in shown(page).values())
    assert shown(page)["memory_usage_mb"] == pytest.approx(
        current(site)["memory_usage_mb"], rel=0.2
    )
    expect(page.locator("#empty")).to_be_hidden()
    # Under ASGI by a stream, under WSGI by polling; nobody told it.
    expected = "polling" if site.name == "gunicorn" else "live"
    assert page.get_attribute("body", "data-state") == expected


def test_the_table_is_that_of_the_api(site: Server, window: Window) -> None:
    for path in site.routes:  # type: ignore[attr-defined]
        site.get(path)
    page = window.open(site)
    seen: list[Any] = []

    def equal() -> bool:
        rows = site.get(f"{PATH}/routes", BEARER).json()["routes"]
        now = page.eval_on_selector_all(
            ".routes tbody tr",
            "rows => rows.map(row => [...row.children].map(cell => cell.textContent))",
        )
        seen[:] = [rows, now]
        return [[row[0], float(row[1].replace(",", ""))] for row in now] == [
            [row["method"] + row["route"], row["requests"]] for row in rows
        ]

    until(page, equal, "the table to show what the API says")


def test_charts_grow(site: Server, window: Window) -> None:
    page = window.open(site)
    alive(page)
    site.get(site.routes[0])  # type: ignore[attr-defined]
    until(page, lambda: min(points(page)) >= 1, "a first point")
    before = points(page)
    assert len(before) == 5
    until(page, lambda: all(b > a for a, b in zip(before, points(page), strict=True)), "more")
    if dashboard.CHARTS in dashboard.files():
        assert page.locator("#charts canvas").count() == 5
        painted = page.eval_on_selector(
            "#charts canvas",
            "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v > 0)",
        )
        assert painted
    assert "now" in (page.locator("#charts figure p.hidden").first.text_content() or "")


def test_the_last_hour(site: Server, window: Window) -> None:
    page = window.open(site)
    alive(page)
    with page.expect_response("**/history?minutes=60") as answered:
        page.get_by_role("button", name="Last hour").click()
    history = answered.value.json()["history"]
    until(page, lambda: set(points(page)) == {len(history)}, "the history")
    assert page.locator("#no-history").is_visible() == (not history)
    assert page.locator("#span-hour").get_attribute("aria-pressed") == "true"


def test_a_reset_shows(site: Server, window: Window) -> None:
    for _ in range(5):
        site.get(site.routes[0])  # type: ignore[attr-defined]
    page = window.open(site)
    until(page, lambda: (shown(page)["total_requests"] or 0) >= 5, "requests")
    until(page, lambda: min(points(page)) >= 1, "a point")
    page.get_by_text("Actions").click()
    page.get_by_role("button", name="Reset all counts").click()
    page.get_by_role("dialog").get_by_role("button", name="Reset").click()
    until(page, lambda: shown(page)["total_requests"] == 0, "the reset")
    expect(page.get_by_role("dialog")).to_be_hidden()
    until(page, lambda: "Counts were reset" in happened(page), "word of it")
    summary = page.locator("#charts figure p.hidden").first
    until(page, lambda: "reset at" in (summary.text_content() or ""), "its mark in the charts")
    expect(page.locator("#empty")).to_be_visible()


def test_a_killed_worker_shows(site: Server, window: Window) -> None:
    workers = len(site.worker_pids())
    page = window.open(site)
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
    name: str, window: Window, monkeypatch: pytest.MonkeyPatch
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
    monkeypatch.setattr(servers, "_free_port", lambda: server.port)
    with SITES[name](env=environment) as again:
        alive(page)
        expect(page.locator("#lost")).to_be_hidden()
        until(page, lambda: "Connection restored" in happened(page), "word of it")
        until(page, lambda: "Server restarted" in happened(page), "word of the restart")
        again.get("/items/1")
        until(page, lambda: shown(page)["total_requests"] == 1, "new numbers")


# -- the table -------------------------------------------------------------------------------------


def names(page: Page) -> list[str]:
    return page.eval_on_selector_all(".routes .path", "l => l.map(e => e.textContent)")


def test_sorting_and_filtering(demo: Server, window: Window) -> None:
    for path, times in (("/fast", 3), ("/items/1", 2), ("/me", 1), ("/slow", 1)):
        for _ in range(times):
            demo.get(path)
    page = window.open(demo)
    until(page, lambda: len(names(page)) == 4, "the table")
    assert names(page)[:2] == ["/fast", "/items/{number:int}"]
    head = page.locator(".routes thead")
    assert page.locator("th[data-key=requests]").get_attribute("aria-sort") == "descending"
    head.get_by_role("button", name="Requests").click()
    assert names(page)[-1] == "/fast"
    assert page.locator("th[data-key=requests]").get_attribute("aria-sort") == "ascending"
    head.get_by_role("button", name="Route").click()
    assert names(page) == sorted(names(page))
    assert page.locator("th[data-key=requests]").get_attribute("aria-sort") is None
    head.get_by_role("button", name="Slowest").click()
    assert names(page)[0] == "/slow"
    head.get_by_role("button", name="Errors").click()
    assert names(page)[0] == "/me"

    page.keyboard.press("/")
    page.keyboard.type("ITEMS")
    assert names(page) == ["/items/{number:int}"]
    assert page.locator("#routes-count").inner_text() == "1 of 4 in the window"
    page.get_by_label("Filter routes").fill("no such")
    assert names(page) == []
    expect(page.get_by_text("No route matches the filter.")).to_be_visible()


def test_a_row_opens_its_own_detail(demo: Server, window: Window) -> None:
    for path in ("/items/1", "/items/2", "/items/3", "/items/1000"):
        demo.get(path)
    page = window.open(demo)
    button = page.get_by_role("button", name="/items/{number:int}")
    button.focus()
    with page.expect_response("**/series?method=GET&route=*") as answered:
        page.keyboard.press("Enter")
    assert answered.value.json()["route"] == "/items/{number:int}"
    assert button.get_attribute("aria-expanded") == "true"
    detail = page.locator(".detail")
    lines = [line.replace("\u00a0", " ") for line in detail.locator("li").all_inner_texts()]
    assert lines[:2] == ["2xx success 3 · 75 %", "4xx client error 1 · 25 %"]
    expect(detail.locator(".chart")).to_be_visible()
    rows = demo.get("/api/metrics/routes", BEARER).json()["routes"]
    (row,) = (row for row in rows if row["route"] == "/items/{number:int}")
    first = " · ".join(f"P{p} {row[f'latency_ttfb_p{p}_ms']:g} ms" for p in (50, 95, 99))
    assert detail.locator(".first-byte").inner_text() == first
    page.keyboard.press("Enter")
    expect(detail).to_have_count(0)
    assert button.get_attribute("aria-expanded") == "false"


# -- who may look ----------------------------------------------------------------------------------


def test_signing_in_and_out(site: Server, window: Window) -> None:
    window.forgiven = lambda text: "status of 401" in text
    page = window.open(site, signed_in=False)
    form = page.locator("#signin")
    expect(form).to_be_visible()
    expect(page.locator("#content")).to_be_hidden()
    page.get_by_label("Access token").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("That is not the token of this server.")).to_be_visible()
    assert page.context.cookies() == []
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


def test_without_a_token_it_says_who_may(window: Window) -> None:
    window.forgiven = lambda text: "status of 401" in text
    with serve("uvicorn", "metricsmw.demo_app:app") as server:
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
    found = page.evaluate(f"{axe}; axe.run(document, {{resultTypes: ['violations']}})")
    return [
        f"{fault['id']}: {node['html']} {node['failureSummary']}"
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_themes_widths_and_accessibility(
    demo: Server, browser: Browser, axe: str, scheme: str
) -> None:
    for path in ("/fast", "/items/1", "/fail", "/login/ada", "/nope"):
        demo.get(path)
    context = browser.new_context(color_scheme=scheme)  # type: ignore[arg-type]
    try:
        window = Window(context)
        window.forgiven = lambda text: "status of 401" in text
        page = window.open(demo, signed_in=False)
        expect(page.locator("#signin")).to_be_visible()
        assert faults(page, axe) == []
        page = window.open(demo)
        page.get_by_role("button", name="/items/{number:int}").click()
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
        page.get_by_role("button", name="/items/{number:int}").click()
        for width in (360, 390, 480, 640, 699, 700, 768, 1024, 1080, 1240, 1440, 1920):
            page.set_viewport_size({"width": width, "height": 800})
            page.wait_for_timeout(50)
            too_wide = page.evaluate(
                "[document.documentElement.scrollWidth, ...[...document.querySelectorAll("
                "'.tile, .chart, .bar > *, .card')].map(e => e.getBoundingClientRect().right)]"
            )
            assert max(too_wide) <= width + 0.5, width
        assert window.problems == []
    finally:
        context.close()


def test_reduced_motion(demo: Server, browser: Browser) -> None:
    running = "document.getAnimations().length"
    for motion, number in (("no-preference", 1), ("reduce", 0)):
        context = browser.new_context(reduced_motion=motion)  # type: ignore[arg-type]
        page = Window(context).open(demo)
        alive(page)
        assert page.evaluate(running) == number
        context.close()


def test_without_charts_there_are_numbers(demo: Server, window: Window) -> None:
    # As a build without npm leaves it.
    window.page.route(
        "**/uPlot*",
        lambda route: route.fulfill(
            body="", content_type="text/css" if "css" in route.request.url else "text/javascript"
        ),
    )
    demo.get("/fast")
    page = window.open(demo)
    alive(page)
    expect(page.locator("#no-charts")).to_be_visible()
    until(page, lambda: min(points(page)) >= 1, "a point")
    table = page.locator("#charts table").first
    until(page, lambda: NONE not in table.inner_text(), "numbers")
    assert page.locator("#charts canvas").count() == 0


def test_names_that_mean_harm_are_text(window: Window) -> None:
    with serve("uvicorn", "apps.hostile:app") as server:
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


def test_what_is_loaded_comes_from_here(demo: Server, window: Window) -> None:
    loaded: list[Response] = []
    window.page.on("response", lambda response: loaded.append(response))
    page = window.open(demo)
    alive(page)
    assert all(response.url.startswith(demo.url + PATH) for response in loaded)
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
        site.get(site.routes[0])  # type: ignore[attr-defined]
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
        site.get(site.routes[0])  # type: ignore[attr-defined]
        expect(total).to_have_text(f"{current(site)['total_requests']:,}")
        expect(second.locator("b").first).to_have_text(str(current(site)["workers"]))
        page.evaluate(
            "document.querySelectorAll('metrics-widget')[1].setAttribute('fields', 'cpu_usage_pct')"
        )
        assert second.locator("dt").all_inner_texts() == ["CPU"]


def test_the_widget_without_permission(demo: Server, window: Window) -> None:
    window.forgiven = lambda text: "status of 401" in text
    with hosted(window, demo, "<metrics-widget></metrics-widget>") as page:
        expect(page.get_by_text("Sign in to see the numbers.")).to_be_visible()


def test_json_is_all_there_is_in_an_event(demo: Server) -> None:
    """A stream over a real server: events as documented."""
    import http.client

    connection = http.client.HTTPConnection(demo.host, demo.port, timeout=20)
    connection.request("GET", f"{PATH}/stream", headers=BEARER)
    answer = connection.getresponse()
    assert answer.status == 200
    lines = [answer.readline().decode().rstrip("\n") for _ in range(6)]
    connection.close()
    assert lines[0] == "retry: 2000"
    assert lines[2].startswith("id: ")
    assert lines[3] == "event: update"
    assert set(json.loads(lines[4].removeprefix("data: "))) >= {"metrics", "series", "routes"}
