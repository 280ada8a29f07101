"""Fixtures of the core's tests: a clock moved by hand, a monitor on it, a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import metricsmw
from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    """A clock that moves only when told; its wall time is no whole minute."""
    return ManualClock(start=1000.0, wall=1_700_000_000.0)


@pytest.fixture
def monitor(clock: ManualClock) -> Iterator[MetricsMonitor]:
    """A private monitor with the default settings on the manual clock."""
    with MetricsMonitor(clock=clock) as monitor:
        yield monitor


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., str]:
    """Run source code in a fresh interpreter that imports the same metricsmw; its stdout.

    The server-wide monitor keeps its segments below the test's own folder.
    """

    def run(source: str, **environment: str) -> str:
        groups = tmp_path / "groups"
        groups.mkdir(mode=0o700, exist_ok=True)
        package_parent = str(Path(metricsmw.__file__).parents[1])
        done = subprocess.run(
            [sys.executable, "-c", source],
            env={
                **os.environ,
                "PYTHONPATH": package_parent,
                "METRICSMW_DIR": str(groups),
                **environment,
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
