"""The page's evidence: which worker is sick, and the shape of latency."""

from __future__ import annotations

import os
import signal

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
    finally:
        os.kill(pid, signal.SIGCONT)
    expect(page.locator("#workers-table .sick")).to_have_count(0)

    page.locator("#workers summary").click()
    asked = window.asked("workers")
    looks = window.asked("routes")
    until(page, lambda: looks, "a look at the tables")
    assert not asked
    assert anew.get(f"{PATH}/workers", BEARER).status == 200
