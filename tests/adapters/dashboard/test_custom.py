"""The page lists the app's own numbers, and draws the one that is chosen."""

from __future__ import annotations

from typing import Any

from kits.page import PATH, Window, alive, until
from kits.servers import Server
from playwright.sync_api import expect


def test_own_numbers_are_listed_and_drawn(watched: Server, window: Window) -> None:
    page = window.open(watched, signed_in=False)
    alive(page)
    watched.get("/ok")
    rows = page.locator("#custom-table tbody tr")
    expect(rows).to_have_count(3)

    def table() -> list[list[str]]:
        return [row.locator("th, td").all_inner_texts() for row in rows.all()]

    def api() -> list[Any]:
        return list(watched.get(f"{PATH}/custom").json()["custom"])

    until(page, lambda: table()[0][3] == str(api()[0]["value"]), "the counter's value")
    names = [row[0] for row in table()]
    assert names == ['orders{shop="north"}', "payment", "queue"]
    assert table()[1][:3] == ["payment", "histogram", "seconds"]
    assert table()[2][3] == "0.007"

    figure = page.locator("#custom-chart figure")
    for name, legend in (
        ('orders{shop="north"}', "a minute"),
        ("payment", "seconds"),
        ("queue", "Value 0.007"),
    ):
        page.get_by_role("button", name=name, exact=True).click()
        expect(figure).to_have_count(1)
        expect(figure.locator(".title")).to_contain_text(name)
        expect(figure.locator(".legend")).to_contain_text(legend)
    watched.get("/ok")
    page.get_by_role("button", name="payment", exact=True).click()
    expect(figure.locator(".legend")).to_contain_text("Mean 0.5")
    before = int(figure.get_attribute("data-points") or 0)
    until(page, lambda: int(figure.get_attribute("data-points") or 0) > before, "a point more")
    page.get_by_role("button", name="payment", exact=True).click()
    expect(figure).to_have_count(0)
