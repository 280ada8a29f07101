"""The page at any width, in both themes, without charts, with hostile names; the widget."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from kits.page import (
    BEARER,
    NONE,
    PATH,
    PATHS,
    Window,
    alive,
    current,
    faults,
    names,
    on_uvicorn,
    points,
    until,
)
from kits.servers import Server, serve
from playwright.sync_api import (
    Browser,
    Page,
    Response,
    expect,
)


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
        expect(page.locator(".detail .chart")).to_have_count(3)
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
        expect(page.locator(".detail")).to_have_count(1)  # the address has it
        for width in (360, 390, 480, 640, 699, 700, 768, 1024, 1080, 1240, 1440, 1920):
            page.set_viewport_size({"width": width, "height": 800})
            page.wait_for_timeout(50)
            too_wide = page.evaluate(
                "[document.documentElement.scrollWidth, ...[...document.querySelectorAll("
                "'.tile, .chart, .bar > *, .card')].map(e => e.getBoundingClientRect().right)]"
            )
            assert max(too_wide) <= width + 0.5, width
            cut = page.evaluate(
                "[...document.querySelectorAll('.routes thead button')].filter(e => e.offsetWidth"
                " && e.getBoundingClientRect().right > e.closest('th').getBoundingClientRect()"
                ".right + 0.5).map(e => e.textContent)"
            )
            assert cut == [], width
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
        rows = page.locator(".routes .name").count()
        for row in range(rows):
            page.locator(".routes .name").nth(row).click()
        expect(page.locator(".detail")).to_have_count(rows)
        kinds = page.locator("#errors-list > li")
        until(page, lambda: kinds.count() >= 2 * number, "the errors")  # HTTP 500 of each, too
        for place in range(kinds.count()):
            kinds.nth(place).locator("summary").click()
        types = page.locator("#errors-list .type").all_inner_texts()
        assert any(
            text.startswith("/<script>") and text.endswith("\\ud800.Error") for text in types
        )
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
