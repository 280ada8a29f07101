"""Random ASGI applications, bare and measured: nobody can tell, and each counts once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from metricsmw import MetricsMonitor
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.clock import ManualClock

from .asgi_programs import Program, Script, play, programs, scripts
from .outcomes import assert_counted, faults

if TYPE_CHECKING:
    from metricsmw.adapters.types import ASGIApp


@settings(max_examples=300)
@given(program=programs, script=scripts, times=st.sampled_from([1, 1, 2]))
def test_nobody_can_tell_and_it_counts_once(program: Program, script: Script, times: int) -> None:
    bare = play(program, script, ManualClock())
    assert bare.outcome is not None
    clock = ManualClock()
    with MetricsMonitor(clock=clock) as monitor, MetricsMonitor(clock=clock) as other:

        def wrap(app: ASGIApp) -> ASGIApp:
            if times > 1:
                app = ASGIMetricsMiddleware(app, other)
            for _ in range(times):
                app = ASGIMetricsMiddleware(app, monitor)
            return app

        measured = play(program, script, clock, wrap)
        assert measured.events == bare.events
        assert_counted(monitor, bare.outcome)
        assert faults(monitor) == 0
        if times > 1:  # whose middleware cannot ask the server about its client
            assert other.total_requests == (bare.outcome.kind != "excluded")
            assert other.get_current_snapshot().requests_in_flight == 0
