"""`metricsmw` as a user runs it: the console script, the demo's processes, a real terminal."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from metricsmw import MetricsSnapshot
from metricsmw.cli import main as cli

PATIENCE_SECONDS = 60.0
COMMAND = (sys.executable, "-m", "metricsmw.cli.main")
FIELDS = [field.name for field in dataclasses.fields(MetricsSnapshot)]
CURL = re.compile(r'curl -H "Authorization: (Bearer \S+)" (http://\S+)')
LINE = re.compile(
    r"\d+ requests/min \| errors \d+\.\d % \| p50 \d+\.\d p95 \d+\.\d p99 \d+\.\d ms"
    r" \| users \d+ \| ws \d+ \| workers \d+ \| cpu \d+\.\d % \| memory \d+ MB"
)

Found = TypeVar("Found")


def until(look: Callable[[], Found | None], what: str) -> Found:
    """Call `look` until it finds something; return that."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := look()):
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.02)
    return found


class Demo:
    """A running `metricsmw demo`, the file its output goes to, and the processes it started."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self.output = output
        self._started: set[psutil.Process] = set()

    def text(self) -> str:
        return self.output.read_text()

    def wait_for(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """Return the first match of `pattern` in the output, once it is there."""

        def look() -> re.Match[str] | None:
            assert self.process.poll() is None, self.text()
            return pattern.search(self.text())

        return until(look, pattern.pattern)

    def current(self) -> dict[str, float]:
        """Read /api/metrics/current over a new connection, by the printed curl line."""
        metrics: dict[str, float] = self.ask("current")["metrics"]
        return metrics

    def ask(self, path: str) -> Any:
        """Read the same server at another path."""
        authorization, url = self.wait_for(CURL).groups()
        self._started.update(self.children())
        request = urllib.request.Request(
            url.replace("current", path), headers={"Authorization": authorization}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            return json.load(answer)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> int:
        """Wait until it and everything it started have ended; return its exit code."""
        code = self.process.wait(PATIENCE_SECONDS)
        until(lambda: not any(map(alive, self._started)), "the end of the server's processes")
        return code


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def demo(
    folder: Path, *arguments: str, environment: dict[str, str] | None = None
) -> Iterator[Demo]:
    """Run `metricsmw demo` on a free port with its output in a file; stop it in the end."""
    output = folder / "output"
    with output.open("wb") as stdout:
        process = subprocess.Popen(
            [*COMMAND, "demo", "--port", "0", *arguments],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdout=stdout,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Demo(process, output)
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def final_table(text: str) -> dict[str, str]:
    """Return field -> value of the table that ends the output."""
    rows = text.strip().rpartition("\n\n")[2].splitlines()
    return {row.split()[0]: row.split()[1] for row in rows}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_it_runs_until_a_signal_with_the_numbers_of_both_workers(
    tmp_path: Path, number: signal.Signals
) -> None:
    with demo(tmp_path, environment={"TMPDIR": str(tmp_path)}) as running:

        def everything_seen() -> bool:
            metrics = running.current()
            return (
                metrics["workers"] == 2
                and metrics["total_requests"] > 50
                and metrics["total_errors"] > 0
                and metrics["active_users"] == 5
                and metrics["websocket_connections"] > 0
            )

        until(everything_seen, "merged numbers")
        # Private numbers would go back and forth with the worker that answers.
        totals = [running.current()["total_requests"] for _ in range(20)]
        assert totals == sorted(totals)
        running.wait_for(LINE)
        assert running.ask("history?by=route")["kept"]
        assert list(tmp_path.glob("metricsmw-demo-*"))
        running.process.send_signal(number)
        assert running.end() == 0
    assert not list(tmp_path.glob("metricsmw-demo-*"))
    table = final_table(running.text())
    assert list(table) == FIELDS
    assert table["workers"] == "2"
    assert int(table["total_requests"]) >= totals[-1]


def test_it_ends_by_itself_with_the_final_snapshot_as_a_table(tmp_path: Path) -> None:
    with demo(tmp_path, "--seconds", "4") as running:
        assert list(running.current()) == FIELDS
        assert running.end() == 0
    text = running.text()
    assert LINE.search(text)
    assert list(final_table(text)) == FIELDS
    assert int(final_table(text)["total_requests"]) > 0
    assert "\r" not in text
    assert "\x1b" not in text


def test_its_numbers_stay_apart_from_those_of_a_configured_server(tmp_path: Path) -> None:
    group = tmp_path / "group"
    group.mkdir()
    with demo(tmp_path, "--seconds", "2", environment={"METRICSMW_DIR": str(group)}) as running:
        assert running.end() == 0
    assert int(final_table(running.text())["total_requests"]) > 0
    assert list(group.iterdir()) == []


def test_on_a_terminal_one_line_is_rewritten_until_control_c(tmp_path: Path) -> None:
    columns = 60
    terminal, its_side = pty.openpty()
    fcntl.ioctl(its_side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [*COMMAND, "demo", "--port", "0"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "COLUMNS"},
        stdin=its_side,
        stdout=its_side,
        stderr=its_side,
        start_new_session=True,
        preexec_fn=take_terminal,
    )
    os.close(its_side)
    try:
        text = read_until(terminal, "", lambda text: text.count("\x1b[K") >= 2)
        os.write(terminal, b"\x03")
        text = read_until(terminal, text, None)
        assert process.wait(PATIENCE_SECONDS) == 0
    finally:
        process.kill()
        os.close(terminal)
    first, second, *_ = re.findall(r"\r([^\r\n]*)\x1b\[K", text)
    for line in (first, second):
        assert re.match(r"\d+ requests/min \| errors", line)
        assert len(line) < columns
    assert list(final_table(text.replace("\r", ""))) == FIELDS


def read_until(terminal: int, text: str, enough: Callable[[str], bool] | None) -> str:
    """Read on from `terminal` until `enough`, or until the other side has closed it."""
    while enough is None or not enough(text):
        try:
            part = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other side is closed
            part = b""
        if not part:
            assert enough is None, text
            break
        text += part.decode()
    return text


def test_it_ends_when_the_reader_of_its_output_leaves(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "demo", "--port", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while not CURL.search(process.stdout.readline().decode()):
            assert process.poll() is None
        started = psutil.Process(process.pid).children(recursive=True)
        process.stdout.close()
        assert process.wait(PATIENCE_SECONDS) == 0
        assert process.stderr.read() == b""
    until(lambda: not any(map(alive, started)), "the end of the server's processes")


def test_a_server_that_dies_ends_it_with_an_error(tmp_path: Path) -> None:
    with demo(tmp_path) as running:
        running.current()
        server = psutil.Process(running.process.pid).children()[0]
        server.kill()
        assert running.end() == 1
    assert "metricsmw demo: the server ended with exit code -9" in running.text()


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = subprocess.run(
            [*COMMAND, "demo", "--port", str(port)], cwd=tmp_path, capture_output=True, text=True
        )
    assert result.returncode == 2
    assert f"port {port} on 127.0.0.1 is in use" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_an_address_that_is_not_ours_is_named(tmp_path: Path) -> None:
    result = subprocess.run(
        [*COMMAND, "demo", "--host", "192.0.2.1", "--port", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "cannot listen on 192.0.2.1 port 0" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_package_names_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert cli.main(["demo"]) == 2
    error = capsys.readouterr().err
    assert error == ('metricsmw demo needs uvicorn; install with: pip install "metricsmw[demo]"\n')


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--port", "65536"),
        ("--port", "http"),
        ("--workers", "0"),
        ("--seconds", "0"),
        ("--seconds", "nan"),
        ("--rate", "inf"),
    ],
)
def test_a_value_out_of_range_is_refused(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["demo", option, value])
    assert leaving.value.code == 2
    assert f"argument {option}: '{value}' is not a number from" in capsys.readouterr().err


def test_it_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["--version"])
    assert leaving.value.code == 0
    assert re.fullmatch(r"metricsmw \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_without_a_command_it_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main([])
    assert leaving.value.code == 2
    assert "usage: metricsmw" in capsys.readouterr().err


def test_nothing_of_the_web_is_imported_before_a_command_runs(tmp_path: Path) -> None:
    code = "import sys, metricsmw.cli.main; print(*(m.partition('.')[0] for m in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    (demo_command,) = (command for command in cli.COMMANDS if command.name == "demo")
    assert not {*demo_command.needs, "asyncio"} & set(result.stdout.split())
