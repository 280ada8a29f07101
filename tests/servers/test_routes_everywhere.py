"""The sub-app's routes under real servers: each framework, each kind of server, one kit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kits.routes_kit import TOKEN, Api, Host, RoutesKit, RoutesSmoke
from kits.servers import Server, serve

FLASK = "apps.flask_app:app"
DJANGO_WSGI = "apps.django_wsgi:app"
DJANGO_ASGI = "apps.django_asgi:app"
STARLETTE = "apps.starlette_app:app"
FASTAPI = "apps.fastapi_app:app"

SYNC = ["--worker-class", "sync"]
GTHREAD = ["--worker-class", "gthread", "--threads", "4"]

CONVERTER = "/items/<int:id>"

# Each adapter once: the sub-apps, Flask, Django under WSGI and under ASGI, FastAPI, Starlette. And
# each server, with several workers where it has them.
IN_FULL = [
    Host("gunicorn", FLASK, GTHREAD, 2, CONVERTER, session=True),
    Host("gunicorn", DJANGO_WSGI, SYNC, 2, CONVERTER, session=True),
    Host("uvicorn", DJANGO_ASGI, [], 2, CONVERTER, session=True),
    Host("uvicorn", FASTAPI, [], 3, "/items/{id}", session=True, websocket=True),
    Host("uvicorn", STARLETTE, [], 2, "/items/{id:int}", session=True, websocket=True),
    # waitress reads a body to its end before it calls the app.
    Host("waitress", "apps.raw_wsgi:app", concurrent=False),
    Host("hypercorn", "apps.raw_asgi:app", websocket=True),
]
# The same adapters with one worker, and with workers of another kind.
SMOKE = [
    Host("gunicorn", FLASK, SYNC, 1, CONVERTER, session=True, concurrent=False),
    Host("gunicorn", FLASK, SYNC, 3, CONVERTER, session=True),
    Host("gunicorn", FLASK, GTHREAD, 1, CONVERTER, session=True),
    Host("gunicorn", DJANGO_WSGI, SYNC, 1, CONVERTER, session=True, concurrent=False),
    Host("uvicorn", DJANGO_ASGI, [], 1, CONVERTER, session=True),
    Host("uvicorn", FASTAPI, [], 1, "/items/{id}", session=True, websocket=True),
    Host("uvicorn", STARLETTE, [], 1, "/items/{id:int}", session=True, websocket=True),
]


@pytest.fixture(scope="class")
def host(request: pytest.FixtureRequest) -> Host:
    assert isinstance(request.param, Host)
    return request.param


@pytest.fixture(scope="class")
def server(host: Host) -> Iterator[Server]:
    """The host, running; becoming ready has left nothing in its numbers."""
    env = {"METRICSMW_TOKEN": TOKEN}
    with serve(host.server, host.app, workers=host.workers, args=host.args, env=env) as server:
        assert Api(server).current()["total_requests"] == 0
        yield server


@pytest.mark.parametrize("host", IN_FULL, ids=str, indirect=True, scope="class")
class TestRoutesInFull(RoutesKit):
    """All of the kit, for each adapter."""


@pytest.mark.parametrize("host", SMOKE, ids=str, indirect=True, scope="class")
class TestRoutesSmoke(RoutesSmoke):
    """What a further host of the same adapter may break."""
