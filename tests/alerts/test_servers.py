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


def ask(server: Server, path: str, times: int) -> None:
    for _ in range(times):
        server.get(path)


def noted(server: Server, sent: int) -> bool:
    """Whether so many deliveries are noted: a worker that dies before that tells again."""
    listed = server.get("/api/metrics/alerts").json()
    return bool(listed["notifications"]["sent"] == sent)


SERVERS: dict[str, tuple[str, list[str]]] = {
    "gunicorn": ("gunicorn", ["--worker-class", "gthread", "--threads", "2"]),
    "gunicorn-preload": ("gunicorn", ["--preload"]),
    "uwsgi": ("uwsgi", ["--enable-threads"]),
}


@pytest.mark.parametrize(("name", "args"), SERVERS.values(), ids=SERVERS)
def test_four_workers_tell_once(name: str, args: Sequence[str]) -> None:
    with http_receiver() as hook, mail_receiver() as mailbox:
        mail = f"mailto://127.0.0.1:{mailbox.port}?from=app@example.com&to=ops@example.com"
        receivers = f"json://{hook.address} {mail}"
        with serve(
            name, "apps.alerting:app", workers=4, args=args, env={"RECEIVERS": receivers}
        ) as server:
            ask(server, "/fail", 12)
            wait_until(lambda: noted(server, 2), "the first messages")
            os.kill(leader(server), signal.SIGKILL)
            wait_until(lambda: len(server.worker_pids()) == 4, "a new worker")
            leader(server)
            ask(server, "/hello", 60)
            wait_until(lambda: noted(server, 4), "the second ones")
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
        assert listed["notifications"]["sent"] == 4
