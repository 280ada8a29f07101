"""What the middlewares add to a request: on raw apps against the floors, on hosts against peers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from described import DescribedASGI, DescribedMonitor, DescribedWSGI
from floors import ASGIFloor, ASGIHonestFloor, WSGIFloor, WSGIHonestFloor
from peers import PATH, Host, hosts
from raw import (
    Requests,
    asgi_app,
    begin_asgi,
    calls_per_request,
    drive_asgi,
    drive_wsgi,
    garbage_per_request,
    route_of,
    user_of,
    wsgi_generator_app,
    wsgi_list_app,
)
from timing import Race, race

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication
    from peers import App
    from report import Report

BARE = "bare"
FLOOR = "floor"
HONEST = "honest floor"
OURS = "ours, users off"
USERS = "ours, users on"
DESCRIBED = "described way"

MICRO = 1e6

BATCH_SECONDS = 0.002  # many hundreds of requests to a raw app
HOST_BATCH_SECONDS = 0.04  # hundreds to one on a framework


def asgi(report: Report, quick: bool) -> None:
    """ASGI on the raw app."""
    app = asgi_app
    floors = {
        BARE: drive_asgi(app),
        FLOOR: drive_asgi(ASGIFloor(app)),
        HONEST: drive_asgi(ASGIHonestFloor(app)),
    }
    contenders = {
        OURS: drive_asgi(ASGIMetricsMiddleware(app, MetricsMonitor(), route=route_of)),
        USERS: drive_asgi(
            ASGIMetricsMiddleware(app, MetricsMonitor(), route=route_of, user=user_of)
        ),
        DESCRIBED: drive_asgi(DescribedASGI(app, DescribedMonitor())),
    }
    _against_floors(report, quick, "ASGI", floors, contenders, time_limit=2.0, calls_limit=14)


def wsgi(report: Report, quick: bool) -> None:
    """WSGI on the raw app, with a list for a body and with a generator."""
    apps: dict[str, WSGIApplication] = {"list": wsgi_list_app, "generator": wsgi_generator_app}
    for body, app in apps.items():
        floors = {
            BARE: drive_wsgi(app),
            FLOOR: drive_wsgi(WSGIFloor(app)),
            HONEST: drive_wsgi(WSGIHonestFloor(app)),
        }
        contenders = {
            OURS: drive_wsgi(WSGIMetricsMiddleware(app, MetricsMonitor(), route=route_of)),
            USERS: drive_wsgi(
                WSGIMetricsMiddleware(app, MetricsMonitor(), route=route_of, user=user_of)
            ),
            DESCRIBED: drive_wsgi(DescribedWSGI(app, DescribedMonitor())),
        }
        name = f"WSGI, {body} body"
        _against_floors(report, quick, name, floors, contenders, time_limit=2.5, calls_limit=18)


def peers(report: Report, quick: bool) -> None:
    """Every peer on its host, beside ours on the same host, as `wrap` puts it there."""
    for host in hosts():
        report.section(f"peers on {host.name}: added to the bare app")
        builds: dict[str, Callable[[], App]] = {
            BARE: host.build,
            OURS: partial(_ours_on, host),
            **host.peers,
        }
        contenders = {}
        for name, build in builds.items():
            app = _built(build)
            if app is None:
                report.missing(name)
            else:
                if host.drive is drive_asgi:
                    begin_asgi(app, PATH)
                contenders[name] = host.drive(app, PATH)
        if BARE in contenders and OURS in contenders:
            _against_peers(report, quick, host.name, contenders)


def _ours_on(host: Host) -> App:
    return wrap(host.build(), MetricsMonitor())


def _built(build: Callable[[], App]) -> App | None:
    """Return the app, or None where a package that it needs is not installed."""
    try:
        return build()
    except ImportError:
        return None


def _against_peers(
    report: Report, quick: bool, host: str, contenders: Mapping[str, Requests]
) -> None:
    timed = _in_a_loop(partial(race, contenders, 8 if quick else 40, HOST_BATCH_SECONDS))
    report.figure("the bare app", timed.cost(BARE).scaled(MICRO), "us")
    report.figure("ours", timed.added(OURS, BARE).scaled(MICRO), "us")
    garbage = garbage_per_request(contenders[OURS]) - garbage_per_request(contenders[BARE])
    report.figure("ours: objects left to the garbage collector", round(garbage, 1), "")
    for name in contenders:
        if name in (BARE, OURS):
            continue
        ratio = timed.ratio(name, OURS, BARE)
        report.figure(name, timed.added(name, BARE).scaled(MICRO), "us")
        report.figure(f"{name} / ours", ratio, "x")
        if name != DESCRIBED:
            report.goal(f"{host}: {name} / ours", ratio, 20, at_least=True)


def _against_floors(
    report: Report,
    quick: bool,
    protocol: str,
    floors: Mapping[str, Requests],
    contenders: Mapping[str, Requests],
    *,
    time_limit: float,
    calls_limit: int,
) -> None:
    # One of ours a race, as an app has one: two would share their code's inline caches.
    races = {
        name: race({**floors, name: contender}, 50 if quick else 300, BATCH_SECONDS)
        for name, contender in contenders.items()
    }
    report.section(f"{protocol}: added to the bare app, a request")
    report.figure("the bare app", races[OURS].cost(BARE).scaled(MICRO), "us")
    for name in (FLOOR, HONEST):
        report.figure(name, races[OURS].added(name, BARE).scaled(MICRO), "us")
    for name, timed in races.items():
        report.figure(name, timed.added(name, BARE).scaled(MICRO), "us")
        for floor in (FLOOR, HONEST):
            ratio = timed.ratio(name, floor, BARE)
            report.figure(f"  {name} / {floor}", ratio, "x")
            if name != DESCRIBED:
                report.goal(f"{protocol}: {name} / {floor}", ratio, time_limit)
    report.section(f"{protocol}: calls of functions added, a request")
    bare = calls_per_request(floors[BARE])
    for name, contender in {**floors, **contenders}.items():
        if name == BARE:
            continue
        calls = round(calls_per_request(contender) - bare, 1)
        report.figure(name, calls, "")
        if name == USERS:
            report.goal(f"{protocol}: calls added, users on", calls, calls_limit, "")


def _in_a_loop(function: Callable[[], Race]) -> Race:
    """Run `function` inside an event loop: some peers ask which loop is running."""

    async def run() -> Race:
        return function()

    return asyncio.run(run())
