"""The page survives what happens to its server, rests unseen, and opens to whom it may."""

from __future__ import annotations

import json
import re
import signal
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from kits import servers
from kits.page import (
    BEARER,
    ENVIRONMENT,
    PATH,
    PATHS,
    SITES,
    TOKEN,
    Window,
    alive,
    current,
    faults,
    happened,
    on_gunicorn,
    on_uvicorn,
    points,
    shown,
    until,
)
from kits.servers import Server, serve
from playwright.sync_api import (
    Browser,
    Page,
    Route,
    expect,
)


@pytest.mark.parametrize("name", SITES)
def test_a_server_that_ends_and_comes_back(
    name: str, window: Window, axe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SITES[name](env=ENVIRONMENT) as server:
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
    with SITES[name](env=ENVIRONMENT) as again:
        alive(page)
        expect(page.locator("#lost")).to_be_hidden()
        until(page, lambda: "Connection restored" in happened(page), "word of it")
        until(page, lambda: happened(page).count("Server started") == 2, "word of the restart")
        again.get("/items/1")
        until(page, lambda: shown(page)["total_requests"] == 1, "new numbers")
        # The workers of another server are not those that were lost.
        assert "is gone" not in happened(page).partition("Connection restored")[0]


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

    servers.wait_until(
        lambda: current(site)["workers"] == len(site.worker_pids()), "all of the site's workers"
    )
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
    assert happened(page).count("Server started") == 1
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
    assert "Connection" not in happened(page)


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
    assert "Connection" not in happened(page)


def test_signing_in_and_out(site: Server, window: Window, axe: str) -> None:
    window.forgiven = lambda text: "status of 4" in text
    # From before the page, as what is on its way when a route is made goes past it.
    tries: list[str] = []

    def second_is_refused(route: Route) -> None:
        tries.append(route.request.url)
        if len(tries) == 2:
            route.fulfill(status=429, headers={"Retry-After": "42"})
        else:
            route.fallback()

    window.page.route("**/signin", second_is_refused)
    page = window.open(site, signed_in=False)
    form = page.locator("#signin")
    expect(form).to_be_visible()
    expect(page.locator("#content")).to_be_hidden()
    page.get_by_label("Access token").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("That is not the token of this server.")).to_be_visible()
    assert page.context.cookies() == []
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
    alive(page, seconds=60)
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


@on_uvicorn
def test_a_link_with_the_token_signs_in(site: Server, window: Window) -> None:
    window.forgiven = lambda text: "status of 401" in text
    page = window.page
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{site.url}/api/metrics/#token={TOKEN}")
    alive(page)
    expect(page.locator("#signin")).to_be_hidden()
    assert page.url == f"{site.url}/api/metrics/"
    assert not [url for url in asked if TOKEN in url]
    assert len(page.context.cookies()) == 1
    page.reload()
    alive(page)
    page.context.clear_cookies()
    page.goto(f"{site.url}/api/metrics/#token=wrong")
    page.reload()
    expect(page.locator("#signin")).to_be_visible()
    assert page.url == f"{site.url}/api/metrics/"
    page.goto("about:blank")
    page.goto(f"{site.url}/api/metrics/#token=wrong")
    expect(page.get_by_text("That is not the token of this server.")).to_be_visible()


def test_without_a_token_it_says_who_may(window: Window) -> None:
    window.forgiven = lambda text: "status of 401" in text
    with serve("uvicorn", "metricsmw.cli.demo_app:app") as server:
        page = window.open(server, signed_in=False)
        expect(page.get_by_text("Sign in to the application itself")).to_be_visible()
        expect(page.get_by_label("Access token")).to_be_visible()  # the server's own
        page.get_by_text("Ways in").click()
        expect(page.get_by_text("METRICSMW_TOKEN sets another one")).to_be_visible()
        page.context.request.get(f"{server.url}/login/ada")
        alive(page)
        expect(page.locator("#signin")).to_be_hidden()
        page.close()
