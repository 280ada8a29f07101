"""README and docs/ hold true: their commands, code, routes, fields, settings and links."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
from importlib.metadata import entry_points, metadata
from pathlib import Path

import pytest

import metricsmw
from metricsmw import MetricsMonitor, MetricsSnapshot
from metricsmw.adapters.api.answers import ROUTES
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.api.messages import Request
from metricsmw.adapters.auth import public
from metricsmw.cli import main as cli
from metricsmw.config import RANGES

ROOT = Path(__file__).parent.parent
NAMES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Settings that are no whole numbers.
NOT_NUMBERS = (
    "capture",
    "capture_threshold_seconds",
    "errors_from",
    "event_streams",
    "history",
    "name",
    "shared",
)
FIELDS = [field.name for field in dataclasses.fields(MetricsSnapshot)]


def python_blocks() -> dict[str, str]:
    """Return place -> source of each python block of the pages."""
    return {
        f"{page.name}:{page.read_text().count(chr(10), 0, match.start()) + 1}": match[2]
        for page in PAGES
        for match in FENCE.finditer(page.read_text())
        if match[1] == "python"
    }


def section(page: Path, title: str) -> str:
    """Return the text below the heading `title`, up to the next heading of its level or above."""
    level = title.split()[0]
    text = f"\n{page.read_text()}".split(f"\n{title}\n", 1)[1]
    return re.split(rf"^#{{1,{len(level)}}} ", text, maxsplit=1, flags=re.MULTILINE)[0]


def first_column(table: str) -> list[str]:
    """Return what stands in backticks in the first column of each row, in order."""
    rows = re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


@pytest.mark.parametrize("source", python_blocks().values(), ids=python_blocks())
def test_code_runs(source: str, tmp_path: Path) -> None:
    block = tmp_path / "block.py"
    block.write_text(source)
    environment = {name: os.environ[name] for name in os.environ if "METRICSMW" not in name}
    result = subprocess.run(
        [sys.executable, Path(__file__).with_name("run_block.py"), block],
        cwd=tmp_path,
        env={**environment, "METRICSMW_SHARED": "off"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


def test_the_two_commands_use_what_is_there() -> None:
    commands = [
        match[2].strip()
        for match in FENCE.finditer(section(ROOT / "README.md", "## Two commands"))
        if match[1] == "sh"
    ]
    demo, tests = commands
    assert demo.endswith('pip install -e ".[demo]" && .venv/bin/metricsmw demo')
    assert tests.endswith('pip install -e ".[dev]" && .venv/bin/pytest')
    assert {"demo", "dev"} <= set(metadata("metricsmw").get_all("Provides-Extra") or ())
    (script,) = entry_points(group="console_scripts", name="metricsmw")
    assert script.load() is cli.main
    assert "demo" in {command.name for command in cli.COMMANDS}


@pytest.mark.parametrize(
    "table",
    [
        section(ROOT / "README.md", "## Routes"),
        (ROOT / "docs" / "api.md").read_text().split("##")[0],
    ],
    ids=["README", "api"],
)
def test_the_route_tables_name_the_routes_there_are(table: str) -> None:
    documented = {route.partition("?")[0] for route in first_column(table)}
    served = {f"{method} {path}" for path, methods in ROUTES.items() for method in methods if path}
    assert documented == served


def test_the_numbers_page_explains_every_field_in_order() -> None:
    table = (ROOT / "docs" / "numbers.md").read_text().split("\n## ")[0]
    explained = first_column(table)
    assert [name for name in explained if name in FIELDS] == explained
    assert sorted(explained) == sorted(FIELDS)


@pytest.mark.parametrize(
    "title", re.findall(r"^## (`.+`)\n", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
)
def test_the_api_page_shows_the_answers_as_they_are(title: str) -> None:
    documented = FENCE.search(section(ROOT / "docs" / "api.md", f"## {title}"))
    method, path = title.strip("`").partition("?")[0].split("`")[0].split()
    with MetricsMonitor() as monitor:
        monitor.record_request(1.0, route="/items/{number}", method="GET", status=200)
        monitor.record_request(1.0, route="/items/{number}", method="GET", status=404)
        try:
            raise ZeroDivisionError
        except ZeroDivisionError as error:
            monitor.recorder.errors.raised(error, 500, "/items/{number}", "GET")
        response = Handlers(monitor, public()).handle(Request(method, path, "", {}))
    assert response.status == 200
    if documented is not None and documented[1] == "json":
        compare_shapes(json.loads(documented[2]), json.loads(response.body))


def compare_shapes(documented: object, real: object) -> None:
    """Assert the same fields in the same order; what is empty in the page may be anything."""
    if isinstance(documented, dict) and documented:
        assert isinstance(real, dict)
        assert list(documented) == list(real)
        for name, value in documented.items():
            compare_shapes(value, real[name])
    elif isinstance(documented, list) and documented:
        assert isinstance(real, list)
        compare_shapes(documented[0], real[0])


def test_the_core_page_lists_the_settings_with_defaults_and_ranges() -> None:
    table = section(ROOT / "docs" / "core.md", "## Settings").split("\nEnvironment")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|", table, re.MULTILINE)
    assert {name: default.strip("`") for name, default, _ in rows} == {
        parameter.name: str(parameter.default) if parameter.default != "" else '""'
        for parameter in inspect.signature(MetricsMonitor).parameters.values()
        if parameter.name != "clock"
    }
    assert {name: allowed for name, _, allowed in rows if name not in NOT_NUMBERS} == {
        name: f"{lowest} to {highest}" for name, (lowest, highest) in RANGES.items()
    }


def test_the_changelog_has_an_entry_for_this_version() -> None:
    assert f"\n## [{metricsmw.__version__}] - " in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if "://" not in target:
            file, _, heading = target.partition("#")
            file = file or page.name
            assert (page.parent / file).is_file(), target
            assert not heading or heading in headings(page.parent / file), target


def headings(page: Path) -> set[str]:
    """Return the anchors that the headings of a page have."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_every_page_can_be_found_from_the_readme() -> None:
    found, new = set(), {ROOT / "README.md"}
    while new:
        found |= new
        new = {
            (page.parent / target).resolve()
            for page in new
            for target in LINK.findall(page.read_text())
            if target.endswith(".md") and "://" not in target
        } - found
    assert found >= set(PAGES)
