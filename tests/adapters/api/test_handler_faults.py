"""Faults of answers, policies and identities let nobody in, nor do those that are awaited."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Generator
from typing import NoReturn

import pytest
from kits.handlers import (
    GUARDED,
    ask,
    assert_error,
)

from metricsmw import MetricsMonitor
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.api.messages import Identity, Request
from metricsmw.adapters.auth import Policy, public, session, token
from metricsmw.engine.reading.server import ServerReading


class TestFaults:
    SECRET = "the inside of the inside"

    def break_(self, *args: object) -> NoReturn:
        raise RuntimeError(self.SECRET)

    def test_of_an_answer(
        self,
        monitor: MetricsMonitor,
        handlers: Handlers,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monitor.record_request(1.0)
        monkeypatch.setattr(ServerReading, "routes", self.break_)
        with caplog.at_level(logging.DEBUG):
            for _ in range(3):
                assert_error(ask(handlers, "/routes"), 500, "Internal error")
        assert caplog.text.count(f"RuntimeError: {self.SECRET}") == 1
        assert monitor.get_health()["faults"] == 3
        assert ask(handlers, "/current").status == 200

    @pytest.mark.parametrize("method", ["GET", "POST"])
    @pytest.mark.parametrize("path", GUARDED)
    def test_of_a_policy_lets_nobody_in(
        self, monitor: MetricsMonitor, caplog: pytest.LogCaptureFixture, path: str, method: str
    ) -> None:
        monitor.record_request(1.0)
        handlers = Handlers(monitor, self.break_)
        with caplog.at_level(logging.DEBUG):
            for _ in range(3):
                assert_error(ask(handlers, path, method), 500, "Internal error")
        assert caplog.text.count(f"RuntimeError: {self.SECRET}") == 1
        assert monitor.total_requests == 1

    def test_of_an_identity_lets_nobody_in(self, monitor: MetricsMonitor) -> None:
        response = ask(Handlers(monitor, session()), "/current", identity=self.break_)
        assert_error(response, 500, "Internal error")

    def test_is_logged_once_whatever_clients_ask(
        self, monitor: MetricsMonitor, caplog: pytest.LogCaptureFixture
    ) -> None:
        handlers = Handlers(monitor, self.break_)
        with caplog.at_level(logging.DEBUG):
            for number in range(10):
                assert ask(handlers, f"/nope/{number}").status == 500
        assert caplog.text.count(f"RuntimeError: {self.SECRET}") == 1

    def test_a_process_that_ends_ends(self, monitor: MetricsMonitor) -> None:
        def end(request: Request) -> bool:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ask(Handlers(monitor, end), "/current")


class Wait:
    """Something to await that only an event loop can end."""

    def __await__(self) -> Generator[None, None, None]:
        yield


async def yes_at_once(request: Request) -> bool:
    return True


async def yes_later(request: Request) -> bool:
    await Wait()
    return True


async def no_later(request: Request) -> bool:
    await Wait()
    return False


async def yes_in_yes(request: Request) -> object:
    return yes_at_once(request)


async def fault_later(request: Request) -> bool:
    await Wait()
    raise RuntimeError


async def ann() -> str | None:
    await Wait()
    return "ann"


class TestWaiting:
    """Policies and identities that are `async def`: awaited under ASGI, never taken for a yes."""

    @pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
    @pytest.mark.parametrize(
        ("policy", "here", "awaited"),
        [
            (yes_at_once, 200, 200),
            (yes_later, 500, 200),
            (no_later, 500, 401),
            (fault_later, 500, 500),
            (yes_in_yes, 500, 500),
            (lambda request: (each for each in [True]), 500, 500),
        ],
    )
    def test_policies(
        self, monitor: MetricsMonitor, policy: Policy, here: int, awaited: int
    ) -> None:
        self.assert_statuses(Handlers(monitor, policy), lambda: None, here, awaited)

    @pytest.mark.parametrize(
        ("policy", "here", "awaited"),
        [
            (lambda request: request.identity() == "ann", 500, 200),
            (lambda request: request.identity() == "bob", 500, 401),
            (session(), 500, 200),
            (None, 500, 200),
            (token("secret"), 401, 401),
            (public(), 200, 200),
        ],
    )
    def test_identities(
        self, monitor: MetricsMonitor, policy: Policy | None, here: int, awaited: int
    ) -> None:
        self.assert_statuses(Handlers(monitor, policy), ann, here, awaited)

    @staticmethod
    def assert_statuses(handlers: Handlers, identity: Identity, here: int, awaited: int) -> None:
        def request() -> Request:
            return Request("GET", "/current", "", {}, identity)

        assert handlers.handle(request()).status == here
        assert asyncio.run(handlers.handle_async(request())).status == awaited

    def test_a_policy_that_never_gives_up_waiting(self, monitor: MetricsMonitor) -> None:
        async def stubborn(request: Request) -> bool:
            while True:
                with contextlib.suppress(RuntimeError):
                    await Wait()

        response = ask(Handlers(monitor, stubborn), "/current")
        assert_error(response, 500, "Internal error")

    def test_an_identity_that_turns_out_to_be_a_coroutine_is_nobody(
        self, monitor: MetricsMonitor
    ) -> None:
        handlers = Handlers(monitor, session())
        request = Request("GET", "/current", "", {}, lambda: ann())
        assert asyncio.run(handlers.handle_async(request)).status == 500

    def test_an_identity_is_awaited_once_and_only_if_needed(self, monitor: MetricsMonitor) -> None:
        asks: list[bool] = []

        class Host:
            async def __call__(self) -> str:
                asks.append(True)
                return "ann"

        def twice(request: Request) -> bool:
            return request.identity() == request.identity() == "ann"

        def status(policy: Policy, path: str) -> int:
            request = Request("GET", path, "", {}, functools.partial(Host()))
            return asyncio.run(Handlers(monitor, policy).handle_async(request)).status

        assert status(twice, "/current") == 200
        assert len(asks) == 1

        async def settled_twice(request: Request) -> bool:
            await request.settle()
            return request.identity() == "ann"

        assert status(settled_twice, "/current") == 200
        assert len(asks) == 2
        assert status(public(), "/health") == 200
        assert status(public(), "/current") == 200
        assert status(token("secret"), "/current") == 401
        assert len(asks) == 2
