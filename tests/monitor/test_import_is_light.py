"""`import metricsmw` brings psutil and little else: no web package, nothing heavy."""

from __future__ import annotations

from collections.abc import Callable

import pytest

LOOK = """
import sys
{first}
before = set(sys.modules)
import metricsmw
for name in sorted(set(sys.modules) - before):
    module = sys.modules[name]
    print(name, getattr(module, "__file__", None) or "built-in", sep="\\t")
"""

HEAVY = {
    "aiohttp",
    "asyncio",
    "concurrent",
    "ctypes",
    "django",
    "email",
    "fastapi",
    "flask",
    "http",
    "importlib.metadata",
    "matplotlib",
    "multiprocessing",
    "numpy",
    "orjson",
    "pandas",
    "pydantic",
    "requests",
    "sqlite3",
    "ssl",
    "starlette",
    "unittest",
    "urllib.request",
    "werkzeug",
    "wsgiref",
    "xml",
}


@pytest.fixture
def imported(run_python: Callable[..., str]) -> dict[str, str]:
    """What the import adds to an interpreter that has psutil already: name and file."""
    lines = run_python(LOOK.format(first="import psutil")).splitlines()
    return dict(tuple(line.split("\t")) for line in lines)  # type: ignore[misc]


def test_it_imports_nothing_heavy(imported: dict[str, str]) -> None:
    assert "metricsmw" in imported
    heavy = {name for name in imported if any(name == h or name.startswith(f"{h}.") for h in HEAVY)}
    assert heavy == set()


def test_it_imports_no_third_party_package_but_psutil(imported: dict[str, str]) -> None:
    third_party = {
        name
        for name, file in imported.items()
        if "site-packages" in file and name.partition(".")[0] not in ("metricsmw", "psutil")
    }
    assert third_party == set()


def test_it_imports_nothing_that_only_a_monitor_needs(imported: dict[str, str]) -> None:
    late = [f"metricsmw.engine.{room}" for room in ("storage", "recording", "files", "directory")]
    found = {name for name in imported if name.startswith(tuple(late))}
    assert found == set()


def test_wrap_is_imported_without_what_a_wrapped_app_needs(run_python: Callable[..., str]) -> None:
    late = ("api.policies", "measurement", "resolvers", "wsgi", "asgi")
    source = f"""
import sys
import metricsmw.adapters
print([name for name in {late} if "metricsmw.adapters." + name in sys.modules])
"""
    assert run_python(source) == "[]\n"


def test_it_imports_no_adapter(imported: dict[str, str]) -> None:
    assert [name for name in imported if name.startswith("metricsmw.adapters")] == []


def test_it_starts_no_thread_and_opens_no_file(run_python: Callable[..., str]) -> None:
    source = """
import os, psutil, threading
files = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
import metricsmw
now = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
print(threading.active_count(), len(now) - len(files))
"""
    assert run_python(source) == "1 0\n"


def test_the_public_names(run_python: Callable[..., str]) -> None:
    source = """
import metricsmw
print(*sorted({"MetricsMonitor", "MetricsSnapshot", "get_metrics_monitor"}
              - set(metricsmw.__all__)))
print(*(name for name in metricsmw.__all__ if not hasattr(metricsmw, name)))
print(metricsmw.__version__)
"""
    missing, dangling, version = run_python(source).split("\n")[:3]
    assert missing == dangling == ""
    assert [part.isdigit() for part in version.split(".")] == [True] * 3
