"""Workers that start, record, fork, die, take over, reset and read, in whatever order.

Each always answers what a plain model of the whole server knows.

METRICSMW_LIFECYCLES: how many lives of a server are tried, 40 unless set.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from kits.reference import GLOBAL_BOUND, ROUNDING, is_near, nearest_rank

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.engine.reading.moment import Reading
from metricsmw.engine.storage.histogram import CEILING_SECONDS

WINDOW, STEP, ROUTE_STEP = 60, 1, 6
TIMEOUT = 90
MINUTE = 60.0
TICK = 0.125  # times are exact in binary

EXAMPLES = int(os.environ.get("METRICSMW_LIFECYCLES", "40"))

WORKER = st.integers(0, 4)


class Request(NamedTuple):
    """One recorded request."""

    at: float
    latency_ms: float
    is_error: bool
    route: str
    user: str


class Member:
    """A worker, and what it holds open."""

    def __init__(self, monitor: MetricsMonitor) -> None:
        self.monitor = monitor
        self.sockets = 0
        self.in_flight: list[float] = []


class Server(RuleBasedStateMachine):
    """Rules do the same to the workers and to the model; the invariant compares."""

    @initialize(start=st.sampled_from([0.0, 1000.0, 1003.5, 123_456.25]))
    def begin(self, start: float) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="metricsmw-test-")
        os.environ["METRICSMW_DIR"] = self.folder.name
        self.clock = ManualClock(start=start + TICK)
        self.members: list[Member] = []
        self.most = 0  # that lived at once
        self.requests: list[Request] = []
        self.origin = 0.0  # of the age and of the minutes; 0 before the first worker
        self.reset_at = -1.0
        self.seen: dict[str, float] = {}

    def member(self, number: int) -> Member:
        return self.members[number % len(self.members)]

    def alive(self, extra: int = 0) -> None:
        self.most = max(self.most, len(self.members) + extra)
        if not self.origin:
            self.origin = self.clock.now

    # --- life and death --------------------------------------------------------------------------

    @precondition(lambda self: len(self.members) < 5)
    @rule()
    def start(self) -> None:
        monitor = MetricsMonitor(
            WINDOW, shared=True, user_timeout_seconds=TIMEOUT, clock=self.clock
        )
        monitor.recorder.open()
        self.members.append(Member(monitor))
        self.alive()

    @precondition(lambda self: self.members)
    @rule(number=WORKER)
    def leave(self, number: int) -> None:
        self.member(number).monitor.close()
        self.members.remove(self.member(number))

    @precondition(lambda self: self.members)
    @rule(number=WORKER)
    def die(self, number: int) -> None:
        """As far as others can tell by SIGKILL: its lock goes, and nothing else is done."""
        monitor = self.member(number).monitor
        monitor.recorder.release()
        monitor.membership.abandon()
        self.members.remove(self.member(number))

    @precondition(lambda self: self.members)
    @rule(number=WORKER, times=st.integers(0, 5), user=st.sampled_from(["ada", "eve"]))
    def fork(self, number: int, times: int, user: str) -> None:
        """A process of its own, which is another worker as soon as it records; killed."""
        monitor = self.member(number).monitor
        child = os.fork()
        if child == 0:
            try:
                for _ in range(times):
                    monitor.record_request(7.0, user_id=user, method="GET", route="/child")
                monitor.increment_websocket_connections()
                assert monitor.get_websocket_connections() == self.sockets + 1
                os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        for _ in range(times):
            self.remember(7.0, False, "/child", user)
        self.alive(extra=1)

    # --- what workers do -------------------------------------------------------------------------

    def remember(self, latency_ms: float, is_error: bool, route: str, user: str) -> None:
        self.requests.append(Request(self.clock.now, latency_ms, is_error, route, user))
        self.seen[user] = self.clock.now

    @precondition(lambda self: self.members)
    @rule(
        number=WORKER,
        latency=st.sampled_from([0.5, 20.0, 20.0, 999.0]),
        status=st.sampled_from([200, 200, 404, 500]),
        route=st.sampled_from(["/a", "/b"]),
        user=st.sampled_from(["ada", "bob", "cyd"]),
        times=st.integers(1, 9),
    )
    def record(
        self, number: int, latency: float, status: int, route: str, user: str, times: int
    ) -> None:
        for _ in range(times):
            self.member(number).monitor.record_request(
                latency, user_id=user, method="GET", route=route, status=status
            )
            self.remember(latency, status >= 400, route, user)

    @precondition(lambda self: self.members)
    @rule(number=WORKER)
    def begin_request(self, number: int) -> None:
        member = self.member(number)
        member.in_flight.append(member.monitor.recorder.begin())

    @precondition(lambda self: any(member.in_flight for member in self.members))
    @rule()
    def end_request(self) -> None:
        member = next(member for member in self.members if member.in_flight)
        begun = member.in_flight.pop()
        # Values beyond the ends are counted there.
        latency = min(max(self.clock.now - begun, 1e-6), CEILING_SECONDS) * 1000
        member.monitor.recorder.end(begun, 200, "/slow", "GET")
        member.monitor.record_user_activity("slow")
        self.remember(latency, False, "/slow", "slow")

    @precondition(lambda self: self.members)
    @rule(number=WORKER, opened=st.booleans())
    def socket(self, number: int, opened: bool) -> None:
        member = self.member(number)
        if opened:
            member.monitor.increment_websocket_connections()
            member.sockets += 1
        else:
            member.monitor.decrement_websocket_connections()
            member.sockets = max(0, member.sockets - 1)

    @rule(seconds=st.sampled_from([TICK, 0.5, 1, 1, 5, 7, 30, 59, 60, 61, 90, 91, 400, 5000]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.members)
    @rule(number=WORKER)
    def reset(self, number: int) -> None:
        # Two workers' clocks never read the very same, as these do.
        self.clock.advance(TICK)
        self.member(number).monitor.reset_statistics()
        self.reset_at = self.origin = self.clock.now
        self.clock.advance(TICK)
        self.requests.clear()
        self.seen.clear()

    # --- what any of them tells ------------------------------------------------------------------

    @property
    def sockets(self) -> int:
        return sum(member.sockets for member in self.members)

    @invariant()
    def agree(self) -> None:
        for member in getattr(self, "members", []):
            reading = member.monitor.read(routes=True)
            self.agree_on_now(reading)
            self.agree_on_history(reading)
            health = reading.health
            assert health["status"] == "healthy"
            assert health["faults"] == 0
        if getattr(self, "members", []):
            files = list(Path(self.folder.name).glob("*/worker-*"))
            assert len(files) == self.most

    def agree_on_now(self, reading: Reading) -> None:
        now = self.clock.now
        snapshot = reading.snapshot
        assert snapshot.total_requests == len(self.requests)
        assert snapshot.total_errors == sum(request.is_error for request in self.requests)
        assert snapshot.workers == len(self.members)
        assert snapshot.websocket_connections == self.sockets
        assert snapshot.requests_in_flight == sum(len(m.in_flight) for m in self.members)
        begins = (now // STEP) * STEP - WINDOW
        kept = [request for request in self.requests if request.at >= begins]
        covered = min(now - begins, max(now - self.origin, float(WINDOW)))
        assert abs(snapshot.request_rate_rpm - 60 * len(kept) / covered) <= ROUNDING
        errors = sum(request.is_error for request in kept)
        assert abs(snapshot.error_rate_pct * len(kept) - 100 * errors) <= ROUNDING * len(kept)
        ordered = sorted(request.latency_ms for request in kept)
        told = (snapshot.latency_p50_ms, snapshot.latency_p95_ms, snapshot.latency_p99_ms)
        for percent, value in zip((50, 95, 99), told, strict=True):
            assert is_near(value, nearest_rank(ordered, percent), GLOBAL_BOUND)
        # Whoever did not reset knows the exact maximum again from its next step on.
        bound = GLOBAL_BOUND if self.reset_at > begins - STEP else 0.0
        assert is_near(snapshot.latency_max_ms, nearest_rank(ordered, 100), bound)
        begins = (now // ROUTE_STEP) * ROUTE_STEP - WINDOW
        routes = Counter(request.route for request in self.requests if request.at >= begins)
        assert {row["route"]: row["requests"] for row in reading.routes} == routes
        active = sorted(user for user, at in self.seen.items() if now - at <= TIMEOUT)
        assert reading.active_user_ids == active
        assert snapshot.active_users == len(active)

    def agree_on_history(self, reading: Reading) -> None:
        now = self.clock.now
        minutes = int((now - self.origin) // MINUTE)
        ends = [self.origin + minute * MINUTE for minute in range(1, minutes + 1)][-60:]
        history = reading.history(60)
        times = [datetime.fromisoformat(str(row["timestamp"])).timestamp() for row in history]
        assert times == [self.clock.wall - (now - end) for end in ends]
        totals = [sum(request.at < end for request in self.requests) for end in ends]
        assert [row["total_requests"] for row in history] == totals

    def teardown(self) -> None:
        for member in getattr(self, "members", []):
            member.monitor.close()
        if hasattr(self, "folder"):
            self.folder.cleanup()


TestServer = Server.TestCase
TestServer.settings = settings(max_examples=EXAMPLES, stateful_step_count=40)
