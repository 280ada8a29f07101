"""The page says what /health knows to be wrong with the measuring itself."""

from __future__ import annotations

import json

from kits.page import PATH, Window, alive, faults, until
from kits.servers import serve
from playwright.sync_api import Route, expect

from metricsmw.engine.reading.components import left_out
from metricsmw.engine.storage.header import OTHER_VERSION


def test_one_worker_of_a_server_that_nothing_measures(window: Window, axe: str) -> None:
    window.forgiven = lambda text: "status of 503" in text
    environment = {"METRICSMW_SHARED": "off"}
    with serve("gunicorn", "apps.bare:app", workers=3, env=environment) as server:
        page = window.open(server, signed_in=False)
        alive(page)
        banners = page.locator("#banners .banner")
        expect(banners).to_have_count(2)
        assert banners.first.inner_text() == (
            "You see one worker of 3. These numbers are those of the worker that answers: "
            "METRICSMW_SHARED is off."
        )
        assert "Nothing is measured here." in banners.last.inner_text()
        assert faults(page, axe) == []

        def worse(route: Route) -> None:
            health = json.loads(route.fetch().text())
            health["components"]["alerts"] = "failing: <b>no receiver</b>"
            health["components"]["request_tracking"] = left_out(["truncated", OTHER_VERSION])
            route.fulfill(status=503, json={**health, "mode": "shared", "status": "degraded"})

        page.route(f"**{PATH}/health", worse)
        until(page, lambda: "Requests:" in page.locator("#banners").inner_text(), "what is worse")
        texts = banners.all_inner_texts()
        assert texts[0].startswith("Nothing is measured")
        reasons = "1 damaged segments left out; 1 segments of workers of another version left out"
        assert texts[1:] == [
            f"Requests: {reasons}.",
            "alerts: failing: <b>no receiver</b>.",
        ]
        page.unroute_all(behavior="wait")
        page.close()
