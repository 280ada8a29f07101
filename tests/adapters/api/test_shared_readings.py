"""All who ask at once share one reading, and no answer is older than its question."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from metricsmw import MetricsMonitor
from metricsmw.adapters.api.answers import ROUTES, Shared
from metricsmw.adapters.api.asgi_app import sub_app
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.api.messages import Request
from metricsmw.adapters.api.off_loop import OFF_LOOP
from metricsmw.adapters.api.readings import IN_THIS_THREAD, Question, ThreadReadings
from metricsmw.adapters.api.sse import Streams
from metricsmw.adapters.auth import public
from metricsmw.engine.reading.moment import Reading
from metricsmw.engine.reading.server import ServerReader, ServerReading
from metricsmw.engine.storage.reader import Period
from metricsmw.engine.workers.group import Group

CLIENTS = 30
ALL = sorted(path for path, by in ROUTES.items() if isinstance(by.get("GET"), Shared))
GET = sorted(path for path, methods in ROUTES.items() if "GET" in methods and path != "/stream")
WAIT = 20.0


@pytest.fixture
def monitor() -> Iterator[MetricsMonitor]:
    with MetricsMonitor() as monitor:
        monitor.record_request(1.0, method="GET", route="/a")
        yield monitor


class Readings:
    """All readings of a server, and the threads that make them; a gate holds them up."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()

    def __len__(self) -> int:
        return len(self.threads)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Readings:
    readings = Readings()
    real = ServerReader.read

    def read(
        self: ServerReader, group: Group, period: Period, *, routes: bool = False
    ) -> ServerReading:
        readings.threads.append(threading.get_ident())
        found = real(self, group, period, routes=routes)
        readings.begun.set()
        assert readings.gate.wait(WAIT)
        return found

    monkeypatch.setattr(ServerReader, "read", read)
    return readings


def asgi(monitor: MetricsMonitor) -> Any:
    return sub_app(Handlers(monitor, public(), OFF_LOOP), Streams(monitor))


async def ask(app: Any, path: str, method: str = "GET", query: str = "") -> tuple[int, Any]:
    """Return the status and the body."""
    status, body = 0, b""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        nonlocal status, body
        status = message.get("status", status)
        body += message.get("body", b"")

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [],
        "query_string": query.encode(),
    }
    await app(scope, receive, send)
    return status, json.loads(body) if body.startswith(b"{") else body


@pytest.mark.parametrize("path", ALL)
def test_thirty_clients_at_once_cost_one_reading(
    monitor: MetricsMonitor, readings: Readings, path: str
) -> None:
    async def test() -> list[tuple[int, Any]]:
        app = asgi(monitor)
        return await asyncio.gather(*(ask(app, path) for _ in range(CLIENTS)))

    answers = asyncio.run(test())
    assert [status for status, _ in answers] == [200] * CLIENTS
    assert len(readings) == 1


def test_so_do_clients_that_ask_for_different_things(
    monitor: MetricsMonitor, readings: Readings
) -> None:
    async def test() -> dict[str, Any]:
        app = asgi(monitor)
        answers = await asyncio.gather(*(ask(app, path) for path in ALL))
        return {path: body for path, (_, body) in zip(ALL, answers, strict=True)}

    answers = asyncio.run(test())
    assert len(readings) == 1
    assert answers["/current"]["metrics"]["total_requests"] == 1
    assert answers["/routes"]["routes"][0]["route"] == "/a"
    assert answers["/statistics"]["statistics"]["totals"]["total_requests"] == 1


@pytest.mark.parametrize("path", GET)
def test_nothing_is_worked_out_on_the_loop(
    monitor: MetricsMonitor, readings: Readings, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    answer = ROUTES[path]["GET"]
    work: Callable[..., Any] = answer.answer if isinstance(answer, Shared) else answer

    def asked(*args: Any) -> Any:
        threads.append(threading.get_ident())
        return work(*args)

    spied = Shared(asked) if isinstance(answer, Shared) else asked
    monkeypatch.setitem(ROUTES[path], "GET", spied)  # type: ignore[arg-type]
    assert asyncio.run(ask(asgi(monitor), path))[0] == 200
    assert threads
    assert threading.get_ident() not in {*threads, *readings.threads}


def test_who_asks_during_a_reading_gets_the_next_one(
    monitor: MetricsMonitor, readings: Readings
) -> None:
    async def test() -> tuple[int, list[int]]:
        app = asgi(monitor)
        readings.gate.clear()
        first = asyncio.create_task(ask(app, "/current"))
        while not readings.begun.is_set():
            await asyncio.sleep(0)
        monitor.record_request(1.0)
        later = [asyncio.create_task(ask(app, "/current")) for _ in range(CLIENTS)]
        await asyncio.sleep(0)
        readings.gate.set()
        totals = [
            body["metrics"]["total_requests"]
            for _, body in [await first, *[await t for t in later]]
        ]
        return totals[0], totals[1:]

    first, later = asyncio.run(test())
    assert first == 1
    assert later == [2] * CLIENTS
    assert len(readings) == 2


def test_an_answer_after_a_reset_is_not_from_before_it(
    monitor: MetricsMonitor, readings: Readings
) -> None:
    async def test() -> Any:
        app = asgi(monitor)
        readings.gate.clear()
        first = asyncio.create_task(ask(app, "/current"))
        while not readings.begun.is_set():
            await asyncio.sleep(0)
        assert (await ask(app, "/reset", "POST"))[0] == 200
        after = asyncio.create_task(ask(app, "/current"))
        await asyncio.sleep(0)
        readings.gate.set()
        await first
        return (await after)[1]

    assert asyncio.run(test())["metrics"]["total_requests"] == 0


def test_each_gets_what_its_own_query_asks_for(monitor: MetricsMonitor, readings: Readings) -> None:
    queries = {"seconds=5": 5, "seconds=60": 60, "": 300}

    async def test() -> list[tuple[int, Any]]:
        app = asgi(monitor)
        asked = [ask(app, "/series", query=query) for query in queries]
        return await asyncio.gather(*asked, ask(app, "/series", query="seconds=x"))

    *answers, bad = asyncio.run(test())
    assert [body["seconds"] for _, body in answers] == list(queries.values())
    assert bad[0] == 400
    assert len(readings) == 1


def test_a_fault_of_one_answer_is_no_fault_of_the_others(
    monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: ServerReading, max_routes: int) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(ServerReading, "routes", broken)

    async def test() -> list[tuple[int, Any]]:
        app = asgi(monitor)
        return await asyncio.gather(ask(app, "/routes"), ask(app, "/current"))

    assert [status for status, _ in asyncio.run(test())] == [500, 200]


@pytest.mark.parametrize("number", [0, 1], ids=["who leads", "who waits"])
def test_a_client_that_goes_holds_nobody_up(
    monitor: MetricsMonitor, readings: Readings, number: int
) -> None:
    async def test() -> list[int]:
        app = asgi(monitor)
        readings.gate.clear()
        tasks = [asyncio.create_task(ask(app, "/current")) for _ in range(3)]
        while not readings.begun.is_set():
            await asyncio.sleep(0)
        tasks.append(asyncio.create_task(ask(app, "/current")))
        await asyncio.sleep(0)
        gone = tasks.pop(number)
        gone.cancel()
        readings.gate.set()
        return [(await asyncio.wait_for(task, WAIT))[0] for task in tasks]

    assert asyncio.run(test()) == [200, 200, 200]


def test_one_that_goes_as_it_is_to_lead_holds_nobody_up(
    monitor: MetricsMonitor, readings: Readings
) -> None:
    async def test() -> list[int]:
        app = asgi(monitor)
        tasks = [asyncio.create_task(ask(app, "/current")) for _ in range(3)]
        await asyncio.sleep(0)  # the first one leads, and has begun nothing yet
        tasks.pop(0).cancel()
        return [(await asyncio.wait_for(task, WAIT))[0] for task in tasks]

    assert asyncio.run(test()) == [200, 200]


def test_threads_share_their_readings(monitor: MetricsMonitor, readings: Readings) -> None:
    handlers = Handlers(monitor, public(), IN_THIS_THREAD)

    def request() -> int:
        answer = handlers.handle(Request("GET", "/current", "", {}))
        total: int = json.loads(answer.body)["metrics"]["total_requests"]
        return total

    readings.gate.clear()
    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        first = pool.submit(request)
        assert readings.begun.wait(WAIT)
        monitor.record_request(1.0)
        asked = _counting_waiters(pool, request)
        readings.gate.set()
        assert first.result(WAIT) == 1
        assert {each.result(WAIT) for each in asked} == {2}
    # All wait for their turn before the first is done, so one of them answers them all.
    assert len(readings) == 2


def _counting_waiters(pool: ThreadPoolExecutor, request: Callable[[], int]) -> list[Any]:
    """Return the futures of clients once all of them wait for their turn."""
    queued = threading.Semaphore(0)
    real = Question.__init__

    def counted(self: Question[Any], work: Callable[[Reading], Any], routes: bool = False) -> None:
        real(self, work, routes)
        queued.release()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Question, "__init__", counted)
        futures = [pool.submit(request) for _ in range(CLIENTS)]
        for _ in range(CLIENTS):
            assert queued.acquire(timeout=WAIT)
    return futures


def test_a_thread_does_not_wait_without_end(monitor: MetricsMonitor) -> None:
    readings = ThreadReadings(monitor, patience=0.01)
    begun, hangs = threading.Event(), threading.Event()

    def hang(reading: Reading) -> bool:
        begun.set()
        return hangs.wait(WAIT)

    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(readings.answer, Question(hang))
        assert begun.wait(WAIT)
        assert readings.answer(Question(lambda reading: reading.server.total.requests)) == 1
        hangs.set()
        assert hanging.result(WAIT)
