"""Take the pictures of the page that the documents show: `python docs/screenshots.py`.

Runs the demo on two workers with its own traffic, waits until the window is full, and takes the
page in Chromium: light, dark, on a phone, a route that is open, the errors by kind, the shape of
latency, and the workers, one of which is stopped. Needs
`metricsmw[dev]` and Chromium (Debian: `apt-get install chromium-headless-shell`).
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, TimeoutError, sync_playwright

IMAGES = Path(__file__).resolve().parent / "images"
LINE = re.compile(r'Authorization: Bearer (\S+)" (http://\S+/api/metrics/)current')


def main() -> None:
    """Take all pictures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--chromium", default="/usr/bin/chromium-headless-shell")
    options.add_argument("--seconds", type=int, default=310, help="of traffic before (%(default)s)")
    options.add_argument("--folder", type=Path, default=IMAGES)
    given = options.parse_args()
    given.folder.mkdir(exist_ok=True)
    command = ["-m", "metricsmw.cli.main", "demo", "--port", "0", "--rate", "40"]
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, text=True, cwd=Path.home()
    ) as demo:
        try:
            assert demo.stdout is not None
            found = next(filter(None, map(LINE.search, demo.stdout)))
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=given.chromium,
                    args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
                )
                take(browser, found[2], found[1], given.seconds, given.folder)
                browser.close()
        finally:
            demo.terminate()


def take(browser: Browser, url: str, token: str, seconds: int, folder: Path) -> None:
    """Open the page several times at once, wait, and take the pictures."""
    pages: dict[str, Page] = {}
    for name, width, height, scheme in (
        ("light", 1440, 1180, "light"),
        ("dark", 1440, 1180, "dark"),
        ("phone", 390, 1460, "light"),
        ("route", 1440, 2000, "light"),
    ):
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,  # type: ignore[arg-type]
            device_scale_factor=2 if name == "phone" else 1,
        )
        page = pages[name] = context.new_page()
        page.goto(url)
        page.get_by_label("Access token").fill(token)
        page.get_by_role("button", name="Sign in").click()
    pages["light"].wait_for_timeout(1000 * seconds)
    pages["light"].get_by_role("button", name="log scale").click()
    opened = pages.pop("route")
    opened.get_by_role("button", name="/stream").first.click()
    opened.wait_for_timeout(1500)
    for name, part in (("route", "routes-table"), ("errors", "errors-list")):
        section = opened.locator("section", has=opened.locator(f"#{part}"))
        section.screenshot(path=folder / f"dashboard-{name}.png")
    opened.evaluate("document.querySelector('.bar').style.position = 'static'")
    opened.locator("#shape").screenshot(path=folder / "dashboard-shape.png")
    take_workers(opened, folder / "dashboard-workers.png")
    for name, page in pages.items():
        # Nobody should wonder whose address that is.
        page.evaluate("document.getElementById('host').textContent = 'shop.example'")
        page.evaluate("scrollTo(0, 0)")
        path = folder / f"dashboard-{name}.png"
        if name == "phone":
            page.screenshot(path=path)
            continue
        last = page.locator("#shape .heatmap").bounding_box()  # the rest has pictures of its own
        assert last is not None
        bottom = last["y"] + last["height"] + 24
        page.screenshot(
            path=path, full_page=True, clip={"x": 0, "y": 0, "width": 1440, "height": bottom}
        )


def take_workers(page: Page, path: Path) -> None:
    """Take the table of the workers while one of them is stopped, which does not feed the page."""
    for pid in map(int, page.locator("#workers-table tbody th").all_inner_texts()):
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(2):  # an opened card asks at once: uvicorn soon replaces such a worker
                page.locator("#workers summary").click()
            page.locator("#workers-table .sick").wait_for(timeout=2_000)
            page.locator("#workers").screenshot(path=path)
            return
        except TimeoutError:
            continue
        finally:
            os.kill(pid, signal.SIGCONT)


if __name__ == "__main__":
    main()
