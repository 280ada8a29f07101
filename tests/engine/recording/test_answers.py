"""Exact statuses: whatever is recorded, all statuses of a route together are the route."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from metricsmw import MetricsMonitor
from metricsmw.clock import ManualClock
from metricsmw.engine.storage.keys import OTHER, Times
from metricsmw.engine.storage.lanes import in_use
from metricsmw.engine.storage.layout import MAX_ANSWERS

Totals = Counter[tuple[str, str, int]]

requests = st.tuples(
    st.sampled_from(["GET", "POST"]),
    st.sampled_from(["/a", "/b", None]),
    st.sampled_from([200, 201, 204, 302, 404, 418, 500, 503]),
    st.sampled_from([0.0001, 0.5, 12.5, 80.0, 4000.0, 10_000_000.0]),
)


def totals(monitor: MetricsMonitor) -> Totals:
    """What was counted since the reset, by method, route and status."""
    found: Totals = Counter()
    for total in monitor.read().server.route_totals():
        if total.name.times is Times.ALL:
            count = sum(in_use(total.histogram)[1])
            found[total.name.method, total.name.route, total.answer.status] += count
    return +found


def window(monitor: MetricsMonitor) -> Totals:
    """What the window has, by method, route and status."""
    found: Totals = Counter()
    for row in monitor.get_routes():
        codes = row["status_codes"]
        by_class = Counter[str]()
        for status, count in codes.items():
            found[row["method"], row["route"], int(status)] += count
            by_class[f"{status[0]}xx"] += count
        assert by_class == row["statuses"]
        assert sum(codes.values()) == row["requests"]
    return found


@given(st.lists(requests, max_size=60), st.integers(0, 60))
def test_every_status_is_counted_exactly(
    sent: list[tuple[str, str | None, int, float]], reset_after: int
) -> None:
    with MetricsMonitor(60, clock=(clock := ManualClock())) as monitor:
        counted: Totals = Counter()
        for number, (method, route, status, latency) in enumerate(sent):
            if number == reset_after:
                monitor.reset_statistics()
                counted.clear()
            monitor.record_request(latency, method=method, route=route, status=status)
            counted[method, "<unmatched>" if route is None else route, status] += 1
            clock.advance(0.01)
        assert totals(monitor) == counted
        assert window(monitor) == counted
        clock.advance(200)
        assert totals(monitor) == counted
        assert window(monitor) == Counter()


# Not more than a route has rows of answers.
answers = st.tuples(
    st.sampled_from(["/a", "/b"]),
    st.sampled_from([(200, "complete"), (404, "complete"), (500, "failed"), (200, "by hand")]),
    st.sampled_from(["http", "https", "gopher"]),
)


@given(st.lists(answers, max_size=60), st.integers(0, 60), st.integers(0, 60))
def test_every_scheme_is_counted_apart(
    sent: list[tuple[str, tuple[int, str], str]], reset_after: int, left_after: int
) -> None:
    with MetricsMonitor(60, clock=(clock := ManualClock())) as monitor:
        counted: Counter[tuple[str, int, str]] = Counter()
        plain: dict[str, str] = {}
        for number, (route, (status, how), scheme) in enumerate(sent):
            if number == reset_after:
                monitor.reset_statistics()
                counted.clear()
            if number == left_after:
                monitor.recorder.release()
            recorder = monitor.recorder
            start = recorder.begin()
            clock.advance(0.01)
            if how == "failed":
                recorder.fail(start, status, route, "GET", "KeyError", scheme=scheme)
            elif how == "complete":
                recorder.end(start, status, route, "GET", scheme=scheme)
            else:
                recorder.cancel()
                monitor.record_request(10.0, method="GET", route=route, status=status)
                scheme = ""
            told = "_OTHER" if scheme == "gopher" else scheme
            # What says nothing of its scheme is taken for one of the route's first request.
            counted[route, status, told or plain.setdefault(route, told)] += 1
            plain.setdefault(route, told)
        found: Counter[tuple[str, int, str]] = Counter()
        for total in monitor.read().server.route_totals():
            count = sum(in_use(total.histogram)[1])
            found[total.name.route, total.answer.status, total.answer.scheme] += count
        assert +found == counted
        assert sum(window(monitor).values()) == counted.total()


def test_past_the_maximum_statuses_share_a_row(monitor: MetricsMonitor) -> None:
    statuses = range(400, 400 + MAX_ANSWERS + 5)
    for status in statuses:
        monitor.record_request(1.0, method="GET", route="/", status=status)
    monitor.record_request(1.0, method="GET", route="/", status=503)
    (row,) = monitor.get_routes()
    assert row["requests"] == len(statuses) + 1
    assert row["statuses"] == {"4xx": len(statuses), "5xx": 1}
    assert len(row["status_codes"]) == MAX_ANSWERS
    assert totals(monitor)["GET", "/", 0] == 6
    assert sum(totals(monitor).values()) == len(statuses) + 1


def test_a_row_that_was_quiet_for_a_window_goes_to_another_route(clock: ManualClock) -> None:
    with MetricsMonitor(60, max_routes=20, clock=clock) as monitor:
        for number in range(30):
            monitor.record_request(1.0, method="GET", route=f"/junk/{number}", status=404)
        monitor.record_request(5.0, method="POST", route="/checkout", status=200)
        assert totals(monitor)["POST", OTHER, 200] == 1
        clock.advance(80)
        for status in (201, 404, 404):
            monitor.record_request(5.0, method="POST", route="/checkout", status=status)
        assert window(monitor) == {("POST", "/checkout", 201): 1, ("POST", "/checkout", 404): 2}
        (row,) = monitor.get_routes()
        assert row["latency_max_ms"] == 5.0
        found = totals(monitor)
        assert found["POST", "/checkout", 404] == 2
        assert found["GET", OTHER, 404] == 11
        assert sum(found.values()) == monitor.total_requests == 34


def test_a_row_that_counts_keeps_its_name(clock: ManualClock) -> None:
    with MetricsMonitor(60, max_routes=2, clock=clock) as monitor:
        for _ in range(3):
            clock.advance(40)
            for route in ("/a", "/b", "/c"):
                monitor.record_request(1.0, method="GET", route=route, status=200)
        assert totals(monitor) == {
            ("GET", "/a", 200): 3,
            ("GET", "/b", 200): 3,
            ("GET", OTHER, 200): 3,
        }


def test_after_a_reset_all_rows_are_given_back(monitor: MetricsMonitor) -> None:
    for number in range(300):
        monitor.record_request(1.0, method="GET", route=f"/junk/{number}", status=200)
    monitor.reset_statistics()
    monitor.record_request(1.0, method="GET", route="/checkout", status=200)
    assert window(monitor) == {("GET", "/checkout", 200): 1}
    assert totals(monitor) == {("GET", "/checkout", 200): 1}


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([200, 404])), max_size=80))
def test_totals_stay_exact_as_rows_go_round(sent: list[tuple[int, int]]) -> None:
    with MetricsMonitor(10, max_routes=3, clock=(clock := ManualClock())) as monitor:
        counted = Counter[int]()
        before: dict[tuple[str, str, int], int] = {}
        for route, status in sent:
            monitor.record_request(1.0, method="GET", route=f"/{route}", status=status)
            counted[status] += 1
            clock.advance(4)
            found = totals(monitor)
            by_status = Counter[int]()
            for (_, _, code), count in found.items():
                by_status[code] += count
            assert by_status == counted
            # What is of <other> never becomes less.
            other = {key: count for key, count in found.items() if key[1] == OTHER}
            assert all(other.get(key, 0) >= count for key, count in before.items())
            before = other
