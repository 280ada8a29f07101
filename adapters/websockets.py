"""A WebSocket of an ASGI app, counted as open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .servers import ByType, Server

if TYPE_CHECKING:
    from metricsmw.engine.recording.recorder import Recorder

    from .types import Message, Receive, Send


_SERVERS: ByType[Server | None] = ByType(lambda server: server)


class Socket:
    """One WebSocket: open from its accept to its end, whichever side ends it.

    An app that only sends hears of the end by `send`; where that says nothing, the server is asked.
    """

    __slots__ = ("_inner", "_inner_receive", "_open", "_owner", "_recorder", "_server")

    def __init__(self, recorder: Recorder, receive: Receive, send: Send) -> None:
        self._recorder = recorder
        self._inner_receive = receive
        self._inner = send
        self._owner = getattr(send, "__self__", None)
        self._server = _SERVERS[type(self._owner)]
        self._open = False

    async def receive(self) -> Message:
        """Pass on what the client sends; its end closes the socket."""
        message = await self._inner_receive()
        if message["type"] == "websocket.disconnect":
            self.closed()
        return message

    async def send(self, message: Message) -> None:
        """Pass on what the app sends; its accept opens the socket, and its close closes it."""
        try:
            await self._inner(message)
        except OSError:  # the client is gone
            self.closed()
            raise
        if message["type"] == "websocket.accept":
            self._change(True)
        elif message["type"] == "websocket.close" or self._is_gone():
            self.closed()

    def _is_gone(self) -> bool:
        try:
            return self._server is not None and self._server.client_gone(self._owner)
        except Exception:
            self._recorder.faults.report("asking the server for its client")
            return False

    def closed(self) -> None:
        """Count the socket as closed, where it is open."""
        self._change(False)

    def _change(self, opened: bool) -> None:
        if opened is self._open:
            return
        try:
            if opened:
                self._recorder.websocket_opened()
            else:
                self._recorder.websocket_closed()
            self._open = opened
        except Exception:
            self._recorder.faults.report("counting a WebSocket")
