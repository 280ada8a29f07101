"""Server-sent events: one reading a second for all listeners, resumed, and over with the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from metricsmw import MetricsMonitor
from metricsmw.adapters.api.asgi_app import sub_app
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.api.messages import Request
from metricsmw.adapters.api.off_loop import OFF_LOOP
from metricsmw.adapters.api.sse import HEARTBEAT, Pace, Streams
from metricsmw.adapters.auth import Policy, public, token
from metricsmw.adapters.servers import SERVERS, Server
from metricsmw.alerts import MetricsAlerter
from metricsmw.engine.reading.moment import Reading

WAIT = 20.0


@pytest.fixture
def monitor() -> Iterator[MetricsMonitor]:
    with MetricsMonitor(10) as monitor:
        yield monitor


class Toy:
    """The server that runs the event loops of these tests."""

    is_ending = False


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    """A server that is known by this module, whose code is at work in every loop here."""
    toy = Toy()
    entry = Server(
        "toy",
        frozenset({__name__}),
        loop_modules=frozenset({__name__}),
        loop_owner=lambda variables: toy,
        is_ending=lambda owner: owner.is_ending,
    )
    monkeypatch.setitem(SERVERS, "toy", entry)
    return toy


QUICK = Pace(every=0.05, look_every=0.02)


def quick_app(monitor: MetricsMonitor, policy: Policy, pace: Pace = QUICK) -> Any:
    """Return the sub-app as `metrics_app` makes it, but with quicker streams."""
    return sub_app(Handlers(monitor, policy, OFF_LOOP), Streams(monitor, pace))


class Client:
    """One listener of the sub-app."""

    def __init__(self, app: Any, headers: dict[str, str] | None = None) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.complete = False
        self.news = asyncio.Event()
        self.leaving = asyncio.Event()
        self.scope = {
            "type": "http",
            "method": "GET",
            "path": "/stream",
            "root_path": "",
            "query_string": b"",
            "headers": [(k.encode(), v.encode()) for k, v in (headers or {}).items()],
        }
        self.task = asyncio.create_task(app(self.scope, self.receive, self.send))

    async def receive(self) -> dict[str, Any]:
        await self.leaving.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            self.body += message["body"]
            self.complete = not message.get("more_body", False)
        self.news.set()

    @property
    def events(self) -> list[dict[str, str]]:
        """The events so far, each by its fields."""
        blocks = self.body.decode().split("\n\n")[:-1]
        split = [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]
        return [block for block in split if "data" in block]

    @property
    def updates(self) -> list[dict[str, Any]]:
        return [json.loads(event["data"]) for event in self.events]

    async def until(self, probe: Callable[[], object]) -> None:
        async def look() -> None:
            while not probe():
                self.news.clear()
                await self.news.wait()

        await asyncio.wait_for(look(), WAIT)

    async def leave(self) -> None:
        self.leaving.set()
        await asyncio.wait_for(self.task, WAIT)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))  # type: ignore[arg-type]


def test_what_a_listener_gets(monitor: MetricsMonitor) -> None:
    async def test() -> None:
        monitor.record_request(5.0, route="/a", method="GET", status=200)
        alerter = MetricsAlerter(monitor, rules=["total_requests > 0"], start=False)
        alerter.check()
        client = Client(quick_app(monitor, public()))
        await client.until(lambda: len(client.events) >= 12)
        assert client.status == 200
        assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert client.headers["cache-control"] == "no-store, no-transform"
        assert client.body.startswith(b"retry: 1000\n\n")
        first = client.updates[0]
        assert first["metrics"]["total_requests"] == 1
        assert first["routes"] == json.loads(json.dumps(monitor.get_routes()))
        assert (first["window_seconds"], first["reset"]) == (10, None)
        assert first["alerts"] == alerter.get_alerts()
        assert first["alerts"][0]["state"] == "firing"
        # The tables come with every fifth update.
        assert first["first_bytes"] == monitor.read().first_bytes_ms
        for name in ("routes", "first_bytes", "alerts"):
            assert [name in update for update in client.updates[:11]] == [
                number % 5 == 0 for number in range(11)
            ]
        await client.leave()

    run(test)


def test_each_step_comes_once(monitor: MetricsMonitor) -> None:
    async def test() -> None:
        client = Client(quick_app(monitor, public()))
        for _ in range(40):
            monitor.record_request(1.0)
            await asyncio.sleep(0.02)
        await client.until(lambda: sum(len(u["series"]) for u in client.updates) >= 6)
        steps = [row["step"] for update in client.updates for row in update["series"]]
        assert steps == list(range(steps[0], steps[0] + len(steps)))
        assert [int(event["id"]) for event in client.events] == [
            max(
                (s for u in client.updates[: n + 1] for s in (r["step"] for r in u["series"])),
                default=0,
            )
            for n in range(len(client.events))
        ]
        await client.leave()

    run(test)


def test_a_hundred_listeners_read_the_metrics_as_often_as_one(
    monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        readings = 0
        read = monitor.read

        def counted(**asked: bool) -> Reading:
            nonlocal readings
            readings += 1
            return read(**asked)

        monkeypatch.setattr(monitor, "read", counted)
        app = quick_app(monitor, public())
        clients = [Client(app) for _ in range(100)]
        for client in clients:
            await client.until(lambda: len(client.events) >= 10)  # noqa: B023
        most = max(len(client.events) for client in clients)
        assert 10 <= most <= readings + 1
        assert readings <= most + 2
        # Of one reading all get the same bytes.
        last = [client.body.split(b"\n\n")[9] for client in clients]
        assert len(set(last)) == 1
        for client in clients[1:]:
            await client.leave()
        await clients[0].until(lambda: len(clients[0].events) >= most + 2)
        await clients[0].leave()
        before = readings
        await asyncio.sleep(0.2)
        assert readings == before, "somebody still reads, and nobody listens"
        again = Client(app)
        await again.until(lambda: len(again.events) >= 2)
        await again.leave()

    run(test)


def test_a_client_that_comes_back_gets_the_steps_since(monitor: MetricsMonitor) -> None:
    async def test() -> None:
        app = quick_app(monitor, public())
        monitor.record_request(1.0)
        first = Client(app)
        await first.until(lambda: int(first.events[-1]["id"]) > 0 if first.events else False)
        told = first.events[-1]["id"]
        await first.leave()
        stays = Client(app)
        await stays.until(lambda: stays.events and int(stays.events[-1]["id"]) > int(told) + 3)
        back = Client(app, {"last-event-id": told})
        await back.until(lambda: back.events)
        assert [row["step"] for row in back.updates[0]["series"]][:3] == [
            int(told) + number for number in (1, 2, 3)
        ]
        for bad in ("", "x", "-1", "9" * 14, "9" * 5000, "²"):
            anew = Client(app, {"last-event-id": bad} if bad != "²" else {})
            await anew.until(lambda: anew.events)  # noqa: B023
            assert anew.updates[0]["series"][0]["step"] <= int(told)
            await anew.leave()
        for client in (stays, back):
            await client.leave()

    run(test)


def test_after_a_reset_the_listeners_are_told_so(monitor: MetricsMonitor) -> None:
    async def test() -> None:
        client = Client(quick_app(monitor, public()))
        monitor.record_request(1.0)
        await client.until(lambda: client.updates and client.updates[-1]["series"])
        assert client.updates[-1]["reset"] is None
        monitor.reset_statistics()
        await client.until(lambda: client.updates[-1]["reset"])
        await client.until(lambda: client.updates[-1]["series"])
        assert client.updates[-1]["metrics"]["total_requests"] == 0
        steps = [row["step"] for update in client.updates for row in update["series"]]
        assert steps == sorted(set(steps))
        await client.leave()

    run(test)


def test_a_listener_that_is_slow_skips(monitor: MetricsMonitor) -> None:
    async def test() -> None:
        app = quick_app(monitor, public())
        quick = Client(app)
        # Else the first event has no steps yet, and none could be missing after it.
        await quick.until(lambda: sum(len(u["series"]) for u in quick.updates) >= 2)
        slow = Client(app)
        before = len(quick.events)
        gate = asyncio.Event()
        send = slow.send

        async def held(message: Any) -> None:
            if slow.events:
                await gate.wait()
            await send(message)

        slow.send = held  # type: ignore[method-assign]
        slow.task.cancel()
        slow.task = asyncio.create_task(app(slow.scope, slow.receive, held))
        await quick.until(lambda: len(quick.events) >= before + 25)
        assert len(slow.events) <= 1
        gate.set()
        await slow.until(lambda: len(slow.events) >= 6)
        steps = [row["step"] for update in slow.updates for row in update["series"]]
        assert steps == list(range(steps[0], steps[0] + len(steps))), "steps are missing"
        assert len(slow.events) < len(quick.events) - before - 10
        for client in (quick, slow):
            await client.leave()

    run(test)


def test_a_fault_is_a_heartbeat_and_passes(
    monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        client = Client(quick_app(monitor, public()))
        await client.until(lambda: client.events)

        def broken(**asked: bool) -> Any:
            raise RuntimeError("broken")

        with monkeypatch.context() as patch:
            patch.setattr(monitor, "read", broken)
            await client.until(lambda: HEARTBEAT in client.body)
        events = len(client.events)
        await client.until(lambda: len(client.events) > events)
        await client.leave()

    run(test)


def test_it_ends_with_the_server(monitor: MetricsMonitor, toy: Toy) -> None:
    async def test() -> None:
        clients = [Client(quick_app(monitor, public())) for _ in range(3)]
        for client in clients:
            await client.until(lambda: client.events)  # noqa: B023
        assert not any(client.complete for client in clients)
        toy.is_ending = True
        for client in clients:
            await asyncio.wait_for(client.task, WAIT)
            assert client.complete

    run(test)


def test_servers_beside_and_after_each_other_in_one_loop(
    monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = replace(SERVERS["toy"], loop_owner=lambda variables: variables.get("serving"))
    monkeypatch.setitem(SERVERS, "toy", entry)

    async def serve(serving: Toy) -> None:
        while not serving.is_ending:
            await asyncio.sleep(0.01)

    async def test() -> None:
        app, servers = quick_app(monitor, public()), [Toy(), Toy()]
        tasks, clients = [], []
        for server in servers:
            tasks.append(asyncio.create_task(serve(server)))
            await asyncio.sleep(0)
            clients.append(Client(app))
            await clients[-1].until(lambda: clients[-1].events)
        for server in reversed(servers):
            server.is_ending = True
            await asyncio.wait_for(clients[-1].task, WAIT)
            clients.append(Client(app))
            if server is servers[1]:  # the other one goes on
                await clients[-1].until(lambda: len(clients[-1].events) >= 3)
        await asyncio.gather(*tasks, *(client.task for client in clients))
        assert all(client.complete for client in clients)

    run(test)


def test_it_ends_soon_where_the_server_does_not_tell_of_its_end(
    monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SERVERS, "toy", replace(SERVERS["toy"], is_ending=None))
    run(partial(ends_by_itself, monitor, QUICK._replace(untold_lifetime=0.1)))


def test_a_loop_that_no_known_server_runs_is_offered_no_stream(
    monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(SERVERS, "toy")

    async def test() -> None:
        client = Client(quick_app(monitor, public()))
        await asyncio.wait_for(client.task, WAIT)
        assert client.status == 406

    run(test)


async def ends_by_itself(monitor: MetricsMonitor, pace: Pace) -> None:
    client = Client(quick_app(monitor, public(), pace))
    await asyncio.wait_for(client.task, WAIT)
    assert client.complete
    assert client.status == 200


def test_it_ends_when_its_time_is_up(monitor: MetricsMonitor) -> None:
    run(partial(ends_by_itself, monitor, QUICK._replace(lifetime=0.1)))


class Connection:
    """A connection with bytes that the client has not read."""

    def __init__(self, unread: int) -> None:
        self.unread = unread
        self.dropped = asyncio.Event()

    def get_write_buffer_size(self) -> int:
        return self.unread

    def abort(self) -> None:
        self.unread = 0
        self.dropped.set()


class StuckClient(Client):
    """One that takes so many messages, and then reads no more."""

    def __init__(self, app: Any, takes: float, unread: int = 0) -> None:
        self.connection = Connection(unread)
        self.takes = takes
        super().__init__(app)
        self.scope["http_version"] = "1.1"

    async def send(self, message: Any) -> None:
        if not self.takes:
            await asyncio.Event().wait()
        self.takes -= 1
        await super().send(message)


@pytest.mark.parametrize("takes", [0, 1, 2, 4])
def test_a_client_that_does_not_read_is_given_up(
    monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch, takes: int
) -> None:
    with_transport = replace(SERVERS["toy"], transport=lambda client: client.connection)
    monkeypatch.setitem(SERVERS, "toy", with_transport)

    async def test() -> None:
        streams = Streams(monitor, QUICK._replace(patience=0.1))
        app = sub_app(Handlers(monitor, public(), OFF_LOOP), streams)
        others = Client(app)
        stuck = StuckClient(app, takes)
        await asyncio.wait_for(stuck.task, WAIT)
        assert stuck.connection.dropped.is_set()
        assert streams.open == 1
        assert not others.complete
        await others.leave()
        assert streams.open == 0

    run(test)


def test_what_a_client_leaves_unread_at_the_end_holds_up_no_server(
    monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch, toy: Toy
) -> None:
    with_transport = replace(SERVERS["toy"], transport=lambda client: client.connection)
    monkeypatch.setitem(SERVERS, "toy", with_transport)

    async def test() -> None:
        streams = Streams(monitor, QUICK._replace(patience=0.1))
        app = sub_app(Handlers(monitor, public(), OFF_LOOP), streams)
        clients = [StuckClient(app, float("inf"), unread) for unread in (0, 1)]
        for client in clients:
            await client.until(lambda: client.events)  # noqa: B023
        toy.is_ending = True
        for client in clients:
            await asyncio.wait_for(client.task, WAIT)
            assert client.complete
        assert [client.connection.dropped.is_set() for client in clients] == [False, True]
        assert streams.open == 0

    run(test)


def test_cancelling_leaves_nothing_behind(monitor: MetricsMonitor) -> None:
    async def test() -> None:
        client = Client(quick_app(monitor, public()))
        await client.until(lambda: client.events)
        client.task.cancel()
        await asyncio.wait({client.task})
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(test())


def test_only_for_those_who_are_let_in(monitor: MetricsMonitor) -> None:
    async def test() -> None:
        client = Client(quick_app(monitor, token("secret")))
        await asyncio.wait_for(client.task, WAIT)
        assert client.status == 401
        assert client.complete

    run(test)


def test_without_a_host_that_can_stream_it_says_so(monitor: MetricsMonitor) -> None:
    answer = Handlers(monitor, public()).handle(Request("GET", "/stream", "", {}))
    assert answer.status == 406
    assert "poll /current" in json.loads(answer.body)["error"]
