"""What is known of servers is told by their own classes: look-alikes change no number."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from kits.servers import serve

from metricsmw import MetricsMonitor
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.servers import SERVERS, is_stopping
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware

from .drivers import Exchange, hello, new_environ, new_scope, part, start, wsgi_hello
from .outcomes import faults
from .test_servers_in_process import ASGI, Serve, connect, read_to_end, settled

if TYPE_CHECKING:
    from metricsmw.adapters.types import ASGIApp, Message, Receive, Scope, Send


@pytest.fixture
def monitor() -> Iterator[MetricsMonitor]:
    with MetricsMonitor() as monitor:
        yield monitor


def counted(monitor: MetricsMonitor, statuses: dict[str, int]) -> None:
    """Exactly these responses are in the numbers, each with its latency; none is in flight."""
    snapshot = monitor.get_current_snapshot()
    total = sum(statuses.values())
    assert (snapshot.total_requests, snapshot.requests_in_flight) == (total, 0)
    assert snapshot.total_errors == statuses.get("5xx", 0)
    assert [row["statuses"] for row in monitor.get_routes()] == [statuses]
    assert faults(monitor) == 0


class Flagged:
    """One request in a middleware around the app; its flag is true on a good request."""

    def __init__(self, flag: str, send: Send) -> None:
        setattr(self, flag, True)
        self._send = send

    async def send(self, message: Message) -> None:
        await self._send(message)


def flagging(flag: str, app: ASGIApp) -> ASGIApp:
    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, Flagged(flag, send).send)

    return middleware


flags = pytest.mark.parametrize("flag", ["closed", "disconnected"])


@flags
def test_a_flag_of_another_library_in_process(flag: str, monitor: MetricsMonitor) -> None:
    app = flagging(flag, ASGIMetricsMiddleware(hello, monitor))
    exchange = Exchange()
    asyncio.run(app(new_scope(), exchange.receive, exchange.send))  # type: ignore[arg-type]
    counted(monitor, {"2xx": 1})


@flags
def test_a_flag_of_another_library_and_an_app_that_fails(
    flag: str, monitor: MetricsMonitor
) -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("of the app")

    app = flagging(flag, ASGIMetricsMiddleware(failing, monitor))
    exchange = Exchange()
    with pytest.raises(ValueError, match="of the app"):
        asyncio.run(app(new_scope(), exchange.receive, exchange.send))  # type: ignore[arg-type]
    counted(monitor, {"5xx": 1})


@pytest.mark.parametrize("server", ASGI.values(), ids=ASGI)
@flags
def test_a_flag_of_another_library(server: Serve, flag: str, monitor: MetricsMonitor) -> None:
    with server(flagging(flag, ASGIMetricsMiddleware(hello, monitor))) as port:
        answer = read_to_end(connect(port, "GET / HTTP/1.1", "Connection: close"))
        assert answer.startswith(b"HTTP/1.1 200")
        settled(monitor, 1, 0, timed=True)


@pytest.mark.parametrize(
    ("name", "args"), [("uvicorn", []), ("hypercorn", []), ("granian", ["--interface", "asgi"])]
)
def test_a_flag_of_another_library_served(name: str, args: list[str]) -> None:
    with serve(name, "apps.flagged:app", args=args) as server:
        assert server.get("/hello").text == "hello"
        current = server.get("/api/metrics/statistics").json()["statistics"]["current"]
        assert (current["total_requests"], current["total_errors"]) == (1, 0)
        assert current["latency_max_ms"] > 0


def test_a_server_s_own_flag_that_fails_is_a_fault_of_the_metrics(monitor: MetricsMonitor) -> None:
    class Cycle(Exchange):
        """Of a release of uvicorn that has no such flag."""

        __module__ = "uvicorn.protocols.http.h11_impl"

    cycle = Cycle()
    app = ASGIMetricsMiddleware(hello, monitor)
    asyncio.run(app(new_scope(), cycle.receive, cycle.send))  # type: ignore[arg-type]
    assert monitor.get_routes()[0]["statuses"] == {"2xx": 1}
    assert faults(monitor) == 1


# --- WSGI -----------------------------------------------------------------------------------------


class Channel:
    """Has what waitress's has, and is of another library."""

    server = SimpleNamespace(task_dispatcher=SimpleNamespace(threads=[], stop_count=1))

    def check_client_disconnected(self) -> bool:
        return True


LOOK_ALIKES: dict[str, object] = {
    "waitress.client_disconnected": Channel().check_client_disconnected,
    "uwsgi.version": b"2.0",
    "uwsgi.node": b"node",
    "gunicorn.socket": SimpleNamespace(closed=True, disconnected=True),
    "werkzeug.socket": SimpleNamespace(closed=True, disconnected=True),
    "hypercorn.closed": True,
}


def streaming(environ: Any, start_response: Any) -> Iterator[bytes]:
    yield from wsgi_hello(environ, start_response)
    yield b"more"


@pytest.mark.parametrize("key", LOOK_ALIKES)
def test_keys_of_another_library_in_environ(key: str, monitor: MetricsMonitor) -> None:
    environ = new_environ(**{key: LOOK_ALIKES[key]})
    body: Any = WSGIMetricsMiddleware(streaming, monitor)(environ, lambda *_: bytes)  # type: ignore[arg-type]
    assert b"".join(body) == b"hellomore"
    body.close()
    counted(monitor, {"2xx": 1})


@pytest.mark.parametrize("key", LOOK_ALIKES)
def test_they_do_not_say_that_a_server_stops(key: str, monitor: MetricsMonitor) -> None:
    """A body that is closed before its end is one whose client has gone."""
    environ = new_environ(**{key: LOOK_ALIKES[key]})
    body: Any = WSGIMetricsMiddleware(streaming, monitor)(environ, lambda *_: bytes)  # type: ignore[arg-type]
    assert next(iter(body)) == b"hello"
    body.close()
    settled(monitor, 1, 0, timed=False)


def test_a_module_called_uwsgi_is_no_server_of_an_environ_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = ModuleType("uwsgi")
    monkeypatch.setitem(sys.modules, "uwsgi", module)
    monkeypatch.setattr(module, "version", b"2.0", raising=False)
    assert not is_stopping(new_environ())
    assert not is_stopping(new_environ(**{"uwsgi.version": b"1.9"}))


# --- being measured is a state --------------------------------------------------------------------


def test_a_scope_that_comes_again_is_another_request(monitor: MetricsMonitor) -> None:
    app = ASGIMetricsMiddleware(ASGIMetricsMiddleware(hello, monitor), monitor)
    scope = new_scope()
    before = dict(scope)
    for _ in range(3):
        exchange = Exchange()
        asyncio.run(app(scope, exchange.receive, exchange.send))  # type: ignore[arg-type]
        assert scope == before
    counted(monitor, {"2xx": 3})


@pytest.mark.parametrize("is_list", [True, False])
def test_an_environ_that_comes_again_is_another_request(
    is_list: bool, monitor: MetricsMonitor
) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        body = wsgi_hello(environ, start_response)
        return list(body) if is_list else body

    measured = WSGIMetricsMiddleware(WSGIMetricsMiddleware(app, monitor), monitor)
    environ = new_environ()
    before = dict(environ)
    for _ in range(3):
        body: Any = measured(environ, lambda *_: bytes)  # type: ignore[arg-type]
        assert b"".join(body) == b"hello"
        getattr(body, "close", lambda: None)()
        assert environ == before
    counted(monitor, {"2xx": 3})


def test_it_comes_again_after_a_request_that_was_left_out(monitor: MetricsMonitor) -> None:
    measured = WSGIMetricsMiddleware(
        WSGIMetricsMiddleware(wsgi_hello, monitor), monitor, exclude=["/quiet"]
    )
    environ = new_environ()
    for path in ("/quiet", "/loud", "/quiet", "/loud"):
        environ["PATH_INFO"] = path
        body: Any = measured(environ, lambda *_: bytes)  # type: ignore[arg-type]
        assert b"".join(body) == b"hello"
        getattr(body, "close", lambda: None)()
    counted(monitor, {"2xx": 2})

    app = ASGIMetricsMiddleware(ASGIMetricsMiddleware(hello, monitor), monitor, exclude=["/quiet"])
    scope = new_scope()
    for path in ("/quiet", "/loud", "/quiet", "/loud"):
        scope["path"] = path
        exchange = Exchange()
        asyncio.run(app(scope, exchange.receive, exchange.send))  # type: ignore[arg-type]
    counted(monitor, {"2xx": 4})


@pytest.mark.parametrize("ending", ["whole", "stream", "failed"])
def test_no_knot_is_left_in_a_server_that_holds_the_scope(
    ending: str, monitor: MetricsMonitor
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        if ending == "failed":
            return
        if ending == "stream":
            await part(send, b"some", more=True)
        await part(send)

    class Cycle(Exchange):
        __module__ = "uvicorn.protocols.http.h11_impl"
        disconnected = False

        def __init__(self, scope: Scope) -> None:
            super().__init__()
            self.scope = scope

    measured = ASGIMetricsMiddleware(app, monitor)

    def request() -> None:
        cycle = Cycle(new_scope())
        coroutine: Any = measured(cycle.scope, cycle.receive, cycle.send)
        with pytest.raises(StopIteration):
            coroutine.send(None)

    assert garbage_of(request) == 0


@pytest.mark.parametrize("kind", ["list", "generator", "iterator", "sized"])
@pytest.mark.parametrize("whole", [True, False])
def test_no_knot_is_left_in_a_server_that_holds_the_environ(
    kind: str, whole: bool, monitor: MetricsMonitor
) -> None:
    class Sized(list[bytes]):
        """Not of the types that are whole."""

        __class__ = dict  # type: ignore[assignment]

    def app(environ: Any, start_response: Any) -> Any:
        if not whole and kind == "list":
            raise ValueError("of the app")
        body = streaming(environ, start_response)
        return {"list": list, "generator": iter, "iterator": map_bytes, "sized": Sized}[kind](body)

    def map_bytes(body: Any) -> Any:
        return map(bytes, body)

    class Handler:
        def __init__(self, environ: Any) -> None:
            self.environ = environ

        def start_response(self, *_: Any) -> Any:
            return bytes

        def serve(self) -> None:
            try:
                body: Any = measured(self.environ, self.start_response)
            except ValueError:
                return
            iterator = iter(body)
            next(iterator)
            if whole:
                list(iterator)
            getattr(body, "close", lambda: None)()

    measured = WSGIMetricsMiddleware(app, monitor)
    assert garbage_of(lambda: Handler(new_environ()).serve()) == 0
    assert monitor.total_requests == 2
    assert monitor.get_current_snapshot().requests_in_flight == 0


def garbage_of(request: Callable[[], object]) -> int:
    """Return how many objects a request leaves to the garbage collector."""
    request()  # fills what is filled once
    gc.collect()
    gc.disable()
    try:
        request()
        return gc.collect()
    finally:
        gc.enable()


# --- from outside the package ---------------------------------------------------------------------

TOY_SERVER = """
import asyncio
from metricsmw import MetricsMonitor
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.servers import Server, register

class Connection:
    gone = False
    async def receive(self): return {"type": "http.request"}
    async def send(self, message): pass

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})

def ask(gone):
    connection = Connection()
    connection.gone = gone
    scope = {"type": "http", "method": "GET", "path": "/"}
    asyncio.run(measured(scope, connection.receive, connection.send))
    return monitor.get_current_snapshot().total_requests, monitor.get_routes()[0]["statuses"]

monitor = MetricsMonitor()
measured = ASGIMetricsMiddleware(app, monitor)
assert ask(gone=True) == (1, {"2xx": 1}), "nothing is guessed"
register(Server("toy", frozenset({__name__}), client_gone=lambda connection: connection.gone))
assert ask(gone=False) == (2, {"2xx": 2})
assert ask(gone=True) == (3, {"2xx": 2})
"""

TOY_FRAMEWORK = """
import asyncio, sys
from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
from metricsmw.adapters.resolvers import Framework, register

installed = []
register(
    Framework(
        __name__,
        "{interface}",
        "toy.route",
        template=lambda carrier: carrier["toy.route"],
        user=lambda carrier: carrier["toy.user"],
        install=lambda: installed.append(1),
    )
)

def wsgi(environ, start_response):
    environ["toy.route"], environ["toy.user"] = "/things/{{id}}", "ann"
    start_response("200 OK", [])
    return [b"hello"]

async def asgi(scope, receive, send):
    scope["toy.route"], scope["toy.user"] = "/things/{{id}}", "ann"
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": b"hello"}})

monitor = MetricsMonitor()
if "{interface}" == "wsgi":
    wrap(wsgi, monitor)({{"REQUEST_METHOD": "GET", "PATH_INFO": "/things/7"}}, lambda *_: None)
else:
    async def send(message): pass
    asyncio.run(
        wrap(asgi, monitor)({{"type": "http", "method": "GET", "path": "/things/7"}}, None, send)
    )
assert [row["route"] for row in monitor.get_routes()] == ["/things/{{id}}"]
assert monitor.get_active_user_ids() == ["ann"]
assert installed
"""


@pytest.mark.parametrize(
    "code",
    [TOY_SERVER, *(TOY_FRAMEWORK.format(interface=each) for each in ("wsgi", "asgi"))],
    ids=["server", "framework-wsgi", "framework-asgi"],
)
def test_one_entry_adds_a_server_or_a_framework(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_entry_is_found_by_its_name() -> None:
    assert all(server.name == name for name, server in SERVERS.items())
