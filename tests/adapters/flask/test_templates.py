"""Routes of Flask's requests, whatever stands around or inside of the app."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Blueprint, Flask, Response, abort, session, stream_with_context
from kits.flask_site import hello, rows
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import Client

from metricsmw import MetricsMonitor
from metricsmw.adapters import wrap
from metricsmw.adapters.flask import (
    instrument,
)
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware


@pytest.mark.parametrize(
    ("path", "row"),
    [
        ("/", "GET /"),
        ("/items/7", "GET /items/<int:id>"),
        ("/files/a/b", "GET /files/<path:rest>"),
        ("/outer/inner/x/7", "GET /outer/inner/x/<y>"),
        ("/items/%C3%A9", "GET <unmatched>"),
        ("/files/%FF", "GET /files/<path:rest>"),
        ("/none", "GET <unmatched>"),
        ("/slash", "GET <unmatched>"),  # the redirect to /slash/
        ("/abort", "GET /abort"),
        ("/fail", "GET /fail"),
        ("/static/none.css", "GET /static/<path:filename>"),
    ],
)
def test_template(app: Flask, monitor: MetricsMonitor, path: str, row: str) -> None:
    def fail() -> str:
        raise RuntimeError("on purpose")

    inner = Blueprint("inner", __name__, url_prefix="/inner")
    inner.add_url_rule("/x/<y>", view_func=hello, endpoint="hello")
    outer = Blueprint("outer", __name__)
    outer.register_blueprint(inner)
    app.register_blueprint(outer, url_prefix="/outer")
    app.add_url_rule("/items/<int:id>", view_func=hello)
    app.add_url_rule("/files/<path:rest>", view_func=hello)
    app.add_url_rule("/slash/", view_func=hello)
    app.add_url_rule("/abort", view_func=lambda: abort(418), endpoint="abort")
    app.add_url_rule("/fail", view_func=fail)
    instrument(app, monitor)
    for _ in range(2):
        app.test_client().get(path)
    assert rows(monitor) == {row: 2}


def test_wrong_method_names_the_template(app: Flask, monitor: MetricsMonitor) -> None:
    app.add_url_rule("/items/<int:id>", view_func=hello, methods=["GET", "PUT"])
    client = instrument(app, monitor).test_client()
    assert client.delete("/items/7").status_code == 405
    assert client.options("/items/7").status_code == 200
    assert rows(monitor) == {"DELETE /items/<int:id>": 1, "OPTIONS /items/<int:id>": 1}


def test_a_wrong_method_where_others_are_redirected(app: Flask, monitor: MetricsMonitor) -> None:
    """No rule's, as the redirect itself; and no fault."""
    app.add_url_rule("/pages/", defaults={"page": 1}, view_func=hello)
    app.add_url_rule("/pages/<int:page>", view_func=hello)
    client = instrument(app, monitor).test_client()
    assert client.get("/pages/1").status_code == 308
    assert client.post("/pages/1").status_code == 405
    assert client.post("/pages/2").status_code == 405
    assert rows(monitor) == {
        "GET <unmatched>": 1,
        "POST <unmatched>": 1,
        "POST /pages/<int:page>": 1,
    }
    assert monitor.get_health()["faults"] == 0


@pytest.mark.parametrize("inside", [True, False], ids=["each app", "the dispatcher"])
def test_mounted_by_a_dispatcher(monitor: MetricsMonitor, inside: bool) -> None:
    def make() -> Flask:
        app = Flask(__name__)
        app.add_url_rule("/items/<id>", view_func=hello)
        return instrument(app, monitor) if inside else app

    mounted: Any = DispatcherMiddleware(make(), {"/shop": make(), "/shop/deep": make()})
    client = Client(mounted if inside else wrap(mounted, monitor))
    for path in ("/items/1", "/shop/items/1", "/shop/deep/items/1", "/shop/none"):
        client.get(path).close()
    assert rows(monitor) == {
        "GET /items/<id>": 1,
        "GET /shop/items/<id>": 1,
        "GET /shop/deep/items/<id>": 1,
        "GET <unmatched>": 1,
    }


def test_flask_inside_another_middleware(app: Flask, monitor: MetricsMonitor) -> None:
    app.add_url_rule("/items/<id>", view_func=hello)
    client = Client(WSGIMetricsMiddleware(ProxyFix(app.wsgi_app), monitor))
    client.get("/items/7").close()
    assert rows(monitor) == {"GET /items/<id>": 1}


@pytest.mark.parametrize("with_context", [False, True])
def test_streams_are_of_their_route(
    app: Flask, monitor: MetricsMonitor, with_context: bool
) -> None:
    def stream() -> Response:
        def lines() -> Iterator[str]:
            yield "one\n"
            assert monitor.total_requests == 0
            yield "two\n"

        session["user"] = "ann"
        return Response(stream_with_context(lines()) if with_context else lines())

    app.add_url_rule("/stream/<x>", view_func=lambda x: stream(), endpoint="stream")
    response = instrument(app, monitor).test_client().get("/stream/7")
    assert response.get_data() == b"one\ntwo\n"
    response.close()
    assert rows(monitor) == {"GET /stream/<x>": 1}
    assert monitor.get_active_user_ids() == ["ann"]


def test_a_body_that_another_middleware_makes_counts_when_it_is_closed(
    app: Flask, monitor: MetricsMonitor
) -> None:
    inner = app.wsgi_app

    def louder(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        return map(bytes.upper, inner(environ, start_response))

    app.wsgi_app = louder  # type: ignore[method-assign]
    answer = instrument(app, monitor).test_client().get("/")
    assert answer.get_data() == b"HELLO"
    assert monitor.total_requests == 0
    answer.close()
    assert rows(monitor) == {"GET /": 1}


def test_exception_that_escapes(app: Flask, monitor: MetricsMonitor) -> None:
    def fail() -> str:
        raise RuntimeError("on purpose")

    app.add_url_rule("/fail", view_func=fail)
    app.testing = True
    with pytest.raises(RuntimeError, match="on purpose"):
        instrument(app, monitor).test_client().get("/fail")
    assert rows(monitor) == {"GET /fail": 1}
    assert (monitor.total_requests, monitor.total_errors) == (1, 1)
    assert monitor.get_current_snapshot().requests_in_flight == 0
