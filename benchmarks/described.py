"""The described system's way, to measure against: one deque of requests under one reentrant lock.

Every request is kept (at most 10,000), and each read walks and sorts those of the window.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from flask import Flask, Response
    from raw import ASGIApp, Message, Receive, Scope, Send


class DescribedMonitor:
    """Records and reads as described; the numbers are those of one process."""

    def __init__(self, window_seconds: int = 300) -> None:
        self._window = window_seconds
        self._lock = threading.RLock()
        self._requests: deque[tuple[float, float, bool]] = deque(maxlen=10_000)
        self._users: dict[str, float] = {}
        self._total_requests = 0
        self._total_errors = 0
        self._process = psutil.Process()

    def record_request(
        self, latency_ms: float, is_error: bool = False, user_id: str | None = None
    ) -> None:
        now = time.time()
        with self._lock:
            self._requests.append((now, latency_ms, is_error))
            self._total_requests += 1
            if is_error:
                self._total_errors += 1
            if user_id:
                self.record_user_activity(user_id)

    def record_user_activity(self, user_id: str) -> None:
        with self._lock:
            self._users[user_id] = time.time()

    def get_current_snapshot(self) -> dict[str, float]:
        now = time.time()
        with self._lock:
            recent = [entry for entry in self._requests if entry[0] >= now - self._window]
            latencies = sorted(entry[1] for entry in recent)
            count = max(len(latencies), 1)
            return {
                "request_rate_rpm": len(recent) * 60 / self._window,
                "error_rate_pct": sum(entry[2] for entry in recent) * 100 / count,
                "latency_p50_ms": latencies[len(latencies) // 2] if latencies else 0.0,
                "latency_p95_ms": latencies[int(len(latencies) * 0.95)] if latencies else 0.0,
                "latency_p99_ms": latencies[int(len(latencies) * 0.99)] if latencies else 0.0,
                "active_users": sum(seen >= now - 300 for seen in self._users.values()),
                "memory_usage_mb": self._process.memory_info().rss / 2**20,
                "cpu_usage_pct": self._process.cpu_percent(),
                "total_requests": self._total_requests,
                "total_errors": self._total_errors,
            }


class DescribedASGI:
    """The classic ASGI wrapper: an async `send` that looks at each message's type."""

    def __init__(self, app: ASGIApp, monitor: DescribedMonitor) -> None:
        self.app = app
        self.monitor = monitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500

        async def timed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        start = time.perf_counter()
        try:
            await self.app(scope, receive, timed_send)
        finally:
            self.monitor.record_request((time.perf_counter() - start) * 1000, status >= 400)


class DescribedWSGI:
    """The classic WSGI wrapper: the time that the app takes to return."""

    def __init__(self, app: WSGIApplication, monitor: DescribedMonitor) -> None:
        self.app = app
        self.monitor = monitor

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        status = 500

        def timed_start(line: str, *rest: object) -> Callable[[bytes], object]:
            nonlocal status
            status = int(line.split(" ", 1)[0])
            return start_response(line, *rest)  # type: ignore[arg-type]

        start = time.perf_counter()
        try:
            return self.app(environ, timed_start)
        finally:
            self.monitor.record_request((time.perf_counter() - start) * 1000, status >= 400)


def instrument_flask(app: Flask, monitor: DescribedMonitor) -> None:
    """Install the described middleware for Flask: before and after each request."""
    from flask import g, session

    def before() -> None:
        g.start = time.time()

    def after(response: Response) -> Response:
        latency_ms = (time.time() - g.start) * 1000
        monitor.record_request(latency_ms, response.status_code >= 400, session.get("user"))
        return response

    app.before_request(before)
    app.after_request(after)
