"""`metricsmw top`: in a real pseudo-terminal against a real server, and for scripts."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator

import pytest
from kits.servers import APPS_ROOT, Server, serve, wait_until

pytest.importorskip("rich")

from metricsmw import top

TOKEN = "tök€n"
ENVIRONMENT = {**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
COMMAND = [sys.executable, "-m", "metricsmw.cli", "top"]
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()=>][A-Z0-9]?")
ON, OFF = "\x1b[?1049h", "\x1b[?1049l"  # the terminal's other screen


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    environment = {"METRICSMW_TOKEN": TOKEN}
    with serve("uvicorn", "metricsmw.demo_app:app", workers=2, env=environment) as server:
        for path, times in (("/fast", 3), ("/items/1", 2), ("/fail", 1)):
            for _ in range(times):
                server.get(path)
        yield server


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in ENVIRONMENT.items() if "METRICSMW" not in name}
    return subprocess.run(
        [*COMMAND, *arguments],
        env={**clean, **environment},
        cwd=APPS_ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


class Terminal:
    """A pseudo-terminal with the command in it."""

    def __init__(self, *arguments: str, width: int = 120, height: int = 40) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=ENVIRONMENT,
            cwd=APPS_ROOT,
            start_new_session=True,
        )
        self.output = ""

    def read(self) -> str:
        """All output so far."""
        while select.select([self.master], [], [], 0.02)[0]:
            try:
                data = os.read(self.master, 65536)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                break
            self.output += data.decode(errors="replace")
        return self.output

    def screen(self) -> str:
        """What the last whole picture said."""
        return CODES.sub("", self.read().rpartition("Live metrics")[2])

    def until(self, text: str) -> None:
        wait_until(lambda: text in self.screen(), text)

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def ended(self) -> int:
        """The exit code, once it has ended."""
        wait_until(lambda: self.read() is not None and self.process.poll() is not None, "its end")
        self.read()
        assert self.process.returncode is not None
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(server: Server) -> Iterator[Terminal]:
    terminal = Terminal(server.url, "--token", TOKEN)
    yield terminal
    terminal.close()


def routes(screen: str) -> list[str]:
    return re.findall(r"[A-Z]+ (/[\w/{}:]*)", screen)


def test_live_numbers_sorted_by_keys_until_q(terminal: Terminal, server: Server) -> None:
    terminal.until("Requests ↓")
    assert ON in terminal.output
    wait_until(lambda: "q quit" in terminal.screen(), "a whole picture")
    total = json.loads(server.get("/api/metrics/current", {"Authorization": bearer()}).body)
    assert total["metrics"]["total_requests"] == 6
    assert re.search(r"Requests +6\b", terminal.screen())
    assert re.search(r"Workers +2\b", terminal.screen())
    for key, head, first in (
        ("e", "Errors % ↓", "/fail"),
        ("e", "Errors % ↑", None),
        ("n", "Route ↑", "/fail"),
        ("n", "Route ↓", "/items/{number:int}"),
        ("r", "Requests ↓", "/fast"),
    ):
        terminal.press(key)
        terminal.until(head)
        if first is not None:
            wait_until(lambda: routes(terminal.screen())[:1] == [first], first)  # noqa: B023
    server.get("/fast")
    wait_until(lambda: re.search(r"Requests +7\b", terminal.screen()), "the new request")
    terminal.press("q")
    assert terminal.ended() == 0
    assert terminal.output.rstrip().endswith("\x1b[?25h") or OFF in terminal.output
    assert OFF in terminal.output
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_ctrl_c_leaves_the_terminal_as_it_was(terminal: Terminal) -> None:
    terminal.until("Requests ↓")
    terminal.process.send_signal(2)
    assert terminal.ended() == 130
    assert OFF in terminal.output
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_a_server_that_goes_away_is_said_and_waited_for() -> None:
    with serve("uvicorn", "metricsmw.demo_app:app", env={"METRICSMW_TOKEN": TOKEN}) as server:
        terminal = Terminal(server.url, "--token", TOKEN)
        try:
            terminal.until("Requests ↓")
            server.stop()
            terminal.until("Connection lost, trying again")
            assert "Workers" in terminal.screen()
            terminal.press("q")
            assert terminal.ended() == 0
        finally:
            terminal.close()


def bearer() -> str:
    return "Bearer " + TOKEN.encode().decode("latin-1")


def test_once(server: Server) -> None:
    done = run(server.url, "--token", TOKEN, "--once")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "GET /items/{number:int}" in done.stdout
    assert "q quit" not in done.stdout


def test_json(server: Server) -> None:
    done = run(f"{server.url}/api/metrics/", "--json", METRICSMW_TOKEN=TOKEN)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["metrics"]["workers"] == 2
    assert {row["route"] for row in told["routes"]} == {"/fast", "/items/{number:int}", "/fail"}


def test_exit_codes(server: Server) -> None:
    for arguments, code, reason in (
        ((server.url,), 3, "lets nobody in"),
        ((server.url, "--token", "wrong", "--json"), 3, "lets nobody in"),
        (("http://127.0.0.1:1",), 1, "cannot reach http://127.0.0.1:1/api/metrics"),
        ((f"{server.url}/fast", "--token", TOKEN), 1, "answers with status 404"),
        (("ftp://example.org",), 2, "URL must be like"),
        (("http://", "--once"), 2, "URL must be like"),
        (("http://a:b:c",), 2, "URL must be like"),
        ((), 2, "required: URL"),
    ):
        done = run(*arguments)
        assert done.returncode == code, done
        assert reason in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://h", "http://h/api/metrics"),
        ("h:8000", "http://h:8000/api/metrics"),
        ("https://h:1/", "https://h:1/api/metrics"),
        ("https://h/x/metrics/", "https://h/x/metrics"),
        ("http://[::1]:80", "http://[::1]:80/api/metrics"),
    ],
)
def test_addresses(url: str, base: str) -> None:
    assert top.base_of(url) == base


def test_names_cannot_write_to_the_terminal() -> None:
    from rich.console import Console

    evil = "/\x1b[2J\x1b]0;title\x07\r\n\u202e[bold red]x[/]\x9b1m"
    row = dict.fromkeys((name for _, name in top.COLUMNS.values()), 1)
    look = top.Look({"timestamp": evil}, [{**row, "method": "GET\x1b", "route": evil}], [])
    console = Console(width=160, force_terminal=True, color_system=None)
    with console.capture() as caught:
        console.print(top.picture(look, top.View("http://h"), rows=None))
    assert not set(caught.get()) & set("\x1b\x07\r\u202e\x9b")
    assert "[bold red]x[/]" in caught.get()


@pytest.mark.parametrize(
    ("values", "bars"),
    [([], ""), ([0, 0], "▁▁"), ([0, 50, 100], "▁▅█"), ([None, 1], " █"), ([None], " ")],
)
def test_sparklines(values: list[float | None], bars: str) -> None:
    assert top.sparkline(values) == bars


WITHOUT_RICH = """
import importlib.util
import sys

find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "rich" else find(name, *rest)
from metricsmw.cli import main

sys.exit(main(["top", "http://h"]))
"""


def test_the_command_is_there_without_rich() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RICH],
        cwd=APPS_ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert 'pip install "metricsmw[cli]"' in done.stderr
