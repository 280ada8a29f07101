"""Real servers with several workers: one message when it begins and one when it is over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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


def row(server: Server) -> dict[str, Any]:
    """Where the rule stands."""
    (found,) = server.get("/api/metrics/alerts").json()["alerts"]
    return dict(found)


def check_again(server: Server) -> None:
    """Wait until there was another check, and nothing of it waits to be told."""
    before = row(server)["checked"]

    def is_done() -> bool:
        answer = server.get("/api/metrics/alerts").json()
        return answer["alerts"][0]["checked"] > before and not answer["notifications"]["waiting"]

    wait_until(is_done, "another check")


def ask(server: Server, path: str, times: int) -> None:
    for _ in range(times):
        server.get(path)


WSGI, ASGI = "apps.alerting:app", "apps.alerting:asgi_app"
SERVERS: dict[str, tuple[str, str, int, list[str]]] = {
    "gunicorn": ("gunicorn", WSGI, 4, ["--worker-class", "gthread", "--threads", "2"]),
    "gunicorn-preload": ("gunicorn", WSGI, 4, ["--preload"]),
    "gunicorn-gevent": ("gunicorn", WSGI, 2, ["--worker-class", "gevent"]),
    "uwsgi": ("uwsgi", WSGI, 4, ["--enable-threads"]),
    "uvicorn": ("uvicorn", ASGI, 2, []),
}


@pytest.mark.parametrize(("name", "app", "workers", "args"), SERVERS.values(), ids=SERVERS)
def test_its_workers_tell_once(name: str, app: str, workers: int, args: Sequence[str]) -> None:
    with http_receiver() as hook, mail_receiver() as mailbox:
        mail = f"mailto://127.0.0.1:{mailbox.port}?from=app@example.com&to=ops@example.com"
        receivers = f"json://{hook.address} {mail}"
        env = {"RECEIVERS": receivers}
        with serve(name, app, workers=workers, args=args, env=env) as server:
            ask(server, "/fail", 12)
            # Not until the worker has taken note could it be killed without a second message.
            wait_until(lambda: sent(server) == 2, "the first messages")
            os.kill(leader(server), signal.SIGKILL)
            wait_until(lambda: len(server.worker_pids()) == workers, "a new worker")
            leader(server)
            ask(server, "/hello", 60)
            wait_until(lambda: sent(server) == 4, "the second messages")
            os.kill(leader(server), signal.SIGKILL)
            leader(server)
            check_again(server)
            # The process that preloads the app is none of its workers.
            assert server.get("/api/metrics/current").json()["metrics"]["workers"] <= workers
            listed = server.get("/api/metrics/alerts").json()
        assert titles(hook.posts) == ["ALERT", "RESOLVED"]
        subjects = [mail["Subject"].split(":")[0] for mail in mailbox.mails]
        assert subjects == ["ALERT", "RESOLVED"]
        (row,) = listed["alerts"]
        assert (row["type"], row["state"]) == ("ERROR_RATE", "resolved")


def titles(posts: Sequence[dict[str, Any]]) -> list[str]:
    return [post["title"].split(":")[0] for post in posts]


def test_what_is_pending_does_not_begin_again_as_its_leader_dies() -> None:
    with http_receiver() as hook:
        env = {"HOOK": hook.address, "FOR_SECONDS": "8"}
        args = ["--worker-class", "gthread", "--threads", "2"]
        with serve("gunicorn", WSGI, workers=4, args=args, env=env) as server:
            victim = leader(server)

            def fail() -> str:
                ask(server, "/fail", 5)
                return str(row(server)["state"])

            wait_until(lambda: fail() == "pending", "the alert to be pending")
            os.kill(victim, signal.SIGKILL)
            before = row(server)
            assert (before["state"], hook.posts) == ("pending", [])
            wait_until(lambda: fail() == "firing", "the alert to fire")
            assert row(server)["since"] == before["since"]
            check_again(server)
        assert titles(hook.posts) == ["ALERT"]
        assert f"Since: {before['since']}" in hook.posts[0]["message"]


def test_a_worker_that_hangs_is_replaced_and_repeats_nothing() -> None:
    with http_receiver() as hook:
        env = {"HOOK": hook.address, "PATIENCE": "2"}
        args = ["--worker-class", "gthread", "--threads", "2"]
        with serve("gunicorn", WSGI, workers=3, args=args, env=env) as server:
            victim = leader(server)
            ask(server, "/fail", 12)
            wait_until(lambda: sent(server) == 1, "the first message")
            os.kill(victim, signal.SIGSTOP)
            wait_until(lambda: leader(server) != victim, "another worker that checks")
            ask(server, "/hello", 60)
            wait_until(lambda: sent(server) == 2, "the second message")
            os.kill(victim, signal.SIGCONT)
            check_again(server)
            check_again(server)
            health = server.get("/api/metrics/health").json()
            assert health["components"]["alerts"] == "operational"
            assert leader(server) != victim
        assert titles(hook.posts) == ["ALERT", "RESOLVED"]


def hang_up(server: Server) -> None:
    """Have the master start all workers anew."""
    before = set(server.worker_pids())
    server.signal(signal.SIGHUP)
    wait_until(
        lambda: len(server.worker_pids()) == 3 and not before & set(server.worker_pids()),
        "new workers",
    )


def end_the_leader(server: Server) -> None:
    """Have the worker that checks end in good order."""
    old = leader(server)
    os.kill(old, signal.SIGTERM)
    wait_until(lambda: old not in server.worker_pids(), "its end")


def wear_out(server: Server) -> None:
    """Ask until the worker that checks has had all requests that it is to serve."""
    old = leader(server)

    def is_over() -> bool:
        ask(server, "/api/metrics/health", 5)
        return old not in server.worker_pids()

    wait_until(is_over, "its end")


@pytest.mark.parametrize(
    ("restart", "args"),
    [(hang_up, []), (end_the_leader, []), (wear_out, ["--max-requests", "40"])],
    ids=["SIGHUP", "SIGTERM", "max-requests"],
)
def test_workers_that_end_in_good_order_repeat_nothing(
    restart: Callable[[Server], None], args: Sequence[str]
) -> None:
    with http_receiver() as hook:
        env = {"HOOK": hook.address}
        threads = ["--worker-class", "gthread", "--threads", "2"]
        with serve("gunicorn", WSGI, workers=3, args=[*threads, *args], env=env) as server:
            leader(server)
            restart(server)  # while all is well
            leader(server)
            ask(server, "/fail", 12)
            wait_until(lambda: sent(server) == 1, "the first message")
            restart(server)  # while it fires
            leader(server)
            check_again(server)
            ask(server, "/hello", 60)
            wait_until(lambda: sent(server) == 2, "the second message")
            restart(server)  # when it is over
            leader(server)
            check_again(server)
        assert titles(hook.posts) == ["ALERT", "RESOLVED"]


ONE_SERVER = """
from metricsmw import get_metrics_monitor
from metricsmw.alerts import MetricsAlerter

alerter = MetricsAlerter(get_metrics_monitor(), rules=["total_errors > 0"], start=False)
alerter.check()
print(alerter.get_alerts()[0]["state"])
alerter.monitor.record_request(1.0, is_error=True)
alerter.check()
print(alerter.get_alerts()[0]["state"])
"""


def test_another_server_in_the_same_place_ends_what_fired(tmp_path: Path) -> None:
    for before in ("inactive", "resolved"):
        done = subprocess.run(
            [sys.executable, "-c", ONE_SERVER],
            env={**os.environ, "METRICSMW_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [before, "firing"]


ENDS_WHILE_TELLING = """
import sys
import threading
from metricsmw import get_metrics_monitor
from metricsmw.alerts import MetricsAlerter

begun = threading.Event()

def receive(alert):
    begun.set()
    print("begun", flush=True)
    sys.stdin.readline()

monitor = get_metrics_monitor()
alerter = MetricsAlerter(monitor, rules=["total_errors > 0"], notify=receive)
monitor.record_request(1.0, is_error=True)
alerter.check()
begun.wait()
"""


def test_a_process_that_ends_notes_what_it_is_just_telling(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDS_WHILE_TELLING],
        env={**os.environ, "METRICSMW_DIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.communicate("taken\n")
        assert process.returncode == 0
    (noted,) = tmp_path.rglob("once-alerts.json")
    assert json.loads(noted.read_text())["sent"] == 1
