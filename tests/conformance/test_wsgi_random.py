"""Random WSGI applications, bare and measured: nobody can tell, and each counts once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from metricsmw import MetricsMonitor
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware
from metricsmw.clock import ManualClock

from .outcomes import assert_counted, faults
from .wsgi_programs import Program, Script, play, programs, scripts

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


@settings(max_examples=300)
@given(program=programs, script=scripts, times=st.sampled_from([1, 1, 2]))
def test_nobody_can_tell_and_it_counts_once(program: Program, script: Script, times: int) -> None:
    bare = play(program, script, ManualClock())
    assert bare.outcome is not None
    clock = ManualClock()
    with MetricsMonitor(clock=clock) as monitor, MetricsMonitor(clock=clock) as other:

        def wrap(app: WSGIApplication) -> WSGIApplication:
            for _ in range(times):
                app = WSGIMetricsMiddleware(app, monitor)
            return WSGIMetricsMiddleware(app, other) if times > 1 else app

        measured = play(program, script, clock, wrap)
        assert measured.events == bare.events
        assert_counted(monitor, bare.outcome)
        assert faults(monitor) == 0
        if times > 1:
            assert_counted(other, bare.outcome)
