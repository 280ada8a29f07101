"""Streams and files behind the middleware: counted when they are over, whoever ends them."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import django
import pytest
from django.core.asgi import get_asgi_application
from django.core.handlers.base import BaseHandler
from django.test import RequestFactory
from django.test.utils import override_settings
from kits.django_site import (
    SESSIONS,
    Wrapped,
    answer_of,
    answered,
    body_of,
    both,
    called,
    environ_of,
    in_flight,
    rows,
    scope_of,
    wsgi_stack,
)
from waitress.task import ThreadedTaskDispatcher
from werkzeug.wsgi import FileWrapper

from metricsmw import MetricsMonitor


@both
@pytest.mark.parametrize("kind", ["text/plain", "text/event-stream"])
def test_streams_count_when_they_are_over(
    monitor: MetricsMonitor, measured: None, asynchronous: bool, kind: str
) -> None:
    path = "/async-stream" if asynchronous else "/stream"
    request = RequestFactory().get(path)
    handler = BaseHandler()
    handler.load_middleware(is_async=asynchronous)
    if asynchronous:
        response = asyncio.run(handler.get_response_async(request))
    else:
        response = handler.get_response(request)
    response.headers["Content-Type"] = kind
    assert (monitor.total_requests, in_flight(monitor)) == (0, 1)
    if asynchronous:

        async def read() -> bytes:
            return b"".join([part async for part in response])

        assert asyncio.run(read()) == b"one\ntwo\n"
    else:
        assert b"".join(response) == b"one\ntwo\n"
    assert (monitor.total_requests, in_flight(monitor)) == (0, 1)
    time.sleep(0.05)
    response.close()
    response.close()
    assert (monitor.total_requests, in_flight(monitor)) == (1, 0)
    assert rows(monitor) == {f"GET {path}": 1}
    (row,) = monitor.get_routes()
    first = row["latency_ttfb_p50_ms"]
    assert first is not None
    if kind == "text/event-stream":
        assert row["latency_p50_ms"] == first
    else:
        assert row["latency_p50_ms"] - first >= 40


@both
@pytest.mark.parametrize("path", ["/stream", "/async-stream", "/file"])
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume")
def test_streams_are_what_they_were(
    monitor: MetricsMonitor, measured: None, path: str, asynchronous: bool
) -> None:
    def all_of(response: Any) -> tuple[int, dict[str, str], bytes]:
        body = body_of(response)
        response.close()
        return response.status_code, dict(response.headers), body

    with override_settings(MIDDLEWARE=SESSIONS):
        expected = all_of(answer_of(path, asynchronous))
    assert all_of(answer_of(path, asynchronous)) == expected
    assert rows(monitor) == {f"GET {path}": 1}
    assert in_flight(monitor) == 0


@pytest.mark.parametrize("more", [{}, {"wsgi.file_wrapper": FileWrapper}])
def test_client_gone_in_the_middle_of_a_stream(
    monitor: MetricsMonitor, measured: None, more: dict[str, Any]
) -> None:
    body = called(wsgi_stack(), environ_of("/stream") | more)
    assert next(iter(body)) == b"one\n"
    body.close()
    assert (monitor.total_requests, monitor.total_errors) == (1, 0)
    assert monitor.get_latency_percentiles() == (0.0, 0.0, 0.0)
    assert in_flight(monitor) == 0


@pytest.mark.parametrize("stopped", [False, True])
def test_waitress_that_shuts_down_is_no_client_that_goes(
    stopped: bool, monitor: MetricsMonitor, measured: None
) -> None:
    class Channel:
        __module__ = "waitress.channel"
        server = SimpleNamespace(task_dispatcher=ThreadedTaskDispatcher())

        def check_client_disconnected(self) -> bool:
            return True

    dispatcher = Channel.server.task_dispatcher
    dispatcher.set_thread_count(1)
    try:
        ask = {"waitress.client_disconnected": Channel().check_client_disconnected}
        body = called(wsgi_stack(), environ_of("/stream") | ask)
        assert next(iter(body)) == b"one\n"
        if stopped:
            dispatcher.shutdown()
        body.close()
    finally:
        dispatcher.shutdown()
    assert (monitor.total_requests, monitor.total_errors) == (1, int(stopped))
    assert in_flight(monitor) == 0


def test_stream_that_nobody_reads_is_complete(monitor: MetricsMonitor, measured: None) -> None:
    """A server reads no body for HEAD; it closes it all the same."""
    environ = environ_of("/stream")
    environ["REQUEST_METHOD"] = "HEAD"
    called(wsgi_stack(), environ).close()
    assert monitor.get_latency_percentiles() != (0.0, 0.0, 0.0)
    assert rows(monitor) == {"HEAD /stream": 1}


def test_stream_that_fails_is_an_error(monitor: MetricsMonitor, measured: None) -> None:
    body = called(wsgi_stack(), environ_of("/broken-stream"))
    with pytest.raises(RuntimeError, match="on purpose"):
        b"".join(body)
    body.close()
    assert (monitor.total_requests, monitor.total_errors) == (1, 1)
    assert in_flight(monitor) == 0


def test_async_stream_that_fails_is_an_error(monitor: MetricsMonitor, measured: None) -> None:
    with pytest.raises(RuntimeError, match="on purpose"):
        Wrapped(asynchronous=True).get("/async-broken-stream")
    assert (monitor.total_requests, monitor.total_errors) == (1, 1)
    assert in_flight(monitor) == 0


@pytest.mark.skipif(django.VERSION < (5, 0), reason="Django notices since 5.0")
def test_async_client_gone_in_the_middle_of_a_stream(
    monitor: MetricsMonitor, measured: None
) -> None:
    sent = asyncio.run(
        answered(get_asgi_application(), scope_of("/async-endless-stream"), chunks=2)
    )
    assert sent[1]["body"] == b"more\n"
    assert (monitor.total_requests, monitor.total_errors) == (1, 0)
    assert monitor.get_latency_percentiles() == (0.0, 0.0, 0.0)
    assert in_flight(monitor) == 0


@pytest.mark.parametrize("sent", [False, True])
def test_stream_that_the_end_of_the_process_cuts_short_is_an_error(
    sent: bool, monitor: MetricsMonitor, measured: None
) -> None:
    """Whether it comes as the server asks for a chunk or as it sends one: no client has gone."""

    def serve() -> None:
        body = called(wsgi_stack(), environ_of("/stream" if sent else "/leaving-stream"))
        try:
            for _ in body:
                if sent:
                    raise SystemExit("on purpose")
        finally:
            body.close()

    with pytest.raises(SystemExit, match="on purpose"):
        serve()
    assert (monitor.total_requests, monitor.total_errors) == (1, 1)
    assert monitor.get_latency_percentiles() != (0.0, 0.0, 0.0)
    assert in_flight(monitor) == 0


def test_file_wrapper_of_the_server_is_used(monitor: MetricsMonitor, measured: None) -> None:
    body = called(wsgi_stack(), environ_of("/file") | {"wsgi.file_wrapper": FileWrapper})
    assert isinstance(body, FileWrapper)
    assert b"".join(body) == b"file"
    assert (monitor.total_requests, in_flight(monitor)) == (0, 1)
    body.close()
    assert (monitor.total_requests, in_flight(monitor)) == (1, 0)
