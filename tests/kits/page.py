"""The live page in a real browser: its sites, a window on it, and what is read off it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import (
    BrowserContext,
    Page,
    Request,
    expect,
)

from kits.servers import Server, serve
from metricsmw import MetricsSnapshot

expect.set_options(timeout=20_000)

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a token of the tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
# All workers of the demo need one secret, or each knows only the sessions that it began itself.
ENVIRONMENT = {"METRICSMW_TOKEN": TOKEN, "METRICSMW_DEMO_SESSION_SECRET": "a secret of the tests"}
PATH = "/api/metrics"
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
NONE = "\N{EN DASH}"  # where the page has no number
# Numbers that move by themselves.
RESTLESS = {
    *("timestamp", "cpu_usage_pct", "cpu_share_pct", "memory_usage_pct", "memory_usage_mb"),
}
COLUMNS = [
    *("requests", "request_rate_rpm", "error_rate_pct"),
    *(f"latency_{name}_ms" for name in ("p50", "p95", "p99", "max")),
    "time_share_pct",
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


def current(server: Server) -> dict[str, Any]:
    metrics: dict[str, Any] = server.get(f"{PATH}/current", BEARER).json()["metrics"]
    return metrics


def shown(page: Page) -> dict[str, float | None]:
    """The numbers on the page, by field."""
    texts: dict[str, str] = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('[data-field]')]"
        ".map(e => [e.dataset.field, e.textContent"
        " + (e.nextElementSibling?.textContent === 's' ? ' s' : '')]))"
    )
    return {name: None if text == NONE else parsed(text) for name, text in texts.items()}


def parsed(text: str) -> float:
    """A number of the page; what is told in seconds in milliseconds."""
    figure = float(text.removesuffix(" s").replace(",", ""))
    return round(1000 * figure, 2) if text.endswith(" s") else figure


def told(name: str, value: float) -> float:
    """A number of the API as the page tells it: seconds to the millisecond."""
    return float(round(value)) if name.endswith("_ms") and value >= 1000 else value


def until(page: Page, probe: Callable[[], object], what: str) -> None:
    """As `wait_until`, but the page goes on meanwhile."""
    for _ in range(200):
        if probe():
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"waited 20 s for {what}")


def alive(page: Page, seconds: float = 20.0) -> None:
    page.wait_for_selector("[data-state=live], [data-state=polling]", timeout=seconds * 1000)


def points(page: Page) -> list[int]:
    """How many points each chart has."""
    return [
        int(n)
        for n in page.eval_on_selector_all("#charts .chart", "l => l.map(e => e.dataset.points)")
    ]


def happened(page: Page) -> str:
    return page.locator("#events").inner_text()


def names(page: Page) -> list[str]:
    return page.eval_on_selector_all(".routes .path", "l => l.map(e => e.textContent)")


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
