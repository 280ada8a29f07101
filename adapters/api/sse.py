"""Server-sent events: the numbers once a second, worked out once for all listeners of a worker.

The first listener of an event loop starts a task that reads the metrics once a second; the last one
ends it. All listeners get the same bytes. The first event of a listener brings it up to date: it
has all steps of the window or, after a reconnect, those after `Last-Event-ID`, the number of the
last step that the client has. A slow listener skips the events in between, so that none pile up for
it.

A stream ends with the server, and after `Pace.lifetime` in any case: no server waits for it in
vain, and the client, which reconnects by itself, is checked again. Where the server does not say
that it is about to end, the stream ends after `Pace.untold_lifetime`, which is less than any
server waits for. A client that does not read for `Pace.patience` seconds is given up: its stream
ends, and where the server shows its connection, that is dropped with what lies there unread.

Format: WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from math import ceil
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, TypedDict, cast
from weakref import WeakKeyDictionary

from metricsmw import MetricsMonitor
from metricsmw.alerts import AlertRow, get_alerts
from metricsmw.engine.reading.health import ServerHealth
from metricsmw.engine.reading.moment import Reading
from metricsmw.engine.reading.routes import RouteRow
from metricsmw.engine.reading.series import Series, SeriesStep
from metricsmw.engine.storage.layout import STEPS_PER_WINDOW
from metricsmw.snapshot import SnapshotDict

from ..servers import LoopServer, loop_server, transport_of
from .encoding import to_json
from .events import EventRow, event_rows
from .messages import Response
from .off_loop import OFF_LOOP

if TYPE_CHECKING:
    from ..types import Message, Receive, Scope, Send

TABLES_EVERY = 5  # updates
LATEST_EVENTS = 20
RETRY_MILLISECONDS = 1000

HEARTBEAT = b": nothing new\n\n"


class Tables(TypedDict, total=False):
    """The tables, which are in a client's first event and in every fifth update."""

    routes: list[RouteRow]
    first_bytes: SnapshotDict
    alerts: list[AlertRow]
    health: ServerHealth
    events: list[EventRow]


class Update(Tables):
    """The data of an event."""

    metrics: dict[str, str | float | int]
    window_seconds: int
    step_seconds: float
    started: str
    reset: str | None
    series: list[SeriesStep]


class Pace(NamedTuple):
    """How often streams do what they do, and for how long.

    Attributes:
        every: Seconds from one update to the next.
        look_every: Seconds after which the server is asked again whether it is about to end.
        lifetime: Seconds after which a stream ends.
        untold_lifetime: The same where the server does not say that it is about to end.
        patience: Seconds that a client may take to read what was written; at the end of the server
            at most `every`.
    """

    every: float = 1.0
    look_every: float = 0.25
    lifetime: float = 60.0
    untold_lifetime: float = 5.0
    patience: float = 10.0


PACE = Pace()


class StalledClientError(OSError):
    """The client has not read for too long."""


class Streams:
    """The streams of one sub-app: one `_Feed` for each event loop that serves it."""

    def __init__(self, monitor: MetricsMonitor, pace: Pace = PACE) -> None:
        self._monitor = monitor
        self._pace = pace
        self._feeds: WeakKeyDictionary[asyncio.AbstractEventLoop, _Feed] = WeakKeyDictionary()

    @property
    def open(self) -> int:
        """How many streams are open."""
        return sum(feed.listeners for feed in self._feeds.values())

    async def answer(self, response: Response, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a response with `stream`, as an ASGI app, until it ends or the client has gone."""

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        headers = [
            (name.lower().encode(), text.encode("latin-1")) for name, text in response.headers
        ]
        received = dict(scope["headers"])
        last_step = _step_of(received.get(b"last-event-id", b"").decode("latin-1"))
        feed = self._feed()
        # A connection of HTTP/2 carries other requests, too.
        is_alone = str(scope.get("http_version", "")).startswith("1")
        client = _Client(send, transport_of(send) if is_alone else None, feed)
        leaving = asyncio.ensure_future(gone())
        try:
            with feed.listening() as wake:
                leaving.add_done_callback(lambda _: wake.set())
                # A client that is gone may be one that cannot be written to.
                with suppress(OSError):
                    await client.send(
                        {
                            "type": "http.response.start",
                            "status": response.status,
                            "headers": headers,
                        }
                    )
                    await self._write(feed, client, leaving, wake, last_step)
                    await client.end()
        finally:
            leaving.cancel()

    def _feed(self) -> _Feed:
        loop = asyncio.get_running_loop()
        feed = self._feeds.get(loop)
        if feed is None:
            feed = self._feeds[loop] = _Feed(self._monitor, self._pace)
        return feed

    async def _write(
        self,
        feed: _Feed,
        client: _Client,
        leaving: asyncio.Future[None],
        wake: asyncio.Event,
        last_step: int,
    ) -> None:
        """Write events until `leaving` is done, the server ends, or the time is up."""
        await client.write(b"retry: %d\n\n" % RETRY_MILLISECONDS)
        loop = asyncio.get_running_loop()
        end = loop.time() + feed.lifetime
        fresh = True
        while not leaving.done() and not feed.ending and loop.time() < end:
            if feed.number:
                body, last_step = feed.event(last_step, fresh)
                fresh = False
                wake.clear()
                await client.write(body)
            await wake.wait()


class _Client:
    """Writes to one client; one that does not read in time is dropped (`StalledClientError`)."""

    def __init__(self, send: Send, transport: asyncio.WriteTransport | None, feed: _Feed) -> None:
        self._send = send
        self._transport = transport
        self._feed = feed
        self._begun = 0.0  # when the write began that is under way
        self._writing: asyncio.Future[None] | None = None
        self._is_stalled = False

    async def write(self, body: bytes) -> None:
        """Write a part of the body."""
        await self.send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        """End the body, and wait until the server has written all of it."""
        await self.send({"type": "http.response.body", "body": b""})
        if self._transport is not None:
            await self._in_time(self._written(self._transport))

    async def send(self, message: Message) -> None:
        """Send a message."""
        await self._in_time(self._send(message))

    async def _written(self, transport: asyncio.WriteTransport) -> None:
        while transport.get_write_buffer_size():
            await asyncio.sleep(self._feed.look_every)

    async def _in_time(self, work: Awaitable[None]) -> None:
        # In a task of its own, so that it can be cancelled without this one.
        self._writing = asyncio.ensure_future(work)
        self._begun = asyncio.get_running_loop().time()
        self._feed.watch(self)
        try:
            await self._writing
        except asyncio.CancelledError:
            if not self._is_stalled:
                raise
            if self._transport is not None:
                self._transport.abort()
                await asyncio.sleep(0)  # in which the server is told
            raise StalledClientError from None
        finally:
            self._writing.cancel()
            self._feed.unwatch(self)

    def give_up(self, before: float) -> None:
        """Give up a write that began before a time of the event loop."""
        if self._writing is not None and self._begun < before:
            self._is_stalled = True
            self._writing.cancel()


class _Feed:
    """The latest update for the listeners of one event loop, and the task that makes it."""

    def __init__(self, monitor: MetricsMonitor, pace: Pace) -> None:
        self.number = 0  # of the latest update
        self.ending = False
        self.look_every = pace.look_every
        self._pace = pace
        self._server: LoopServer | None = None
        self._monitor = monitor
        self._listeners: set[asyncio.Event] = set()
        self._writing: set[_Client] = set()
        self._watch: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._update: Update | None = None
        self._steps: list[SeriesStep] = []  # of the window
        self._tables: Tables = {}
        self._read_at = self._reset_at = 0.0
        self._shared = HEARTBEAT  # the latest update, for those who got the one before
        self._shared_from = self._shared_to = 0  # the last steps of that one, and of the latest

    @property
    def lifetime(self) -> float:
        """For how many seconds a stream may go on."""
        known = self._server is not None and self._server.can_tell
        return self._pace.lifetime if known else self._pace.untold_lifetime

    @property
    def patience(self) -> float:
        """Seconds that a client may take to read."""
        most = self._pace.every if self.ending else self.lifetime
        return min(self._pace.patience, most)

    def watch(self, client: _Client) -> None:
        """Give up a client's write where it takes too long."""
        self._writing.add(client)
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(self.look_every, self._look)

    def unwatch(self, client: _Client) -> None:
        """Note that a client's write is over."""
        self._writing.discard(client)

    def _look(self) -> None:
        self._watch = None
        loop = asyncio.get_running_loop()
        for client in tuple(self._writing):
            # The server may have begun to end meanwhile, and patience with it.
            client.give_up(loop.time() - self.patience)
        if self._writing:
            self._watch = loop.call_later(self.look_every, self._look)

    @property
    def listeners(self) -> int:
        """How many streams take part."""
        return len(self._listeners)

    @contextmanager
    def listening(self) -> Iterator[asyncio.Event]:
        """Count as a listener; the event is set at each update and at the end."""
        wake = asyncio.Event()
        self._listeners.add(wake)
        if self._task is None or not self._is_server_ending():
            self._server = loop_server(anew=True)
        if self._task is None:
            self.number, self.ending = 0, False
            self._update = None
            self._task = asyncio.get_running_loop().create_task(self._run())
        try:
            yield wake
        finally:
            self._listeners.discard(wake)
            if not self._listeners and self._task is not None:
                self._task.cancel()
                self._task = None

    def event(self, last_step: int, fresh: bool) -> tuple[bytes, int]:
        """Return the latest update for a client, and the number of the last step in it.

        Args:
            last_step: The number of the last step that the client has; steps count from 1.
            fresh: The client has got nothing of this feed yet.
        """
        if self._update is None:
            return HEARTBEAT, last_step
        if not fresh and last_step == self._shared_from:
            return self._shared, self._shared_to
        last = self._shared_to
        # A number from before a reboot may be beyond what there is.
        steps = [row for row in self._steps if row["step"] > last_step or last_step > last]
        update = {**self._update, "series": steps, **(self._tables if fresh else {})}
        return _event(cast("Update", update), last), last

    async def _run(self) -> None:
        me = asyncio.current_task()
        try:
            while not self.ending:
                await self._refresh()
                self._wake_all()
                await self._pause()
        finally:
            # Not where the last listener left, and maybe the next one has come already.
            if self._task is me:
                self.ending, self._task = True, None
                self._wake_all()

    async def _pause(self) -> None:
        """Wait for the time of the next update, or until the server is about to end."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._pace.every
        while not self.ending and (left := due - loop.time()) > 0:
            await asyncio.sleep(min(left, self._pace.look_every))
            self.ending = self._is_server_ending()

    def _is_server_ending(self) -> bool:
        return self._server is not None and self._server.is_ending()

    def _wake_all(self) -> None:
        for wake in self._listeners:
            wake.set()

    async def _refresh(self) -> None:
        """Read the metrics; where that fails, the listeners get a heartbeat."""
        before, now = self._update, monotonic()
        since = before and ceil(now - self._read_at + before["step_seconds"])
        with_tables = self.number % TABLES_EVERY == 0
        work = partial(
            read_feed, self._monitor, since=since, reset_at=self._reset_at, with_tables=with_tables
        )
        try:
            reading = await OFF_LOOP.read(self._monitor, work, routes=with_tables)
            self._read_at = now
            self._take(reading)
        except Exception:
            self._monitor.recorder.faults.report("the stream")
            self._shared, self._shared_from = HEARTBEAT, self._shared_to
        self.number += 1

    def _take(self, reading: FeedReading) -> None:
        """Make an update of a reading."""
        series = reading.series
        if reading.anew:
            self._steps = []
        known = self._steps[-1]["step"] if self._steps else 0
        new = [row for row in series["series"] if row["step"] > known]
        self._steps = [*self._steps, *new][-STEPS_PER_WINDOW:]
        self._reset_at = reading.reset_at
        self._tables = reading.tables or self._tables
        self._update = {
            "metrics": reading.metrics,
            "window_seconds": self._monitor.window_seconds,
            "step_seconds": series["step_seconds"],
            "started": series["started"],
            "reset": series["reset"],
            "series": new,
            **reading.tables,
        }
        if "events" in self._update:  # whoever listens already has the earlier ones
            self._update["events"] = self._update["events"][-LATEST_EVENTS:]
        self._shared_from = known
        self._shared_to = self._steps[-1]["step"] if self._steps else known
        self._shared = _event(self._update, self._shared_to)


class FeedReading(NamedTuple):
    """The parts of one reading.

    Attributes:
        metrics: The snapshot's fields.
        series: The steps, new ones only or, with `anew`, all of the window.
        anew: Steps read before do not count any more.
        reset_at: Monotonic time of the last reset.
        tables: Routes and alerts, where they were asked for.
    """

    metrics: dict[str, str | float | int]
    series: Series
    anew: bool
    reset_at: float
    tables: Tables


def read_feed(
    monitor: MetricsMonitor,
    reading: Reading,
    *,
    since: int | None,
    reset_at: float,
    with_tables: bool,
) -> FeedReading:
    """Return a reading's numbers and its steps of the last `since` seconds, or of the window."""
    anew = since is None or reading.reset_at != reset_at
    tables: Tables = {}
    if with_tables:
        tables = {
            "routes": reading.routes,
            "first_bytes": reading.first_bytes_ms,
            "alerts": get_alerts(monitor)[0],
            "health": reading.health,
            "events": event_rows(monitor),
        }
    return FeedReading(
        reading.snapshot.to_dict(),
        reading.series(None if anew else since),
        anew,
        reading.reset_at,
        tables,
    )


def _event(update: Update, last: int) -> bytes:
    return b"id: %d\nevent: update\ndata: %b\n\n" % (last, to_json(update))


def _step_of(last_event_id: str) -> int:
    """Return the number of the step that a client names; 0 where it names none."""
    short = len(last_event_id) <= 15 and last_event_id.isascii() and last_event_id.isdigit()
    return int(last_event_id) if short else 0
