"""What all tests share: no test sees another's state; a failing one shows its servers' output."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import pytest

from metricsmw import monitor
from metricsmw.clock import ManualClock
from metricsmw.engine.recording import recorder

TESTS = Path(__file__).resolve().parent
# The files that take minutes: where several processes share the tests, none is to begin with one
# of these as the others end.
LONG = [
    TESTS / name
    for name in (
        "dashboard/test_page.py",
        "conformance/test_frameworks_served.py",
        "alerts/test_servers.py",
        "workers/test_kills.py",
    )
]
sys.path.insert(0, str(TESTS))  # so that tests import their kits: `from kits.servers import serve`
pytest.register_assert_rewrite("kits")


def pytest_configure(config: pytest.Config) -> None:
    """Let a polite end (SIGTERM) run every `finally`: servers are stopped there."""
    runner = os.getpid()

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if os.getpid() == runner:
            raise KeyboardInterrupt
        signal.signal(signum, signal.SIG_DFL)
        signal.raise_signal(signum)

    signal.signal(signal.SIGTERM, interrupt)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path not in LONG)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach what the servers that outlive a failing test (those of fixtures) have printed."""
    report = yield
    if report.failed and (kit := sys.modules.get("kits.servers")):
        for server in kit.LIVE:
            report.sections.append((f"Output of {server.name}", server.output()))
    return report


@pytest.fixture(autouse=True)
def server_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test is a server of its own: another directory, another monitor, default settings."""
    for name in [name for name in os.environ if name.startswith("METRICSMW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(monitor, "_singleton", None)
    # What an earlier test has left for the garbage collector would open itself again in every
    # process that this one forks.
    recorder._recorders.clear()
    # Not tmp_path, whose teardown fails where a test is interrupted before it has begun.
    with TemporaryDirectory(prefix="metricsmw-test-") as folder:
        monkeypatch.setenv("METRICSMW_DIR", folder)
        yield
        if monitor._singleton is not None:
            monitor._singleton.close()


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still until the test moves it."""
    return ManualClock()
