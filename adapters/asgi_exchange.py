"""One ASGI request and its response: the methods that every request calls, and the rarer ones.

The hot path, with `asgi`. `send` returns the server's own awaitable. Only the last message is
awaited here, because the latency ends when the server has taken it.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, ClassVar

from metricsmw.engine.recording.exchange import (
    COMPLETE,
    DISCONNECTED,
    FAILED,
    OPEN,
    WATCHED,
    Carriers,
)

from .measurement import Measurement
from .resolvers import has_registered, reader, route_of_scope, scope_reader, user_of_scope
from .resolvers.base import FRAMEWORK_KEY, session_user
from .servers import Server

if TYPE_CHECKING:
    from metricsmw.engine.recording.recorder import Recorder

    from .types import Message, Receive, Scope, ScopeRoute, ScopeUser, Send

START = "http.response.start"
BODY = "http.response.body"
TRAILERS = "http.response.trailers"
# Messages that end a response without trailers, unless they say that more comes.
FINAL = {BODY, "http.response.pathsend", "http.response.zerocopysend"}


# Keys in scope of frameworks that make answers of exceptions with a status, outside of a middleware
# that stands before a route.
_ANSWERS = {"litestar_app", "starlette.exception_handlers"}


class ASGIMeasurement(Measurement):
    """One request and its response; the attributes are set by the middleware.

    Attributes:
        headers: Before a stream begins the message that has started the response.
        inner: The server's `send`.
        owner: The object that `send` is a method of; None: it is none.
        server: The server's entry in the table; None: it has none.
    """

    __slots__ = ("inner", "owner")

    method_key = "method"
    scheme_key = "scheme"
    server: ClassVar[Server | None]

    inner: Send
    owner: Any
    status: int | None

    def send(self, message: Message) -> Awaitable[None]:
        """Send a message of the response."""
        raise NotImplementedError

    def listen(self, receive: Receive) -> Receive:
        """Return what the app is to receive by, where only that says that the client has gone."""
        raise NotImplementedError

    def complete_otherwise(self) -> None:
        """Report a complete response that is not as most are; none before it has started."""
        if self.status is not None:
            self.report(COMPLETE)

    def start_again(self, message: Message) -> None:
        """Note a start that the server has taken in place of one that it had refused."""
        if self.awaits_first_byte():
            self.status = message["status"]
            self.headers = message
            self.watch().has_trailers = bool(message.get("trailers"))

    def client_gone(self) -> bool:
        """Return whether the client has gone, by the server; False where it does not say."""
        try:
            return self.server is not None and bool(self.server.client_gone(self.owner))
        except Exception:
            self.recorder.faults.report("asking the server for its client")
            return False

    def not_sent(self, error: BaseException, gone: bool) -> None:
        """Note that a message was not sent.

        Args:
            error: What the server's `send` has raised.
            gone: The client had gone before.
        """
        if isinstance(error, OSError):
            self.watch().gone = True
        elif not (gone or isinstance(error, Exception) or self.status is None):
            # The app is told of the end of the response, and so cancelled, before this `send`
            # returns: by the server itself under Trio, or as a middleware of others goes on after
            # the server's `send`. All bytes had gone.
            server = self.server
            if server is None:
                is_over = self.state is WATCHED and self.watched.gone
            else:
                is_over = server.gone_at_end and self.client_gone()
            if is_over:
                self.report(COMPLETE)

    def report_gone(self) -> None:
        """Report a response whose client was not there for its last message."""
        if self.status is not None:
            is_head = self.carrier.get("method") == "HEAD"  # which has all with the start
            self.report(COMPLETE if is_head else DISCONNECTED)

    def failed(self, error: BaseException | None, scope: Scope) -> None:
        """Report that the app ended without a complete response, or has raised after it."""
        if not self.is_open:
            # Of its own failures the server has answered, and then raised, the exception is counted
            # with the answer. Here it is that of a background task, say.
            late = self.state is COMPLETE and isinstance(error, Exception)
            if late and self.status is not None and self.status < 500:
                route, method = self._template(scope), self.method(scope)
                self.recorder.errors.raised(error, self.status, route, method)
            return
        gone = self.state is WATCHED and self.watched.gone
        if self.status is None and _ANSWERS & self.carrier.keys():
            try:
                code = getattr(error, "status_code", None)
            except Exception:  # a property of the app's own
                code = None
            if isinstance(code, int):
                self.status = code
                self.report(COMPLETE)
                return
        # A server of which nothing is known cancels the app for a client that has gone.
        cancelled = self.server is None and isinstance(error, CancelledError)
        if not (gone or cancelled or self.client_gone()):
            self.report(FAILED, error)
        elif self.status is not None and self.carrier.get("method") == "HEAD":
            self.watch().first_byte = 0.0
            self.report(COMPLETE)  # which has all with the start
        else:
            self.report(DISCONNECTED)


class ListeningMeasurement(ASGIMeasurement):
    """One under a server of which nothing is known: only `receive` says that the client has gone.

    Attributes:
        inner_receive: The server's `receive`.
    """

    __slots__ = ("inner_receive",)

    inner_receive: Receive

    def listen(self, receive: Receive) -> Receive:
        """Return what the app is to receive by."""
        self.inner_receive = receive
        return self.receive

    async def receive(self) -> Message:
        """Receive from the server, and note whether the client has gone."""
        message = await self.inner_receive()
        if message["type"] == "http.disconnect":
            self.watch().gone = True
        return message


def exchange_class(
    recorder: Recorder, route: ScopeRoute | None, user: ScopeUser | None, server: Server | None
) -> tuple[type[ASGIMeasurement], bool]:
    """Return the subclass of one middleware and server, and whether it has to listen.

    What is the same for each request is in closures.
    """
    fault, clock = recorder.faults.report, recorder.clock
    is_asked_first = server is not None and server.gone_at_end
    client_gone = None if server is None or is_asked_first else server.client_gone
    complete = recorder.completing(
        Carriers(
            "method",
            "scheme",
            ("router", FRAMEWORK_KEY),
            scope_reader(route, user, recorder.faults),
            always=lambda: route is not None or user is not None or has_registered("asgi"),
            read_any=reader(route or route_of_scope, user or user_of_scope, recorder.faults),
            user_key="session",
            user_of=session_user,
            fault=fault,
        )
    )

    class Exchange(ASGIMeasurement):
        """The methods that every request calls."""

        __slots__ = ()

        def send(self, message: Message) -> Awaitable[None]:
            if self.status is None and message["type"] == START:
                try:  # noqa: SIM105
                    self.status = message["status"]
                except KeyError:  # which the server refuses
                    pass
                self.headers = message
                if "trailers" in message and message["trailers"]:  # noqa: RUF019 - it is quicker
                    self.watch().has_trailers = True
                inner = self.inner
                return inner(message)
            if (
                self.state is OPEN
                and message["type"] == BODY
                and ("more_body" not in message or not message["more_body"])
            ):
                return self.send_last(message)
            return self.send_other(message)

        async def send_last(self, message: Message) -> None:
            """Send what completes a response as most are, and report it."""
            if is_asked_first and self.client_gone():
                self.watch().gone = True
                await self.send_other(message)
                return
            inner = self.inner
            try:
                await inner(message)
            except BaseException as error:
                self.not_sent(error, gone=False)
                raise
            if client_gone is not None:
                try:
                    gone = client_gone(self.owner)
                except Exception:
                    gone = False
                    fault("asking the server for its client")
                if gone:
                    self.report_gone()
                    return
            complete(self)

        async def send_other(self, message: Message) -> None:
            """Send part of a stream, a rarer message, one out of turn, or any last one."""
            watched = self.watched if self.state is WATCHED else None
            if watched is not None and watched.has_trailers:
                last = message["type"] == TRAILERS and not message.get("more_trailers")
            else:
                last = message["type"] in FINAL and not message.get("more_body")
            # Not what `receive` says from here on: servers end it once they have the last message.
            gone = (watched is not None and watched.gone) or (
                last and is_asked_first and self.client_gone()
            )
            inner = self.inner
            try:
                await inner(message)
            except BaseException as error:
                self.not_sent(error, gone or not last)
                raise
            if not last:
                try:
                    if message["type"] == START:
                        self.start_again(message)
                    elif (
                        message.get("body") and self.status is not None and self.awaits_first_byte()
                    ):
                        self.note_first_byte(clock())
                        self.headers = self.headers.get("headers", ())
                except Exception:
                    fault("recording a request")
            elif gone or (not is_asked_first and self.client_gone()):
                self.report_gone()
            else:
                complete(self)

    Exchange.recorder, Exchange.server = recorder, server
    Exchange.route_of, Exchange.user_of = (
        staticmethod(route or route_of_scope),
        staticmethod(user or user_of_scope),
    )
    if server is not None:
        return Exchange, False
    return type("Listening", (ListeningMeasurement, Exchange), {"__slots__": ()}), True
