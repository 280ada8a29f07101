"""What a file of the page's tests shares: one browser, and one server of each site."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kits.page import (
    ARGUMENTS,
    BEARER,
    ENVIRONMENT,
    PATH,
    ROOT,
    SITES,
    Window,
)
from kits.servers import APPS_ROOT, Server, missing, serve
from playwright.sync_api import (
    Browser,
    sync_playwright,
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # That without a screen takes a third less of the machine.
    names = ("chromium-headless-shell", "chromium")
    found = [os.environ.get("CHROMIUM"), *map(shutil.which, names)]
    chromium = next(filter(None, found), None)
    if chromium is None:
        missing("Chromium is not installed (Debian: apt-get install chromium-headless-shell)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=SITES)
def site(request: pytest.FixtureRequest) -> Iterator[Server]:
    with SITES[request.param](env=ENVIRONMENT) as server:
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


@pytest.fixture
def window(browser: Browser) -> Iterator[Window]:
    # The dot that breathes while the page lives would have every frame painted.
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    window = Window(context)
    yield window
    context.close()
    assert window.problems == []


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
