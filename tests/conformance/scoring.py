"""The cases of the score, and the table that they make.

A case is a function that takes a `Bench`, asks what it has to ask, and says by `expect` what must
hold. It runs on each host that a peer can be put on and that the case is for; a peer has it when
it holds on all of them.
"""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

from . import drivers
from .framework_kit import REQUESTS, STREAM, site_of
from .peers import ASGI_PEERS, WSGI_PEERS, Measured, Peer, Reading
from .plain import Answer, Plain

DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs" / "conformance.md"
DELAY = 0.05  # seconds that a client takes for a chunk


class Missed(Exception):  # noqa: N818  # no error of ours
    """What a peer does instead of what a case expects, in few words."""


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Missed(otherwise)


class Bench:
    """A peer on a host, and a client for it."""

    def __init__(self, peer: Peer, host: str, folder: Path) -> None:
        self.peer = peer
        self.host = host
        self.site = site_of(host)
        self.is_raw = host.startswith("raw_")
        self.release = folder / "release"

    @cached_property
    def measured(self) -> Measured:
        """The host's site, measured."""
        return self.of(self.site.make)

    def of(self, make: Callable[[], Any], times: int = 1) -> Measured:
        """Another app of the host's kind, measured."""
        return self.peer.hosts[self.host](make, times)

    def ask(
        self, method: str, path: str, body: bytes = b"", app: Any = None, **client: Any
    ) -> Answer:
        client_ = Plain(self.release, self.site.is_asgi, **client)
        return client_.ask(self.measured.app if app is None else app, method, path, body)

    def read(self) -> Reading:
        return self.measured.read()


@dataclass(frozen=True)
class Case:
    """`on`: "all" hosts, those with a "router", or the "raw" ones."""

    title: str
    check: Callable[[Bench], None]
    on: str
    wsgi: bool
    asgi: bool

    def is_for(self, host: str) -> bool:
        is_raw = host.startswith("raw_")
        return self.on == "all" or (self.on == "raw") is is_raw


CASES: list[Case] = []


def case(
    title: str, on: str = "all", *, wsgi: bool = True, asgi: bool = True
) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
    def add(check: Callable[[Bench], None]) -> Callable[[Bench], None]:
        CASES.append(Case(title, check, on, wsgi, asgi))
        return check

    return add


def number(count: float) -> str:
    return f"{count:g}"


# --- what the client gets -------------------------------------------------------------------------


@case("The client gets the same bytes, headers and exceptions")
def _(bench: Bench) -> None:
    bare = bench.site.make()
    for line in REQUESTS:
        method, path = line.split()
        expected = bench.ask(method, path, app=bare).comparable()
        expect(bench.ask(method, path).comparable() == expected, f"not for {line}")


@case("The first chunk of a stream arrives before the last is made")
def _(bench: Bench) -> None:
    expect(bench.ask("GET", "/stream").body == STREAM, "it does not")


@case("A list stays a list", "raw", asgi=False)
def _(bench: Bench) -> None:
    body = [b"hello"]

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return body

    answer = drivers.call(bench.of(lambda: app).app)
    expect(answer.body is body, f"it becomes a {type(answer.body).__name__}")


@case("A file wrapper stays one, so that the server can send the file", "raw", asgi=False)
def _(bench: Bench) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](io.BytesIO(b"content"))

    wrapper = {"wsgi.file_wrapper": FileWrapper}
    answer = drivers.call(bench.of(lambda: app).app, **wrapper)
    kind = type(answer.body)
    expect(kind is FileWrapper, f"it becomes a {kind.__name__}")


@case("A body is closed once, also where nobody iterates it", "raw", asgi=False)
def _(bench: Bench) -> None:
    closed: list[str] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            yield b"hello"

        def close(self) -> None:
            closed.append("closed")

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return Body()

    measured = bench.of(lambda: app).app
    for iterates in (True, False):
        closed.clear()
        answer = drivers.call(measured, method="GET" if iterates else "HEAD")
        if iterates:
            list(answer.body)
        answer.close()
        when = "read" if iterates else "never read"
        expect(len(closed) == 1, f"closed {len(closed)} times where it is {when}")


@case("`write()` and a second `start_response` with `exc_info` go through", "raw", asgi=False)
def _(bench: Bench) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        try:
            raise LookupError
        except LookupError:
            write = start_response("503 Busy", [], sys.exc_info())
        write(b"written")
        return []

    answer = drivers.call(bench.of(lambda: app).app)
    expect((answer.status, answer.read()) == ("503 Busy", b"written"), "they do not")


@case("`wsgiref.validate` is silent", "raw", asgi=False)
def _(bench: Bench) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"one"

    for inner in (app, drivers.wsgi_hello):
        said = io.StringIO()
        with redirect_stderr(said):
            try:
                measured = bench.of(lambda inner=inner: plainly(validator(inner)))
                drivers.call(validator(measured.app)).read()
                gc.collect()
            except AssertionError as error:
                raise Missed(str(error)) from error
        expect(said.getvalue() == "", "it says that a body was not closed")


def plainly(app: Any) -> Any:
    """The validator's own signature does not say that it is WSGI."""

    def called(environ: Any, start_response: Any) -> Any:
        return app(environ, start_response)

    return called


@case("An exception is the same object as in the bare app", "raw")
def _(bench: Bench) -> None:
    error = LookupError("on purpose")

    def wsgi(environ: Any, start_response: Any) -> Any:
        raise error

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        raise error

    app = bench.of(lambda: asgi if bench.site.is_asgi else wsgi).app
    try:
        if bench.site.is_asgi:
            drivers.fetch(app)
        else:
            drivers.get(app)
    except LookupError as caught:
        expect(caught is error and caught.__context__ is None, "it is another one")
    else:
        raise Missed("it is swallowed")


@case("Trailers and `http.response.pathsend` go through, and end a request", "raw", wsgi=False)
def _(bench: Bench) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/path":
            await drivers.start(send)
            await send({"type": "http.response.pathsend", "path": "/tmp/x"})
        else:
            await drivers.start(send, trailers=True)
            await drivers.part(send, b"x")
            await send({"type": "http.response.trailers", "headers": []})

    measured = bench.of(lambda: app)
    for path, kind in (("/path", "pathsend"), ("/trailers", "trailers")):
        exchange = asyncio.run(drivers.ask(measured.app, path=path))
        expect(exchange.sent[-1]["type"].endswith(kind), f"not the {kind}")
    reading = measured.read()
    expect(reading.timed == 2, f"{number(reading.timed)} of 2 latencies")
    expect(reading.errors == 0, "counted as errors")


@case("Lifespan and scopes nobody has heard of go through", "raw", wsgi=False)
def _(bench: Bench) -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    measured = bench.of(lambda: app).app
    for kind in ("lifespan", "telnet"):
        exchange = drivers.Exchange()
        asyncio.run(measured({"type": kind, "asgi": {}}, exchange.receive, exchange.send))
        expect(seen[-1:] == [kind], f"not {kind}")


@case("Metrics that fail do not reach the app")
def _(bench: Bench) -> None:
    expected = bench.ask("GET", "/hello", app=bench.site.make()).comparable()
    with bench.peer.breaks():
        answer = bench.ask("GET", "/hello").comparable()
        expect(answer.error is None, f"{answer.error} instead of the answer")
        expect(answer == expected, f"status {answer.status} instead of the answer")


# --- what the numbers say -------------------------------------------------------------------------


@case("Each request is counted once, whatever its status")
def _(bench: Bench) -> None:
    paths = ["/hello", "/hello", "/fail", "/none", "/none"]
    for path in paths:
        bench.ask("GET", path)
    counted = bench.read().requests
    expect(counted == len(paths), f"{number(counted)} of {len(paths)}")


@case("An exception is counted once, as an error")
def _(bench: Bench) -> None:
    bench.ask("GET", "/raise")
    reading = bench.read()
    expect(reading.requests == 1, f"counted {number(reading.requests)} times")
    expect(reading.errors == 1, "it is no error")


@case("So is one in the middle of a body", "raw")
def _(bench: Bench) -> None:
    def wsgi(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"some"
        raise LookupError("on purpose")

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        await drivers.start(send)
        await drivers.part(send, b"some", more=True)
        raise LookupError("on purpose")

    measured = bench.of(lambda: asgi if bench.site.is_asgi else wsgi)
    bench.ask("GET", "/", app=measured.app)
    reading = measured.read()
    expect(reading.requests == 1, f"counted {number(reading.requests)} times")
    expect(reading.errors == 1, "it is no error")


@case("So is an app that returns without a response", "raw", wsgi=False)
def _(bench: Bench) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    measured = bench.of(lambda: app)
    bench.ask("GET", "/", app=measured.app)
    reading = measured.read()
    expect(reading.requests == 1, f"counted {number(reading.requests)} times")
    expect(reading.errors == 1, "it is no error")


@case("Latency covers a stream to its last byte")
def _(bench: Bench) -> None:
    bench.ask("GET", "/stream", delay=DELAY)
    reading = bench.read()
    expect(reading.timed == 1, f"{number(reading.timed)} latencies")
    expect(reading.seconds >= DELAY, "it ends with the headers")


@case("What runs after the last byte is in no latency", "raw", wsgi=False)
def _(bench: Bench) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await drivers.hello(scope, receive, send)
        await asyncio.sleep(DELAY)

    measured = bench.of(lambda: app)
    bench.ask("GET", "/", app=measured.app)
    expect(measured.read().seconds < DELAY, "it is in it")


@case("A client that goes away in the middle is neither success nor error")
def _(bench: Bench) -> None:
    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await drivers.start(send)
        await drivers.part(send, b"some", more=True)
        assert (await receive())["type"] == "http.disconnect"

    measured = bench.measured
    if bench.is_raw and bench.site.is_asgi:
        measured = bench.of(lambda: asgi)
    bench.ask("GET", "/stream", app=measured.app, leaves=True)
    reading = measured.read()
    expect(reading.errors == 0, "it is an error")
    expect(reading.timed == 0, "it is timed as a success")
    expect(reading.requests == 1, "it is not counted")


@case("Open WebSockets are counted, and are no requests", "raw", wsgi=False)
def _(bench: Bench) -> None:
    seen: list[Reading] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        seen.append(measured.read())

    measured = bench.of(lambda: app)
    exchange = drivers.Exchange({"type": "websocket.connect"})
    scope = drivers.new_scope() | {"type": "websocket", "scheme": "ws"}
    asyncio.run(measured.app(scope, exchange.receive, exchange.send))
    expect(measured.read().requests == 0, "they are requests")
    expect(seen[0].websockets == 1, "there is no such number")


@case("Wrapped twice it counts once", "raw")
def _(bench: Bench) -> None:
    measured = bench.of(bench.site.make, times=2)
    bench.ask("GET", "/hello", app=measured.app)
    counted = measured.read().requests
    expect(counted == 1, f"it counts {number(counted)} times")


@case("Routes are templates with all prefixes, mounted apps' too", "router")
def _(bench: Bench) -> None:
    for path in ("/items/7", "/v1/users/ada", "/v2/users/ada", "/mounted/things/7"):
        bench.ask("GET", path)
    routes = sorted(route for _, route, _ in bench.read().rows)
    named = ", ".join(f"`{route}`" for route in routes)
    whole = len(routes) == 4 and "7" not in named and "ada" not in named
    prefixed = all(prefix in named for prefix in ("/v1/", "/v2/", "/mounted/"))
    expect(whole and prefixed, named or "none")


@case("200 paths that are not there share one row")
def _(bench: Bench) -> None:
    for each in range(200):
        bench.ask("GET", f"/none/{each}")
    reading = bench.read()
    expect(len(reading.rows) == 1, f"{len(reading.rows)} rows")
    expect(reading.requests == 200, f"{number(reading.requests)} counted")


@case("50 methods that nobody has heard of share one row")
def _(bench: Bench) -> None:
    for each in range(50):
        bench.ask(f"MADEUP{each}", "/hello")
    methods = {method for method, _, _ in bench.read().rows}
    expect(len(methods) == 1, f"{len(methods)} rows")


# --- the table ------------------------------------------------------------------------------------


@contextmanager
def quietly() -> Iterator[Path]:
    """A folder, and nothing that apps and peers have to say of what is done to them."""
    before = os.environ.get("RELEASE")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        os.environ["RELEASE"] = str(Path(folder) / "release")
        warnings.simplefilter("ignore")
        logging.disable()
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                yield Path(folder)
        finally:
            logging.disable(logging.NOTSET)
            if before is None:
                del os.environ["RELEASE"]
            else:
                os.environ["RELEASE"] = before


def missed(case: Case, peer: Peer, host: str) -> str | None:
    """What the peer does instead; None: the case holds."""
    with quietly() as folder, site_of(host).around():
        try:
            case.check(Bench(peer, host, folder))
        except Missed as reason:
            return str(reason)
        except ImportError as error:
            raise SystemExit(f"{peer.name}: {error}; the score needs all of its peers") from error
        except Exception as error:
            return f"{type(error).__name__}"
    return None


def score(case: Case, peer: Peer) -> str:
    """A cell of the table."""
    hosts = [host for host in peer.hosts if case.is_for(host)]
    if not hosts:
        return "–"  # noqa: RUF001
    reasons: dict[str, list[str]] = {}
    for host in hosts:
        reason = missed(case, peer, host)
        if reason is not None:
            reasons.setdefault(reason, []).append(NAMES[host])
    if not reasons:
        return "yes"
    if len(hosts) == 1 or [len(names) for names in reasons.values()] == [len(hosts)]:
        return f"no: {next(iter(reasons))}"
    return "no: " + "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())


NAMES = {
    "raw_wsgi": "raw WSGI",
    "flask_site": "Flask",
    "django_site": "Django",
    "falcon_site": "Falcon",
    "bottle_site": "Bottle",
    "pyramid_site": "Pyramid",
    "raw_asgi": "raw ASGI",
    "django_asgi_site": "Django (ASGI)",
    "starlette_site": "Starlette",
    "fastapi_site": "FastAPI",
    "quart_site": "Quart",
    "litestar_site": "Litestar",
    "falcon_asgi_site": "Falcon (ASGI)",
}

INTRODUCTION = """\
# Conformance

What a middleware that measures must not change, and what its numbers must say, case by case: for
this package and for others that measure requests. Written by `python tests/conformance/score.py`;
the cases are in `tests/conformance/scoring.py`.

The second column says on which hosts a case runs, of those named below the table: on all of them,
on the frameworks, or, where it is about the protocol itself, on the raw app. A "yes" means that it
holds on each; "–" that there is nothing to ask, as the peer is not for such hosts. Mounted apps are
those of frameworks that can mount; of the others a prefixed route is asked. Peers are used as their
documentation says, in their default settings, but for two that do better so:
prometheus-flask-exporter groups by `url_rule` (by default it takes raw paths), and
starlette-exporter on a raw app takes unknown paths, too (by default it would take none). A "no" is
not always a fault: some of it is documented, or was never promised.

The whole kit asks more: `pytest tests/conformance` serves each framework by each server of its kind
(gunicorn's sync, gthread and gevent workers, waitress, wsgiref, uWSGI, granian; uvicorn with h11
and with httptools, hypercorn by HTTP/1.1 and HTTP/2, granian), wrapped once and twice, below a
prefix, and inside of what is wrapped itself, and compares each answer with the bare app's. It sends
a gigabyte each way through gunicorn and uvicorn, 256 MB through the other servers but wsgiref, and
asks each framework for 10,000 paths that are not there (Django by ASGI for 2,000).
"""  # noqa: RUF001


ASKED = {"all": "all", "router": "frameworks", "raw": "raw app"}


def table(title: str, peers: Sequence[Peer], cases: Sequence[Case]) -> list[str]:
    names = " | ".join(peer.name for peer in peers)
    lines = [f"## {title}", "", f"| case | asked of | {names} |", "|---|---|" + "---|" * len(peers)]
    held = dict.fromkeys((peer.name for peer in peers), 0)
    asked = dict(held)
    for case in cases:
        cells = []
        for peer in peers:
            cell = score(case, peer)
            held[peer.name] += cell == "yes"
            asked[peer.name] += cell == "yes" or cell.startswith("no")
            cells.append(cell)
        lines.append(f"| {case.title} | {ASKED[case.on]} | {' | '.join(cells)} |")
    sums = " | ".join(f"**{held[peer.name]} of {asked[peer.name]}**" for peer in peers)
    lines += [f"| **cases that hold** | | {sums} |", "", "Hosts and versions:", ""]
    for peer in peers:
        hosts = ", ".join(NAMES[host] for host in peer.hosts)
        packages = ", ".join(f"{name} {version(name)}" for name in peer.packages)
        lines.append(f"- {peer.name} on {hosts}: {packages}")
    return [*lines, ""]


FRAMEWORKS = (
    "flask", "django", "falcon", "bottle", "pyramid",
    "starlette", "fastapi", "quart", "litestar",
)  # fmt: skip


def document() -> str:
    python = ".".join(map(str, sys.version_info[:3]))
    frameworks = ", ".join(f"{name} {version(name)}" for name in FRAMEWORKS)
    return "\n".join(
        [
            INTRODUCTION,
            *table("WSGI", WSGI_PEERS, [each for each in CASES if each.wsgi]),
            *table("ASGI", ASGI_PEERS, [each for each in CASES if each.asgi]),
            f"Python {python}; {frameworks}.",
            "",
        ]
    )


def main(arguments: Sequence[str]) -> None:
    text = document()
    if "--print" in arguments:
        print(text)
    else:
        DOCUMENT.write_text(text)
        print(f"written: {DOCUMENT}")
