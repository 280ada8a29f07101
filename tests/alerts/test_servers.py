"""Real servers with several workers: one message when it begins and one when it is over."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import pytest
from kits.receivers import http_receiver, mail_receiver
from kits.servers import Server, serve, wait_until


def leader(server: Server) -> int:
    """The worker that checks."""

    def ask() -> int | None:
        answer = server.get("/leader").json()
        return answer["pid"] if answer["leads"] else None

    return wait_until(ask, "an answer of the worker that checks") or 0


def sent(server: Server) -> int:
    """How many messages have been taken."""
    notifications = server.get("/api/metrics/alerts").json()["notifications"]
    return int(notifications["sent"])


def ask(server: Server, path: str, times: int) -> None:
    for _ in range(times):
        server.get(path)


WSGI, ASGI = "apps.alerting:app", "apps.alerting:asgi_app"
SERVERS: dict[str, tuple[str, str, list[str]]] = {
    "gunicorn": ("gunicorn", WSGI, ["--worker-class", "gthread", "--threads", "2"]),
    "gunicorn-preload": ("gunicorn", WSGI, ["--preload"]),
    "gunicorn-gevent": ("gunicorn", WSGI, ["--worker-class", "gevent"]),
    "uwsgi": ("uwsgi", WSGI, ["--enable-threads"]),
    "uvicorn": ("uvicorn", ASGI, []),
}


@pytest.mark.parametrize(("name", "app", "args"), SERVERS.values(), ids=SERVERS)
def test_four_workers_tell_once(name: str, app: str, args: Sequence[str]) -> None:
    with http_receiver() as hook, mail_receiver() as mailbox:
        mail = f"mailto://127.0.0.1:{mailbox.port}?from=app@example.com&to=ops@example.com"
        receivers = f"json://{hook.address} {mail}"
        with serve(name, app, workers=4, args=args, env={"RECEIVERS": receivers}) as server:
            ask(server, "/fail", 12)
            # Not until the worker has taken note could it be killed without a second message.
            wait_until(lambda: sent(server) == 2, "the first messages")
            os.kill(leader(server), signal.SIGKILL)
            wait_until(lambda: len(server.worker_pids()) == 4, "a new worker")
            leader(server)
            ask(server, "/hello", 60)
            wait_until(lambda: sent(server) == 4, "the second messages")
            os.kill(leader(server), signal.SIGKILL)
            leader(server)
            # The process that preloads the app is none of its workers.
            assert server.get("/api/metrics/current").json()["metrics"]["workers"] <= 4
            listed = server.get("/api/metrics/alerts").json()
        assert [post["title"].split(":")[0] for post in hook.posts] == ["ALERT", "RESOLVED"]
        subjects = [mail["Subject"].split(":")[0] for mail in mailbox.mails]
        assert subjects == ["ALERT", "RESOLVED"]
        (row,) = listed["alerts"]
        assert (row["type"], row["state"]) == ("ERROR_RATE", "resolved")
