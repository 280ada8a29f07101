"""The clock that tests move by hand, and the one that nobody moves."""

from __future__ import annotations

import time

import pytest

from metricsmw.clock import SYSTEM_CLOCK, ManualClock


def test_it_stands_still_until_it_is_moved() -> None:
    clock = ManualClock(start=50.0, wall=1_000_000.0)
    assert (clock.monotonic(), clock.time()) == (50.0, 1_000_000.0)
    clock.advance(2.5)
    clock.advance(0)
    assert (clock.monotonic(), clock.time()) == (52.5, 1_000_002.5)


def test_it_does_not_go_back() -> None:
    clock = ManualClock(start=50.0)
    with pytest.raises(ValueError, match=r"-0\.5"):
        clock.advance(-0.5)
    assert clock.monotonic() == 50.0


def test_the_systems_clock_is_monotonic_and_tells_unix_time() -> None:
    readings = [SYSTEM_CLOCK.monotonic() for _ in range(1000)]
    assert readings == sorted(readings)
    assert readings[0] > 0
    before, now, after = time.time(), SYSTEM_CLOCK.time(), time.time()
    assert before <= now <= after
