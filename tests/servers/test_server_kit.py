"""The server kit itself: a server starts, answers from each worker and leaves nothing behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import httpx
import pytest
from kits.servers import ServerError, alive_in_group, serve, wait_until

WSGI, ASGI = "apps.raw_wsgi:bare", "apps.raw_asgi:bare"

SERVERS = {
    "gunicorn-sync": ("gunicorn", WSGI, 2, ["--worker-class", "sync"]),
    "gunicorn-gthread": ("gunicorn", WSGI, 2, ["--worker-class", "gthread", "--threads", "4"]),
    "gunicorn-gevent": ("gunicorn", WSGI, 2, ["--worker-class", "gevent"]),
    "gunicorn-preload": ("gunicorn", WSGI, 2, ["--preload"]),
    "uvicorn-one-process": ("uvicorn", ASGI, 1, ["--http", "h11"]),
    "uvicorn-httptools": ("uvicorn", ASGI, 2, ["--http", "httptools"]),
    "hypercorn": ("hypercorn", ASGI, 2, []),
    "granian-asgi": ("granian", ASGI, 2, ["--interface", "asgi"]),
    "granian-wsgi": ("granian", WSGI, 2, ["--interface", "wsgi"]),
    "waitress": ("waitress", WSGI, 1, []),
    "uwsgi": ("uwsgi", WSGI, 2, []),
    "uwsgi-threads": ("uwsgi", WSGI, 2, ["--enable-threads", "--threads", "2"]),
}


@pytest.mark.parametrize(("name", "app", "workers", "args"), SERVERS.values(), ids=SERVERS)
def test_starts_answers_from_each_worker_and_leaves_nothing(
    name: str, app: str, workers: int, args: Sequence[str]
) -> None:
    with serve(name, app, workers=workers, args=args) as server:
        pids = server.worker_pids()
        assert len(pids) == workers
        assert server.get("/hello").text == "hello"
        assert server.get("/stream").text == "one\ntwo\nthree\n"
        assert server.get("/fail").status == 500
        assert server.reach_all_workers() >= workers
        assert server.worker_pids() == pids
        assert alive_in_group(server.pid)
    assert alive_in_group(server.pid) == []


def test_a_killed_worker_is_replaced_and_still_nothing_is_left() -> None:
    with serve("gunicorn", WSGI, workers=2) as server:
        killed, kept = server.worker_pids()
        os.kill(killed, signal.SIGKILL)

        def replaced() -> bool:
            pids = server.worker_pids()
            return len(pids) == 2 and kept in pids and killed not in pids

        wait_until(replaced, "a new worker")
        server.signal(signal.SIGKILL)
        wait_until(server.ended, "the master's end")
    assert alive_in_group(server.pid) == []


def test_a_failing_test_stops_the_server_and_shows_its_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(KeyboardInterrupt), serve("gunicorn", WSGI) as server:
        raise KeyboardInterrupt
    assert alive_in_group(server.pid) == []
    assert "Booting worker" in capsys.readouterr().err


def test_an_app_that_cannot_be_imported_fails_at_once_with_the_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    refused = pytest.raises(ServerError, match="ended before it answered")
    with refused, serve("gunicorn", "apps.no_such_module:app"):
        pass
    assert "no_such_module" in capsys.readouterr().err


def test_two_servers_run_side_by_side() -> None:
    with serve("gunicorn", WSGI) as one, serve("gunicorn", WSGI) as other:
        assert one.port != other.port
        assert set(one.worker_pids()).isdisjoint(other.worker_pids())
        assert one.get("/hello").status == other.get("/hello").status == 200


def test_a_missing_server_skips_here_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kits.servers.shutil.which", lambda *_, **__: None)
    monkeypatch.delenv("CI", raising=False)
    skipped = pytest.raises(pytest.skip.Exception, match="gunicorn is not installed")
    with skipped, serve("gunicorn", WSGI):
        pass
    monkeypatch.setenv("CI", "true")
    failed = pytest.raises(pytest.fail.Exception, match="gunicorn is not installed")
    with failed, serve("gunicorn", WSGI):
        pass


def test_http_2_is_spoken_to_a_server_that_can() -> None:
    with serve("hypercorn", ASGI) as server, httpx.Client(http1=False, http2=True) as client:
        answer = client.get(f"{server.url}/hello")
        assert (answer.http_version, answer.text) == ("HTTP/2", "hello")
