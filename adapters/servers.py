"""What is known of each server, in one table: whether the client has gone, and who ends a response.

A server is told by its own classes: by the module of the object that `send` is a method of (ASGI),
or of what it has put into environ (WSGI), never by the names of attributes or keys alone. Nothing
is guessed of a server that nobody knows. gunicorn's, granian's and Daphne's ASGI, wsgiref and
Werkzeug have no entry, as there is nothing to know: they say that a client has gone by `receive`,
by an OSError from `send`, or by closing the body.
"""

from __future__ import annotations

import select
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from types import MethodType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

# The event of poll() that the peer has closed, beside POLLHUP and POLLERR, which need no asking.
PEER_CLOSED: int = getattr(select, "POLLRDHUP", 0)
# The most types of objects that `send` is a method of that are remembered.
MAX_TYPES = 100


def not_known(_: object) -> bool:
    """Stand for what a server does not tell."""
    return False


@dataclass(frozen=True, slots=True)
class Server:
    """One entry of the table; what is not given is not known.

    Attributes:
        name: The server's name, the key of its entry.
        modules: The full names of the modules that define the server's own classes.
        client_gone: ASGI: returns whether the client has gone, given the object of one of those
            classes that `send` is a method of. Then `receive` is not wrapped.
        gone_at_end: ASGI: `client_gone` turns true with the end of a response, too, so it is asked
            before the last message instead of after it.
        owner: WSGI: returns what the server itself has put into environ, an object of one of
            those classes, or None. It is checked to be one.
        is_stopping: WSGI: returns whether the server, given that object, is stopping: then it is
            the server that closes a body before its end, not the client.
        is_ending: Returns whether the server, given the owner of its signal handlers, is about to
            end, and waits for open responses.
    """

    name: str
    modules: frozenset[str]
    client_gone: Callable[[Any], bool] = not_known
    gone_at_end: bool = False
    owner: Callable[[WSGIEnvironment], object] = not_known
    is_stopping: Callable[[Any], bool] = not_known
    is_ending: Callable[[Any], bool] = not_known


def register(server: Server) -> None:
    """Add a server to the table, in place of one of the same name."""
    SERVERS[server.name] = server
    BY_TYPE.clear()


def is_stopping(environ: WSGIEnvironment) -> bool:
    """Tell whether a body was closed before its end by the server itself, as it stops.

    Args:
        environ: That of the request. False where it is none of a server that can be asked.
    """
    for server in SERVERS.values():
        owner = server.owner(environ)
        if _is_of(owner, server):
            return server.is_stopping(owner)
    return False


def is_ending() -> bool:
    """Tell whether the server of this process is about to end, and waits for open responses.

    uvicorn tells it only by the owner of its signal handlers. Hypercorn cancels what is open;
    granian waits until its time is up.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        owner = getattr(signal.getsignal(number), "__self__", None)
        for server in SERVERS.values():
            if _is_of(owner, server) and server.is_ending(owner):
                return True
    return False


def _is_of(owner: object, server: Server) -> bool:
    """Tell whether an object is of a class of the server's, or of a class made of one."""
    if isinstance(owner, ModuleType):
        return owner.__name__ in server.modules
    return any(base.__module__ in server.modules for base in type(owner).__mro__)


class _ByType(dict[type, "Server | None"]):
    """The server whose object `send` is a method of, by that object's type; None: nobody knows it.

    The hot path looks it up; only types that it sees for the first time are searched for.
    """

    def __missing__(self, kind: type) -> Server | None:
        modules = {base.__module__ for base in kind.__mro__}
        server = next((each for each in SERVERS.values() if modules & each.modules), None)
        if server is not None and server.client_gone is not_known:
            server = None
        if len(self) < MAX_TYPES:
            self[kind] = server
        return server


BY_TYPE = _ByType()


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


# `send` of the first two does nothing for a client that has gone.
SERVERS: dict[str, Server] = {
    server.name: server
    for server in (
        Server(
            "uvicorn",
            frozenset(
                {
                    "uvicorn.protocols.http.h11_impl",
                    "uvicorn.protocols.http.httptools_impl",
                    "uvicorn.server",
                }
            ),
            client_gone=attrgetter("disconnected"),
            is_ending=attrgetter("should_exit"),
        ),
        Server(
            "hypercorn",
            frozenset({"hypercorn.protocol.http_stream"}),
            client_gone=attrgetter("closed"),
            gone_at_end=True,
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
