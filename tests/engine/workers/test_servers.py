"""Under each server any worker shows the whole server, those of its workers that wait included."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from kits.routes_kit import Api
from kits.servers import serve
from kits.workers import ENV, announced, ask, read_from_each, read_often

WSGI, ASGI = "apps.raw_wsgi:app", "apps.raw_asgi:app"
WORKERS = 4

GTHREAD = ["--worker-class", "gthread", "--threads", "2"]
GEVENT = ["--worker-class", "gevent"]

SERVERS = {
    "gunicorn-sync": ("gunicorn", WSGI, []),
    "gunicorn-sync-preload": ("gunicorn", WSGI, ["--preload"]),
    "gunicorn-gthread": ("gunicorn", WSGI, GTHREAD),
    "gunicorn-gthread-preload": ("gunicorn", WSGI, [*GTHREAD, "--preload"]),
    "gunicorn-gevent": ("gunicorn", WSGI, GEVENT),
    "gunicorn-gevent-preload": ("gunicorn", WSGI, [*GEVENT, "--preload"]),
    "uvicorn": ("uvicorn", ASGI, []),
    "hypercorn": ("hypercorn", ASGI, []),
    "granian-asgi": ("granian", ASGI, ["--interface", "asgi"]),
    "granian-wsgi": ("granian", WSGI, ["--interface", "wsgi"]),
    "uwsgi": ("uwsgi", WSGI, []),
    "uwsgi-threads": ("uwsgi", WSGI, ["--enable-threads", "--threads", "2"]),
    "uwsgi-threads-enabled": ("uwsgi", WSGI, ["--enable-threads"]),
    "uwsgi-lazy": ("uwsgi", WSGI, ["--lazy-apps"]),
    # Master and workers have another command line each.
    "uwsgi-titles": ("uwsgi", WSGI, ["--lazy-apps", "--auto-procname"]),
}


@pytest.mark.parametrize(("name", "app", "args"), SERVERS.values(), ids=SERVERS)
def test_every_read_shows_the_whole_server(name: str, app: str, args: Sequence[str]) -> None:
    with serve(name, app, workers=WORKERS, args=args, env=ENV) as server:
        api = Api(server)
        announced(server)
        ask(server, 6)
        api.settled(6)
        assert read_often(server, 6) == {(6, WORKERS, 0)}
        requests = 6 + server.reach_all_workers()
        ask(server, 20)
        requests += 20
        api.settled(requests)
        assert read_from_each(server, 13) == {(requests, WORKERS, 0)}
        assert sum(row["requests"] for row in api.routes()) == requests
