"""A fault in the log: what failed, and nothing of what the app was doing."""

from __future__ import annotations

import pytest

from metricsmw.engine.faults import FaultLog


def test_it_tells_no_exception_that_the_app_was_handling(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("the app's secret")
    except ValueError:
        try:
            raise RuntimeError("of the metrics")
        except RuntimeError:
            FaultLog().report("this")
    assert "of the metrics" in caplog.text
    assert "secret" not in caplog.text
