"""A second `auth=` or `reset=` at a path that is served already is refused, under every host."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.routing import Mount
from starlette.testclient import TestClient
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from metricsmw import MetricsMonitor
from metricsmw.adapters import asgi, auth, wrap, wsgi
from metricsmw.adapters.flask import metrics_blueprint, metrics_bp

A, B = auth.token("a token of sixteen"), auth.token("another of sixteen")
PATH = "/api/metrics"
Served = Callable[[MetricsMonitor, Any], Any]


def bare_wsgi(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b""]


async def bare_asgi(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def flask_blueprint(monitor: MetricsMonitor, policy: Any) -> Flask:
    app = Flask(__name__)
    app.register_blueprint(metrics_bp if policy is None else metrics_blueprint(monitor, policy))
    return app


def flask_below(monitor: MetricsMonitor, policy: Any) -> Flask:
    app = Flask(__name__)
    blueprint = metrics_blueprint(monitor, policy, "/metrics")
    app.register_blueprint(blueprint, url_prefix="/api")
    return app


def flask_inside(monitor: MetricsMonitor, policy: Any) -> Flask:
    app = Flask(__name__)
    app.wsgi_app = ProxyFix(wrap(app.wsgi_app, monitor, auth=policy))  # type: ignore[method-assign]
    return app


def starlette_mount(monitor: MetricsMonitor, policy: Any) -> Starlette:
    return Starlette(routes=[Mount(PATH, asgi.metrics_app(monitor, policy))])


def starlette_mounts(monitor: MetricsMonitor, policy: Any) -> Starlette:
    inner = [Mount("/metrics", asgi.metrics_app(monitor, policy))]
    return Starlette(routes=[Mount("/api", routes=inner)])


def dispatcher(monitor: MetricsMonitor, policy: Any) -> Any:
    return DispatcherMiddleware(bare_wsgi, {PATH: wsgi.metrics_app(monitor, policy)})


SERVED: dict[str, Served] = {
    "wsgi": lambda monitor, policy: wrap(bare_wsgi, monitor, auth=policy),
    "wsgi in others": lambda monitor, policy: ProxyFix(wrap(bare_wsgi, monitor, auth=policy)),
    "wsgi dispatcher": dispatcher,
    "asgi": lambda monitor, policy: wrap(bare_asgi, monitor, auth=policy),
    "asgi in others": lambda monitor, policy: GZipMiddleware(wrap(bare_asgi, monitor, auth=policy)),
    "flask": lambda monitor, policy: wrap(Flask(__name__), monitor, auth=policy),
    "flask blueprint": flask_blueprint,
    "flask blueprint below": flask_below,
    "flask inside": flask_inside,
    "starlette": lambda monitor, policy: wrap(Starlette(), monitor, auth=policy),
    "starlette mount": starlette_mount,
    "starlette mounts": starlette_mounts,
    "fastapi": lambda monitor, policy: wrap(FastAPI(), monitor, auth=policy),
}


@pytest.fixture
def monitor() -> MetricsMonitor:
    return MetricsMonitor()


def status_of(app: Any, token: str) -> int:
    headers = {"Authorization": f"Bearer {token}"}
    if isinstance(app, (Flask, wsgi.WSGIMetricsMiddleware)) or hasattr(app, "mounts"):
        transport = httpx.WSGITransport(app=app)
        with httpx.Client(transport=transport, base_url="http://localhost") as client:
            return client.get(f"{PATH}/current", headers=headers).status_code
    return TestClient(app).get(f"{PATH}/current", headers=headers).status_code


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("first", [A, None], ids=["a policy", "the default"])
def test_a_second_policy_is_refused(
    monitor: MetricsMonitor, name: str, first: auth.Policy | None
) -> None:
    app = SERVED[name](monitor, first)
    with pytest.raises(ValueError, match=r"^/api/metrics is served already, by another auth="):
        wrap(app, monitor, auth=B)
    with pytest.raises(ValueError, match=r"^/api/metrics is served already, by another auth="):
        wrap(app, monitor, reset=False)


@pytest.mark.parametrize("name", SERVED)
def test_the_first_one_holds_where_the_second_says_nothing(
    monitor: MetricsMonitor, name: str
) -> None:
    app = wrap(SERVED[name](monitor, A), monitor)
    assert status_of(app, "a token of sixteen") == 200
    assert status_of(app, "another of sixteen") == 401


@pytest.mark.parametrize("name", SERVED)
def test_the_same_again_and_other_paths_are_fine(monitor: MetricsMonitor, name: str) -> None:
    app = wrap(SERVED[name](monitor, A), monitor, auth=auth.token(" a token of sixteen "))
    wrap(app, monitor, path="/others", auth=B)


def test_a_blueprint_after_it_is_refused(monitor: MetricsMonitor) -> None:
    app = wrap(Flask(__name__), monitor)
    app.register_blueprint(metrics_bp)
    with pytest.raises(ValueError, match=r"^/api/metrics is served already"):
        app.register_blueprint(metrics_blueprint(monitor, A, name="second"))


def test_two_apps_of_one_module_are_two(monitor: MetricsMonitor) -> None:
    first = wrap(Flask(__name__), monitor, auth=A)
    second = Flask(__name__)
    second.add_url_rule("/", view_func=lambda: str(first))
    wrap(second, monitor, auth=B)


@pytest.mark.parametrize(("wrapped", "mounted"), [(None, A), (A, None), (A, B)])
def test_what_starlette_mounts_afterwards_lets_nobody_in(
    monitor: MetricsMonitor, caplog: pytest.LogCaptureFixture, wrapped: Any, mounted: Any
) -> None:
    app = wrap(Starlette(middleware=[Middleware(GZipMiddleware)]), monitor, auth=wrapped)
    app.mount(PATH, asgi.metrics_app(monitor, mounted))
    caplog.set_level(logging.ERROR, "metricsmw")
    for token in ("a token of sixteen", "another of sixteen"):
        assert status_of(app, token) == 500
    assert "/api/metrics" in caplog.records[-1].getMessage()
    assert len(caplog.records) == 1


def test_the_same_mounted_afterwards_is_fine(monitor: MetricsMonitor) -> None:
    app = wrap(Starlette(), monitor, auth=A)
    app.mount(PATH, asgi.metrics_app(monitor, A))
    assert status_of(app, "a token of sixteen") == 200
