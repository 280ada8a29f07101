"""The table of servers: how each one says that a client has gone, or that it stops itself.

A server is known by the module of its own classes: of the object that `send` is a method of (ASGI),
or of an object that the server puts into environ (WSGI); never by the names of attributes or keys
alone. Nothing is guessed of an unknown server. wsgiref and Werkzeug have no entry, and need none:
like the ASGI of gunicorn, granian and Daphne they report a client that has gone by `receive`, by an
OSError from `send`, or by closing the body.
"""

from __future__ import annotations

import select
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from types import FrameType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

if TYPE_CHECKING:
    import asyncio

    from _typeshed.wsgi import WSGIEnvironment

T = TypeVar("T")

# The event of poll() that the peer has closed, beside POLLHUP and POLLERR, which need no asking.
PEER_CLOSED: int = getattr(select, "POLLRDHUP", 0)
# The most entries of a `ByType`.
MAX_TYPES = 100
# The most frames that are read of a stack, and of the chain of coroutines of a task.
MAX_DEPTH = 200
# The most tasks of an event loop in which servers are looked for again: it waits meanwhile.
MAX_TASKS = 500


def not_known(_: object) -> bool:
    """Return False: the server does not say."""
    return False


def no_transport(_: object) -> None:
    """Return None: the server does not show its connection."""


def _self(variables: Mapping[str, Any]) -> object:
    """Return the object whose method has these local variables."""
    return variables.get("self")


@dataclass(frozen=True, slots=True)
class Server:
    """One entry of the table; a fact that is not given is not known.

    Attributes:
        name: The server's name, the key of its entry.
        modules: The full names of the modules that define the server's own classes.
        client_gone: ASGI: returns whether the client has gone, given the object of one of those
            classes that `send` is a method of. Then `receive` is not wrapped.
        gone_at_end: ASGI: `client_gone` turns true with the end of a response, too, so it is asked
            before the last message instead of after it.
        owner: WSGI: returns an object that the server itself has put into environ, or None. It is
            checked to be of one of those classes.
        is_stopping: WSGI: returns whether the server, given that object, is stopping: then it is
            the server that closes a body before its end, not the client.
        loop_modules: The full names of the modules of the server's own code that runs an event
            loop in which it serves many requests at once. Only there streams are offered.
        loop_owner: Returns the object to ask of such a loop, given the local variables of a
            function of those modules that is at work in it, or None.
        is_ending: Returns whether the server, given that object, is about to end, and waits for
            open responses; None: it does not say.
        transport: ASGI: returns the connection of a request over HTTP/1, given the object that
            `send` is a method of, or None.
    """

    name: str
    modules: frozenset[str]
    client_gone: Callable[[Any], bool] = not_known
    gone_at_end: bool = False
    owner: Callable[[WSGIEnvironment], object] = not_known
    is_stopping: Callable[[Any], bool] = not_known
    loop_modules: frozenset[str] = frozenset()
    loop_owner: Callable[[Mapping[str, Any]], object] = _self
    is_ending: Callable[[Any], bool] | None = None
    transport: Callable[[Any], asyncio.WriteTransport | None] = no_transport


class Running(NamedTuple):
    """A server at work in an event loop, and the server's object to ask."""

    server: Server
    owner: Any

    def is_ending(self) -> bool:
        """Return whether the server is about to end; False where it does not say."""
        return self.server.is_ending is not None and bool(self.server.is_ending(self.owner))


class LoopServer(NamedTuple):
    """What serves in an event loop: one server, or several side by side.

    Which of several has a connection is not known, so what holds for one is taken for all.
    """

    running: tuple[Running, ...]

    @property
    def can_tell(self) -> bool:
        """Whether the server can say that it is about to end."""
        return all(each.server.is_ending is not None for each in self.running)

    def is_ending(self) -> bool:
        """Return whether the server is about to end; False where it does not say."""
        return any(each.is_ending() for each in self.running)


def register(server: Server) -> None:
    """Add a server to the table, in place of one of the same name."""
    SERVERS[server.name] = server
    for table in list(_tables.values()):
        table.clear()
    _by_loop.clear()


def is_stopping(environ: WSGIEnvironment) -> bool:
    """Return whether the server itself has closed a body before its end, as it stops.

    Args:
        environ: The request's environ.

    Returns:
        False also where the server is unknown, or does not say.
    """
    for server in SERVERS.values():
        owner = server.owner(environ)
        if _is_of(owner, server):
            return server.is_stopping(owner)
    return False


def loop_server(*, anew: bool = False) -> LoopServer | None:
    """Return the server that runs this thread's event loop; None where nobody knows it.

    It is found by its own code at work in the loop: below this call on the stack, or in a task. An
    app below a bridge from WSGI, in a function of a cloud or under a test client has none. The next
    one may serve in the loop once it ends.

    Args:
        anew: Look for servers that have come since the first look, too, unless the loop is busy.
    """
    asyncio = sys.modules.get("asyncio")  # importing it is for apps that run on it
    if asyncio is None:
        return None
    with suppress(RuntimeError):  # no event loop of asyncio runs here
        loop = asyncio.get_running_loop()
        known = _by_loop.get(loop)
        is_stale = known is not None and known.is_ending()
        if not is_stale and anew:
            is_stale = len(asyncio.all_tasks()) <= MAX_TASKS
        if is_stale or loop not in _by_loop:
            _by_loop[loop] = known = _find_loop_server()
        return known
    return None


def transport_of(send: object) -> asyncio.WriteTransport | None:
    """Return the connection of a request over HTTP/1, given its `send`; None: it is not known."""
    owner = getattr(send, "__self__", None)
    server = next((each for each in SERVERS.values() if _is_of(owner, each)), None)
    with suppress(AttributeError):  # another release of the server
        return None if server is None else server.transport(owner)
    return None


def _find_loop_server() -> LoopServer | None:
    by_module = {name: server for server in SERVERS.values() for name in server.loop_modules}
    found: dict[int, Running] = {}
    for frame in _frames():
        server = by_module.get(frame.f_globals.get("__name__", ""))
        if server is not None:
            owner = server.loop_owner(frame.f_locals)
            if owner is not None:
                found[id(owner)] = Running(server, owner)
    lasting = [each for each in found.values() if not each.is_ending()]
    return LoopServer(tuple(lasting or found.values())) if found else None


def _frames() -> Iterator[FrameType]:
    """Yield the frames below this one, and those of the coroutines that the loop's tasks run."""
    frame: FrameType | None = sys._getframe()
    for _ in range(MAX_DEPTH):
        if frame is None:
            break
        yield frame
        frame = frame.f_back
    import asyncio

    for task in asyncio.all_tasks():
        coroutine: Any = task.get_coro()
        for _ in range(MAX_DEPTH):
            running = getattr(coroutine, "cr_frame", None)
            if not isinstance(running, FrameType):
                break
            yield running
            coroutine = coroutine.cr_await


def _is_of(owner: object, server: Server) -> bool:
    """Return whether an object's class, or a base of it, is one of the server's."""
    if isinstance(owner, ModuleType):
        return owner.__name__ in server.modules
    return any(base.__module__ in server.modules for base in type(owner).__mro__)


class ByType(dict[type, T]):
    """What is made for the server whose objects of a type say that a client has gone.

    Args:
        make: Given the server, or None where there is no such server, returns what is looked up.
    """

    def __init__(self, make: Callable[[Server | None], T]) -> None:
        self._make = make
        _tables[id(self)] = self

    def __missing__(self, kind: type) -> T:
        modules = {base.__module__ for base in kind.__mro__}
        server = next((each for each in SERVERS.values() if modules & each.modules), None)
        if server is not None and server.client_gone is not_known:
            server = None
        made = self._make(server)
        if len(self) < MAX_TYPES:
            self[kind] = made
        return made


_tables: WeakValueDictionary[int, ByType[Any]] = WeakValueDictionary()
_by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopServer | None] = WeakKeyDictionary()


# --- the servers ---------------------------------------------------------------------------------


def _waitress_channel(environ: WSGIEnvironment) -> object:
    client_disconnected = environ.get("waitress.client_disconnected")
    return client_disconnected.__self__ if type(client_disconnected) is MethodType else None


def _waitress_is_stopping(channel: Any) -> bool:
    # It calls every client gone once it has shut down: it has no threads to go on then.
    dispatcher = channel.server.task_dispatcher
    return bool(len(dispatcher.threads) <= dispatcher.stop_count)


def _uwsgi_module(environ: WSGIEnvironment) -> object:
    # The module exists in uWSGI's processes only.
    uwsgi = sys.modules.get("uwsgi")
    version = environ.get("uwsgi.version")
    return uwsgi if version is not None and version == getattr(uwsgi, "version", None) else None


def _uwsgi_is_stopping(uwsgi: Any) -> bool:
    # Any signal to the worker, such as the one to reload, ends a write by an error; the client is
    # still there then.
    patched = sys.modules.get("gevent.monkey")  # whose poll() does not see who has gone
    poll = patched.get_original("select", "poll") if patched else select.poll
    connection = poll()
    connection.register(uwsgi.connection_fd(), PEER_CLOSED)
    return not connection.poll(0)


def _uvicorn_is_ending(server: Any) -> bool:
    # It ends for a number of requests, too, which `should_exit` does not say: then it no longer
    # listens.
    if server.should_exit:
        return True
    return server.started and not any(each.is_serving() for each in server.servers)


# `send` of uvicorn's and Hypercorn's does nothing for a client that has gone.
SERVERS: dict[str, Server] = {
    server.name: server
    for server in (
        Server(
            "uvicorn",
            frozenset(
                {
                    "uvicorn.protocols.http.h11_impl",
                    "uvicorn.protocols.http.httptools_impl",
                }
            ),
            client_gone=attrgetter("disconnected"),
            loop_modules=frozenset({"uvicorn.server"}),
            is_ending=_uvicorn_is_ending,
            transport=attrgetter("transport"),
        ),
        Server(
            "hypercorn",
            frozenset({"hypercorn.protocol.http_stream", "hypercorn.protocol.ws_stream"}),
            client_gone=attrgetter("closed"),
            gone_at_end=True,
            loop_modules=frozenset({"hypercorn.asyncio.run"}),
            loop_owner=lambda variables: variables.get("context"),
            is_ending=lambda context: context.terminated.is_set(),
            # From the stream to its protocol, and from there to the connection.
            transport=lambda stream: stream.send.__self__.send.__self__.writer.transport,
        ),
        Server(
            "gunicorn",
            frozenset({"gunicorn.workers.gasgi"}),
            loop_modules=frozenset({"gunicorn.workers.gasgi"}),
            is_ending=lambda worker: not worker.alive,
        ),
        Server(
            "granian",
            frozenset({"granian.server.mp", "granian.server.mt", "granian.server.embed"}),
            loop_modules=frozenset({"granian.server.mp", "granian.server.mt"}),
            loop_owner=lambda variables: variables.get("shutdown_event"),
        ),
        Server(
            "daphne",
            frozenset({"daphne.server"}),
            loop_modules=frozenset({"daphne.server"}),
        ),
        Server(
            "waitress",
            frozenset({"waitress.channel"}),
            owner=_waitress_channel,
            is_stopping=_waitress_is_stopping,
        ),
        Server(
            "uwsgi",
            frozenset({"uwsgi"}),
            owner=_uwsgi_module,
            is_stopping=_uwsgi_is_stopping,
        ),
    )
}
