"""A server that is read from outside: the numbers of its workers, and no trace of the reading."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kits.crew import Crew, SharedClock, crew, wait_until

from metricsmw import MetricsMonitor
from metricsmw.alerts import MetricsAlerter, get_alerts
from metricsmw.engine.reading.attached import AttachedServer, UnreadableServerError
from metricsmw.engine.reading.moment import Reading
from metricsmw.engine.storage.layout import LAYOUT, Field, Owner
from metricsmw.engine.workers.catalog import FoundServer, find_servers, shorten
from metricsmw.engine.workers.outside import Flocks, Folder, is_alive
from metricsmw.engine.workers.surroundings import HERE, Surroundings

# What differs between two readings of the same moment: who looked how at the processes.
BY_READER = (
    "cpu_usage_pct",
    "cpu_share_pct",
    "memory_usage_pct",
    "memory_usage_mb",
    "timestamp",
)


def count_requests(monitor: MetricsMonitor, user: str) -> int:
    for number in range(30):
        monitor.record_request(number, number % 10 == 0, user, method="GET", route="/items/{id}")
    monitor.increment_websocket_connections()
    orders = monitor.counter("orders", "Orders taken", labels=("kind",))
    orders.labels(kind="book").inc(3)
    return os.getpid()


def parts(reading: Reading) -> dict[str, Any]:
    return {
        "snapshot": reading.snapshot.to_dict(),
        "routes": reading.routes,
        "series": reading.series(),
        "route": reading.route_series("GET", "/items/{id}"),
        "users": reading.active_user_ids,
        "history": reading.history(60),
        "custom": [one.as_row("") for one in reading.server.instruments()],
        "totals": reading.statistics["totals"],
    }


def report(monitor: MetricsMonitor) -> dict[str, Any]:
    return parts(monitor.read(routes=True))


def health(monitor: MetricsMonitor) -> dict[str, Any]:
    return dict(monitor.get_health())


def alert(monitor: MetricsMonitor) -> list[Any]:
    monitor.test_alerter = MetricsAlerter(  # type: ignore[attr-defined]
        monitor, rules=["error_rate_pct > 5"], notify=lambda alert: None, start=False
    )
    monitor.test_alerter.check()  # type: ignore[attr-defined]
    return list(get_alerts(monitor)[0])


def in_dir() -> FoundServer:
    """The server in this test's METRICSMW_DIR."""
    folder = Path(os.environ["METRICSMW_DIR"])
    found = [one for one in find_servers(os.geteuid(), [folder]) if folder in one.path.parents]
    assert len(found) == 1
    return found[0]


def trace(folder: Path) -> dict[str, Any]:
    """All that a reading could leave in a directory."""
    found: dict[str, Any] = {}
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        data = path.read_bytes() if path.is_file() else b""
        found[str(path)] = status.st_mtime_ns, status.st_ino, status.st_size, hash(data)
    return found


@pytest.fixture
def clock() -> SharedClock:
    return SharedClock()


@pytest.fixture
def workers(clock: SharedClock) -> Iterator[Crew]:
    with crew(2, clock) as workers:
        for worker, user in zip(workers.workers, ("ann", "bob"), strict=True):
            worker.do(count_requests, user)
        clock.advance(61)
        workers.workers[0].do(report)  # writes the minute
        clock.advance(5)
        yield workers


def test_it_says_what_a_worker_says(workers: Crew, clock: SharedClock) -> None:
    said = workers.workers[1].do(report)
    server = AttachedServer(in_dir(), clock)
    reading = server.read()
    seen = parts(reading)
    for name in BY_READER:
        said["snapshot"].pop(name), seen["snapshot"].pop(name)
    assert seen == said
    assert seen["snapshot"]["total_requests"] == 60
    assert seen["snapshot"]["workers"] == 2
    assert seen["snapshot"]["websocket_connections"] == 2
    assert seen["custom"][0]["value"] == 6
    assert len(seen["history"]) == 1
    assert reading.snapshot.memory_usage_mb > 0


def test_it_leaves_no_trace(workers: Crew, clock: SharedClock) -> None:
    folder = Path(os.environ["METRICSMW_DIR"])
    said, before = workers.workers[0].do(health), trace(folder)
    clock.advance(600)  # minutes that a worker would write, files that it would renew
    for _ in range(3):
        server = AttachedServer(in_dir(), clock)
        reading = server.read()
        assert reading.server.total.requests == 60
        assert reading.statistics["totals"]["total_requests"] == 60
        assert reading.history(60)
        assert reading.series()
        server.health(reading)
    assert trace(folder) == before
    clock.advance(-600)
    assert workers.workers[0].do(health) == said


def test_a_write_is_refused(workers: Crew, clock: SharedClock) -> None:
    server = AttachedServer(in_dir(), clock)
    server.read()
    group = server.opened()
    with group.exclusive(wait=True) as held:
        assert not held
    with pytest.raises(OSError, match="only read"):
        group.write_reset(group.reset)
    with pytest.raises(OSError, match="only read"):
        group.history.start(1.0)


def test_stopped_workers(workers: Crew, clock: SharedClock) -> None:
    server = AttachedServer(in_dir(), clock)

    def state() -> str:
        reading = server.read()
        rows = reading.workers
        assert [row["pid"] for row in rows] == sorted(worker.pid for worker in workers.workers)
        assert [row["requests"] for row in rows] == [30, 30]
        said = server.health(reading)
        healthy = said["components"]["workers"] == "operational"
        assert said["status"] == ("healthy" if healthy else "degraded")
        return said["components"]["workers"]

    assert state() == "operational"
    first, second = (worker.pid for worker in workers.workers)
    for pid, said in (
        (first, "1 of 2 workers look stopped"),
        (second, "all 2 workers look stopped"),
    ):
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: state() == said, said)  # noqa: B023
    for pid in (first, second):
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: state() == "operational", "they go on")


def begin(monitor: MetricsMonitor) -> None:
    monitor.recorder.begin()


def test_a_worker_that_finishes_nothing(workers: Crew, clock: SharedClock) -> None:
    server = AttachedServer(in_dir(), clock)
    workers.workers[0].do(begin)
    for _ in range(3):
        rows = {row["pid"]: row for row in server.read().workers}
        assert {row["state"] for row in rows.values()} == {"running"}
        clock.advance(2)
    rows = {row["pid"]: row for row in server.read().workers}
    first, second = (rows[worker.pid] for worker in workers.workers)
    assert first["state"] in ("waits", "hangs")  # by its CPU, where that was measured twice
    assert second["state"] == "running"
    assert (first["requests_in_flight"], second["requests_in_flight"]) == (1, 0)


def test_the_dead_count_as_they_do_for_workers(workers: Crew, clock: SharedClock) -> None:
    workers.workers[0].kill()
    server = AttachedServer(in_dir(), clock)
    reading = server.read()
    assert reading.snapshot.workers == 1
    assert reading.snapshot.websocket_connections == 1
    assert reading.snapshot.total_requests == 60
    assert [row["pid"] for row in reading.workers] == [workers.workers[1].pid]
    # Nothing was adopted: the next worker does that.
    newcomer = workers.start()
    newcomer.do(count_requests, "cleo")
    assert newcomer.do(report)["snapshot"]["total_requests"] == 90
    assert len(list(in_dir().path.glob("worker-*"))) == 2


def test_a_server_of_which_all_have_died_has_ended(workers: Crew) -> None:
    for worker in workers.workers:
        worker.kill()
    folder = Path(os.environ["METRICSMW_DIR"])
    assert not [one for one in find_servers(os.geteuid(), [folder]) if folder in one.path.parents]


def test_a_reset_holds_for_it(workers: Crew, clock: SharedClock) -> None:
    workers.workers[0].do(MetricsMonitor.reset_statistics)
    server = AttachedServer(in_dir(), clock)
    assert server.read().server.total.requests == 0
    workers.workers[1].do(count_requests, "dan")
    assert server.read().server.total.requests == 30
    reset = in_dir().path / "reset"
    reset.write_bytes(b"damaged")
    reading = server.read()
    said = reading.health["components"]["metrics_monitor"]
    assert said == "the last reset cannot be read, so counts from before it show"


def test_alerts_and_jobs(workers: Crew, clock: SharedClock) -> None:
    alerts = workers.workers[0].do(alert)
    assert [row["state"] for row in alerts] == ["firing"]
    server = AttachedServer(in_dir(), clock)
    reading = server.read()
    assert get_alerts(server)[0] == alerts
    assert reading.health["components"]["alerts"] == "operational"
    workers.workers[0].kill()
    assert "alerts" not in server.read().health["components"]
    note = in_dir().path / "once-alerts.json"
    note.write_text("{")
    server.read()
    assert get_alerts(server)[0] == []


def overwrite(path: Path, field: Field, value: float) -> None:
    with open(path, "r+b") as file:
        file.seek(field * 8)
        file.write(struct.pack("d", value))


def segments() -> list[Path]:
    return sorted(in_dir().path.glob("worker-*"))


def test_a_damaged_segment_is_named(workers: Crew, clock: SharedClock) -> None:
    os.truncate(segments()[0], 5000)
    server = AttachedServer(in_dir(), clock)
    reading = server.read()
    assert reading.server.damaged == {"worker-0": "truncated"}
    assert reading.health["components"]["request_tracking"] == "1 damaged segments left out"
    assert reading.server.total.requests == 30


def test_another_layout_is_said(workers: Crew, clock: SharedClock) -> None:
    server = AttachedServer(in_dir(), clock)
    overwrite(segments()[0], Field.LAYOUT, LAYOUT + 1)
    assert server.read().server.damaged == {"worker-0": "of another version"}
    overwrite(segments()[1], Field.LAYOUT, LAYOUT + 1)
    with pytest.raises(UnreadableServerError, match="of another version"):
        server.read()


def test_what_is_no_segment_is_not_followed(workers: Crew, clock: SharedClock) -> None:
    folder = in_dir().path
    os.symlink("/etc/passwd", folder / "worker-7")
    os.mkfifo(folder / "worker-8")
    server = AttachedServer(in_dir(), clock)
    assert set(server.read().server.damaged) == {"worker-7", "worker-8"}


def test_the_directory_must_be_its_owners(workers: Crew) -> None:
    folder = in_dir().path
    with pytest.raises(PermissionError):
        Folder(folder, os.geteuid() + 1)
    folder.chmod(0o755)
    with pytest.raises(PermissionError):
        Folder(folder, os.geteuid())
    folder.chmod(0o700)
    linked = folder.parent / "linked"
    linked.symlink_to(folder)
    with pytest.raises(OSError, match="linked"):
        Folder(linked, os.geteuid())


def test_a_server_that_has_ended(workers: Crew, clock: SharedClock) -> None:
    server = AttachedServer(in_dir(), clock)
    folder = server.found.path
    folder.rename(folder.parent / "elsewhere")
    with pytest.raises(FileNotFoundError):
        server.read()


def test_settings_are_those_of_the_server(clock: SharedClock) -> None:
    settings = {"window_seconds": 60, "max_history_minutes": 5, "user_timeout_seconds": 90}
    with crew(1, clock, **settings, max_routes=1) as workers:
        workers.workers[0].do(count_requests, "ann")
        clock.advance(120)
        workers.workers[0].do(count_requests, "bob")
        (in_dir().path / "history-9999").touch()
        reading = AttachedServer(in_dir(), clock).read()
        assert settings.items() <= reading.statistics["configuration"].items()
        assert reading.server.window.requests == 30
        assert reading.active_user_ids == ["bob"]


class Facts(Surroundings):
    """A machine with these locks, and this process in it."""

    def __init__(self, locks: bytes, namespace: int, runs: bool) -> None:
        super().__init__()
        self.locks, self.namespace, self.runs = locks, namespace, runs

    def read(self, name: str) -> bytes:
        return self.locks

    @property
    def pid_namespace(self) -> int:
        return self.namespace

    def status(self, pid: int) -> Any:
        found = HERE.status(os.getpid())
        return found and found._replace(runs=self.runs, start=5)


@pytest.mark.parametrize(
    ("listed", "namespace", "runs", "locked", "alive"),
    [
        (True, 7, False, False, True),  # the kernel's list decides
        (False, 7, False, True, False),  # its process has ended
        (False, 7, True, True, True),  # the list may be short
        (False, 7, True, False, False),  # it runs, and has left the server
        (False, 8, False, True, True),  # a process that is not shown here
        (False, 8, False, False, False),
    ],
)
def test_who_lives(
    tmp_path: Path, listed: bool, namespace: int, runs: bool, locked: bool, alive: bool
) -> None:
    import fcntl

    tmp_path.chmod(0o700)
    path = tmp_path / "worker-0"
    path.touch()
    status = path.stat()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    line = (
        f"1: FLOCK  ADVISORY  WRITE 9 {device} 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 9 1:2:3 0 EOF\n"
    )
    here = Facts(line.encode() if listed else b"", 7, runs)
    file = Folder(tmp_path, os.geteuid()).open("worker-0")
    owner = Owner(pid=4, process_start=5, pid_namespace=namespace)
    with open(path) as holder:
        if locked:
            fcntl.flock(holder, fcntl.LOCK_EX)
        assert is_alive(file, owner, Flocks(here), here) is alive


@pytest.mark.parametrize(
    ("words", "short"),
    [
        ("/usr/bin/python3.12 /venv/bin/gunicorn app:app -w 2", "gunicorn app:app -w 2"),
        ("python -m uvicorn app:app", "uvicorn app:app"),
        ("python3 -X dev -m flask run", "flask run"),
        ("python -c pass", "python -c pass"),
        ("/usr/sbin/uwsgi --ini a.ini", "uwsgi --ini a.ini"),
        ("gunicorn: master [app]", "gunicorn: master [app]"),
        ("python", "python"),
        ("", ""),
    ],
)
def test_command_lines_for_people(words: str, short: str) -> None:
    assert shorten(words.split()) == short
