"""Real metrics engines for tests: started on a free loopback port, asked until ready, stopped.

    with prometheus("forky", {"app": server.port}) as engine:
        wait_until(lambda: engine.query('up{job="app"}'), "the first scrape")

Rules
- `kits.get_engines` gets them. Tests never download: one that needs an engine which is not there
  is skipped and says what gets it; where CI=true it fails.
- An engine listens on loopback only, keeps its data in a temporary folder, and is surely stopped
  at the end of the block. Its output is shown where the block fails.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kits.get_engines import folder
from kits.servers import alive_in_group, free_port, missing, wait_until

START_ATTEMPTS = 5
STOP_SECONDS = 10.0

PROMETHEUS_SUITES = [pytest.param("trixie", id="2.53"), pytest.param("forky", id="3.5")]
VICTORIA_SUITES = [pytest.param("trixie", id="1.112"), pytest.param("forky", id="1.145")]

Labels = Mapping[str, str]


def program(suite: str, package: str, name: str) -> Path:
    """Return the path of a program of a package; skip the test where it is not there."""
    path = folder() / suite / package / "usr" / "bin" / name
    if not path.is_file():
        missing(f"{name} of Debian {suite} is not there: python tests/kits/get_engines.py gets it")
    return path


@dataclass(frozen=True)
class Bucket:
    """A bucket of a native histogram, as Prometheus answers it."""

    lower: float
    upper: float
    count: float


@dataclass(frozen=True)
class Native:
    """A native histogram, as Prometheus answers it."""

    count: float
    sum: float
    buckets: Sequence[Bucket]


@dataclass(frozen=True)
class Sample:
    """One series of an answer: its labels, and its value."""

    labels: Labels
    value: float
    native: Native | None = None


class Engine:
    """A running engine that answers Prometheus' query API."""

    def __init__(self, name: str, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._process = process
        self._log = log

    def ask(self, path: str, **parameters: str) -> Any:
        """GET a path; the answer's JSON where it is some, else its text."""
        url = f"{self.url}{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                body = response.read().decode()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{self.name} {url}: {error.read().decode()}") from error
        with suppress(ValueError):
            return json.loads(body)
        return body

    def query(self, expression: str, at: float | None = None) -> list[Sample]:
        """Ask for an expression's value now, or at that Unix time."""
        time = {} if at is None else {"time": repr(at)}
        answer = self.ask("/api/v1/query", query=expression, **time)
        assert answer["status"] == "success", answer
        return [_sample(found) for found in answer["data"]["result"]]

    def value(self, expression: str, at: float | None = None) -> float | None:
        """Return the one value of an expression; None where there is no series yet."""
        found = self.query(expression, at)
        assert len(found) <= 1, f"{expression} has {len(found)} series: {found}"
        return found[0].value if found else None

    def output(self) -> str:
        """What the engine has printed so far."""
        return self._log.read_text(errors="replace")

    def ended(self) -> bool:
        return self._process.poll() is not None

    def is_ready(self, path: str) -> bool:
        if self.ended():
            raise AssertionError(f"{self.name} ended:\n{self.output()}")
        with suppress(OSError, http.client.HTTPException, AssertionError):
            self.ask(path)
            return True
        return False

    def stop(self) -> None:
        if not self.ended():
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        wait_until(lambda: not alive_in_group(self._process.pid), f"the end of {self.name}")


def _sample(found: dict[str, Any]) -> Sample:
    if "histogram" not in found:
        return Sample(found["metric"], float(found["value"][1]))
    native = found["histogram"][1]
    buckets = [
        Bucket(float(lower), float(upper), float(count))
        for _, lower, upper, count in native.get("buckets", [])
    ]
    count = float(native["count"])
    return Sample(found["metric"], count, Native(count, float(native["sum"]), buckets))


@contextmanager
def prometheus(
    suite: str,
    targets: Mapping[str, int],
    *,
    path: str = "/metrics",
    scrape: str = "",
    interval: str = "1s",
    rules: str = "",
    flags: Sequence[str] = (),
) -> Iterator[Engine]:
    """Run Prometheus for the time of the block.

    Args:
        suite: Debian's suite, which says the version.
        targets: The loopback port that is scraped, for each job.
        path: Where the targets have their metrics.
        scrape: Further settings of every job, as lines of YAML.
        interval: How often is scraped and how often rules are looked at.
        rules: A rules file.
        flags: Further arguments.
    """
    executable = program(suite, "prometheus", "prometheus")
    with _data() as data:
        config = [f"global: {{scrape_interval: {interval}, evaluation_interval: {interval}}}"]
        if rules:
            (data / "rules.yml").write_text(rules)
            config.append("rule_files: [rules.yml]")
        config.append("scrape_configs:")
        for job, port in targets.items():
            config += f"- job_name: {job}", f"  metrics_path: {path}", "  scrape_timeout: 1s"
            config.append(f"  static_configs: [{{targets: ['127.0.0.1:{port}']}}]")
            config += (f"  {line}" for line in scrape.splitlines())
        (data / "prometheus.yml").write_text("\n".join(config) + "\n")

        def command(port: int) -> list[str]:
            return [
                str(executable), f"--config.file={data}/prometheus.yml",
                f"--storage.tsdb.path={data}/tsdb", f"--web.listen-address=127.0.0.1:{port}",
                "--enable-feature=native-histograms,exemplar-storage", *flags,
            ]  # fmt: skip

        with _running(f"prometheus of {suite}", command, "/-/ready", data) as engine:
            yield engine


@contextmanager
def victoria_metrics(suite: str, *, flags: Sequence[str] = ()) -> Iterator[Engine]:
    """Run VictoriaMetrics for the time of the block; it shows what it has received at once."""
    executable = program(suite, "victoria-metrics", "victoria-metrics")
    with _data() as data:

        def command(port: int) -> list[str]:
            return [
                str(executable), f"-storageDataPath={data}/data",
                f"-httpListenAddr=127.0.0.1:{port}", "-opentelemetry.usePrometheusNaming",
                "-search.latencyOffset=0s", "-search.disableCache", "-retentionPeriod=1y", *flags,
            ]  # fmt: skip

        with _running(f"victoria-metrics of {suite}", command, "/health", data) as engine:
            yield engine


def promtool(
    suite: str, *arguments: str, stdin: bytes = b"", cwd: Path | None = None
) -> tuple[int, str]:
    """Run promtool; its exit status, and all that it has printed."""
    done = subprocess.run(
        [program(suite, "promtool", "promtool"), *arguments],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        timeout=60,
    )
    return done.returncode, done.stdout.decode(errors="replace")


@contextmanager
def _data() -> Iterator[Path]:
    data = Path(tempfile.mkdtemp(prefix="engine-"))
    try:
        yield data
    finally:
        shutil.rmtree(data, ignore_errors=True)


@contextmanager
def _running(
    name: str, command: Callable[[int], list[str]], ready: str, data: Path
) -> Iterator[Engine]:
    for attempt in range(START_ATTEMPTS):
        port = free_port()
        log = data / f"{attempt}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command(port),
                cwd=data,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        engine = Engine(name, port, process, log)
        try:
            wait_until(lambda: engine.is_ready(ready), f"{name} to answer")  # noqa: B023
            yield engine
            return
        except BaseException:
            taken = engine.ended() and "address already in use" in engine.output()
            if not taken or attempt + 1 == START_ATTEMPTS:
                print(f"\n--- output of {name} ---\n{engine.output()}", file=sys.stderr)
                raise
        finally:
            engine.stop()
