"""The monitor against a plain model, in whatever order things may happen."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kits.reference import Event, assert_window

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock

ROUTES = [None, "/", "/a", "/b"]


class Model(RuleBasedStateMachine):
    """Rules do the same to the monitor and to lists and counters; invariants compare."""

    @initialize(window=st.sampled_from([10, 13, 60, 300, 3600]), start=st.floats(1, 1e6))
    def begin(self, window: int, start: float) -> None:
        self.window = window
        self.clock = ManualClock(start=start)
        self.monitor = MetricsMonitor(window, user_timeout_seconds=120, clock=self.clock)
        self.sockets = 0
        self.in_flight: list[float] = []
        self.forget()

    def forget(self) -> None:
        """What a reset does to the model: all but the gauges."""
        self.started = self.clock.monotonic()
        self.events: list[Event] = []
        self.routes: list[tuple[float, str]] = []
        self.users: dict[str, float] = {}

    def remember(self, latency_ms: float, is_error: bool, route: str | None) -> None:
        """One request into the model."""
        now = self.clock.monotonic()
        self.events.append(Event(now, latency_ms, is_error))
        self.routes.append((now, route or "<unmatched>"))

    @rule(
        latency=st.floats(0.001, 3_600_000),
        status=st.sampled_from([200, 301, 404, 500]),
        route=st.sampled_from(ROUTES),
        user=st.sampled_from([None, "ada", "bob"]),
        times=st.integers(1, 20),
    )
    def record(
        self, latency: float, status: int, route: str | None, user: str | None, times: int
    ) -> None:
        for _ in range(times):
            self.monitor.record_request(
                latency, user_id=user, method="GET", route=route, status=status
            )
            self.remember(latency, status >= 400, route)
        if user is not None:
            self.users[user] = self.clock.monotonic()

    @rule(latency=st.sampled_from([float("nan"), float("inf"), -1.0]))
    def record_nonsense(self, latency: float) -> None:
        try:
            self.monitor.record_request(latency, user_id="nobody", method="GET", route="/")
        except ValueError:
            return
        raise AssertionError("nonsense was taken")

    @rule(seconds=st.one_of(st.just(0.0), st.floats(0, 20), st.floats(0, 4000), st.floats(0, 1e7)))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(steps=st.integers(1, 70))
    def wait_whole_steps(self, steps: int) -> None:
        self.clock.advance(steps * self.window / 60)

    @rule()
    def reset(self) -> None:
        self.monitor.reset_statistics()
        self.forget()

    @rule(user=st.sampled_from(["ada", "cyd", "eve"]))
    def see(self, user: str) -> None:
        self.monitor.record_user_activity(user)
        self.users[user] = self.clock.monotonic()

    @rule()
    def open_socket(self) -> None:
        self.monitor.increment_websocket_connections()
        self.sockets += 1

    @rule()
    def close_socket(self) -> None:
        self.monitor.decrement_websocket_connections()
        self.sockets = max(0, self.sockets - 1)

    @rule()
    def begin_request(self) -> None:
        self.in_flight.append(self.monitor.recorder.begin())

    @precondition(lambda self: self.in_flight)
    @rule(status=st.sampled_from([200, 503]), route=st.sampled_from(ROUTES))
    def end_request(self, status: int, route: str | None) -> None:
        start = self.in_flight.pop()
        took = (self.clock.monotonic() - start) * 1000
        if 0.001 <= took <= 3_600_000:
            self.monitor.recorder.end(start, status, route, "GET")
            self.remember(took, status >= 400, route)
        else:
            self.monitor.recorder.cancel()

    @rule()
    def save(self) -> None:
        self.monitor.save_snapshot_to_history()
        assert self.monitor.get_metrics_history()[-1]["total_requests"] == len(self.events)

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "monitor"):
            return
        now = self.clock.monotonic()
        snapshot = self.monitor.get_current_snapshot()
        assert snapshot.total_requests == len(self.events)
        assert snapshot.total_errors == sum(event.is_error for event in self.events)
        assert snapshot.websocket_connections == self.sockets
        assert snapshot.requests_in_flight == len(self.in_flight)
        assert_window(snapshot, self.events, now=now, started=self.started, window=self.window)
        reported = set(self.monitor.get_active_user_ids())
        assert {u for u, at in self.users.items() if now - at <= 119} <= reported
        assert reported <= {u for u, at in self.users.items() if now - at <= 121}

    @invariant()
    def agree_on_routes(self) -> None:
        if not hasattr(self, "monitor"):
            return
        age = self.clock.monotonic()
        edge = 1e-6 + age * 1e-12
        surely = Counter(r for at, r in self.routes if age - at <= self.window - edge)
        perhaps = Counter(r for at, r in self.routes if age - at <= self.window * 1.1 + edge)
        reported = {row["route"]: row["requests"] for row in self.monitor.get_routes()}
        assert (
            set(surely)
            <= set(reported)
            <= set(perhaps) | {route for route, count in reported.items() if count == 0}
        )
        for route, count in reported.items():
            assert surely[route] <= count <= perhaps[route]

    def teardown(self) -> None:
        if hasattr(self, "monitor"):
            self.monitor.close()


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40)
