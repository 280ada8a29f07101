"""What is known of the servers that call the apps."""

from __future__ import annotations

import select
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from metricsmw.engine.recording.recorder import Recorder

    from .types import Send

# What poll() is to tell beside POLLHUP and POLLERR, which it always does.
PEER_CLOSED: int = getattr(select, "POLLRDHUP", 0)


def broken_off(environ: WSGIEnvironment, recorder: Recorder) -> bool:
    """Whether a body that was closed before its end was so by the server, as it stops."""
    try:
        if uwsgi := sys.modules.get("uwsgi"):
            # There any signal to the worker, such as the one to reload, ends a write by an error;
            # the client is still there then.
            patched = sys.modules.get("gevent.monkey")  # whose poll() does not see who has gone
            poll = patched.get_original("select", "poll") if patched else select.poll
            connection = poll()
            connection.register(uwsgi.connection_fd(), PEER_CLOSED)
            return not connection.poll(0)
        # waitress calls clients gone once it has shut down: it has no threads to go on then.
        ask = environ.get("waitress.client_disconnected")
        if ask is not None:
            dispatcher = ask.__self__.server.task_dispatcher
            return bool(len(dispatcher.threads) <= dispatcher.stop_count)
    except Exception:
        recorder.faults.report("asking the server for its client")
    return False


def connected(send: Send) -> bool | None:
    """Whether the client is still there; None where the server does not tell.

    uvicorn's request cycle knows, and hypercorn's stream; their `send` does nothing for a client
    that is gone. Other servers say it by `receive`, or by an OSError from `send`.
    """
    server = _server(send)
    for name in ("disconnected", "closed"):
        gone = getattr(server, name, None)
        if isinstance(gone, bool):
            return not gone
    return None


def _server(send: Send) -> object:
    return getattr(send, "__self__", None)


def server_is_ending() -> bool:
    """Tell whether uvicorn is about to end, which waits for open answers before it says so.

    It tells only by the owner of its signal handlers. Hypercorn cancels what is open; granian
    waits for it until its time is up.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        owner = getattr(signal.getsignal(number), "__self__", None)
        if getattr(owner, "should_exit", False) is True:
            return True
    return False
