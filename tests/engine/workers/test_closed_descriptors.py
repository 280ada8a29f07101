"""The app closes all descriptors of its process, as what becomes a daemon does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import fcntl, gc, os, sys
from pathlib import Path
from metricsmw import MetricsMonitor
from metricsmw.alerts import MetricsAlerter
from metricsmw.clock import ManualClock

folder, clock = Path(sys.argv[1]), ManualClock()
monitor = MetricsMonitor(shared=True, clock=clock)
alerter = MetricsAlerter(monitor, notify=[], start=False)

def use(number):
    for _ in range(number):
        monitor.record_request(5.0, method="GET", route="/")
    monitor.reset_statistics() if number > 50 else alerter.check()
    return monitor.total_requests

def mine():
    return [open(folder / str(n), "r+b", buffering=0) for n in range(30)]

for n in range(30):
    (folder / str(n)).write_bytes(b"mine")
    os.utime(folder / str(n), (1, 1))
assert use(10) == 10
inside = monitor.directory
os.closerange(3, 256)
monitor.record_request(5.0)
clock.advance(5)
assert use(5) == 16  # where nothing took the numbers of what was closed
os.closerange(3, 256)
files = mine()
for file in files:
    fcntl.flock(file, fcntl.LOCK_EX)
for minute in range(3):
    monitor.record_request(5.0)
    clock.advance(61)
    assert use(5) == 22 + 6 * minute
use(60)
assert monitor.get_health()["status"] == "healthy", monitor.get_health()
assert [path.name for path in inside.glob("worker-*")] == ["worker-0"]
alerter.stop()
monitor.close()
del monitor, alerter
gc.collect()
for n, file in enumerate(files):
    assert file.read() == b"mine"
    assert os.path.samestat(os.fstat(file.fileno()), os.stat(folder / str(n)))
    assert os.fstat(file.fileno()).st_mtime == 1
    with open(folder / str(n)) as other:
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        raise AssertionError("it is not locked any more")
print("well")
"""


def test_the_apps_files_are_left_alone_and_counts_go_on(tmp_path: Path) -> None:
    """Its next files get the numbers of ours: none of them is closed, written to or unlocked."""
    env = {**os.environ, "METRICSMW_DIR": str(tmp_path / "d")}
    (tmp_path / "app").mkdir()
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "app")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("well\n", "")
