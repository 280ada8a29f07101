"""`metricsmw top`: in a real pseudo-terminal against a real server, and for scripts."""

from __future__ import annotations

import codecs
import errno
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from kits.servers import APPS_ROOT, Server, serve, wait_until

pytest.importorskip("rich")

from metricsmw.cli import client, top

TOKEN = "tök€n"
ENVIRONMENT = {**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
# The size is the terminal's, whatever those who run the tests say of theirs.
for _name in ("COLUMNS", "LINES"):
    ENVIRONMENT.pop(_name, None)
COMMAND = [str(Path(sysconfig.get_path("scripts"), "metricsmw")), "top"]
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()=>][A-Z0-9]?")
ON, OFF = "\x1b[?1049h", "\x1b[?1049l"  # the terminal's other screen


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    environment = {"METRICSMW_TOKEN": TOKEN}
    with serve("uvicorn", "metricsmw.cli.demo_app:app", workers=2, env=environment) as server:
        for path, times in (("/fast", 3), ("/items/1", 2), ("/fail", 1)):
            for _ in range(times):
                server.get(path)
        wait_until(lambda: workers(server) == 2, "both workers")
        yield server


def workers(server: Server) -> int:
    """How many of them the numbers know."""
    answer = server.get("/api/metrics/current", {"Authorization": bearer()})
    number: int = answer.json()["metrics"]["workers"]
    return number


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

    def __init__(
        self,
        *arguments: str,
        width: int = 120,
        height: int = 40,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(width, height)
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [*command, *arguments],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=ENVIRONMENT,
            cwd=APPS_ROOT,
            start_new_session=True,
        )
        self.output = ""
        # A read may end in the middle of a character.
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def read(self) -> str:
        """All output so far."""
        while select.select([self.master], [], [], 0.02)[0]:
            try:
                data = os.read(self.master, 65536)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                break
            self.output += self._decode(data)
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
        ("5", "P50 ms ↓", None),
        ("p", "P95 ms ↓", None),
        ("9", "P99 ms ↓", None),
        ("s", "Slowest ms ↓", None),
        ("\x1b[5~\x1b[19~\x1bOA\x1b[Hn", "Route ↑", "/fail"),  # PageUp, F8, ↑ and Home are none
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


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_leaves_the_terminal_as_it_was(terminal: Terminal, number: int, code: int) -> None:
    terminal.until("Requests ↓")
    terminal.process.send_signal(number)
    assert terminal.ended() == code
    assert OFF in terminal.output
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_it_fits_a_small_terminal_and_grows_with_it(server: Server) -> None:
    terminal = Terminal(server.url, "--token", TOKEN, width=80, height=24)
    try:
        terminal.until("again to reverse")
        lines = terminal.screen().replace("\r", "").split("\n")
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 80
        assert any("Reqs ↓" in line for line in lines)
        assert sum("GET /" in line for line in lines) == 3
        assert "GET /items/{number:int} " in terminal.screen()
        terminal.resize(120, 40)
        terminal.until("Requests ↓")
    finally:
        terminal.close()


# The server's silence outlasts any patience of a test.
ENDLESS = """
import sys
from metricsmw.cli import main as cli
from metricsmw.cli import client, top

client.TIMEOUT_SECONDS = 1000.0
sys.exit(cli.main(["top", *sys.argv[1:]]))
"""


def test_a_server_that_hangs_does_not_keep_it_from_ending() -> None:
    with serve("uvicorn", "metricsmw.cli.demo_app:app", env={"METRICSMW_TOKEN": TOKEN}) as server:
        command = [sys.executable, "-c", ENDLESS]
        terminal = Terminal(server.url, "--token", TOKEN, command=command)
        try:
            terminal.until("Requests ↓")
            server.signal(signal.SIGSTOP)
            # By now a snapshot may be under way, or is about to be.
            with socket.create_connection((server.host, server.port)) as waiting:
                waiting.settimeout(1.5)
                waiting.sendall(b"GET / HTTP/1.1\r\n\r\n")
                with pytest.raises(TimeoutError):
                    waiting.recv(1)
            terminal.press("q")
            assert terminal.ended() == 0
        finally:
            terminal.close()
            server.signal(signal.SIGCONT)


def test_a_server_that_goes_away_is_said_and_waited_for() -> None:
    with serve("uvicorn", "metricsmw.cli.demo_app:app", env={"METRICSMW_TOKEN": TOKEN}) as server:
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
    assert [row["state"] for row in told["alerts"]] == ["inactive"] * 2
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
        (("http://h", "x"), 2, "unrecognized arguments: x"),
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
    assert client.base_of(url) == base


def test_names_cannot_write_to_the_terminal() -> None:
    from rich.console import Console

    evil = "/\x1b[2J\x1b]0;title\x07\r\n\u202e[bold red]x[/]\x9b1m"
    row = dict.fromkeys((name for *_, name in top.COLUMNS.values()), 1)
    alert = {"type": evil, "state": "firing", "field": evil, "route": evil, "value": 1}
    alert |= {"comparison": ">", "threshold": 0, "since": evil}
    routes = [{**row, "method": "GET\x1b", "route": evil}]
    snapshot = client.ServerAnswers({"timestamp": evil}, routes, [], [alert])
    console = Console(width=160, force_terminal=True, color_system=None)
    with console.capture() as caught:
        console.print(top.render(snapshot, top.View("http://h"), 160))
    assert not set(caught.get()) & set("\x1b\x07\r\u202e\x9b")
    assert "[bold red]x[/]" in caught.get()


def test_alerts_and_scrolling() -> None:
    from rich.console import Console

    row = dict.fromkeys((name for *_, name in top.COLUMNS.values()), 1)
    routes = [{**row, "method": "GET", "route": f"/{n:02}", "requests": 99 - n} for n in range(40)]
    alert = {"type": "SLOW", "field": "latency_p95_ms", "value": 12.5, "comparison": ">"}
    alert |= {"threshold": 10, "since": "2026-01-25T01:12:00.000000+00:00", "severity": "warning"}
    states: list[dict[str, object]] = [
        {**alert, "state": "firing", "route": None},
        {**alert, "state": "pending", "route": "/x"},
        {**alert, "state": "resolved", "route": "/y"},
    ]
    snapshot, view = client.ServerAnswers({}, routes, [], states), top.View("http://h")

    def shown(keys: str) -> list[str]:
        view.press(keys)
        console = Console(width=80, height=24, color_system=None)
        with console.capture() as caught:
            console.print(top.fitting(console, snapshot, view))
        lines = caught.get().splitlines()
        assert len(lines) == 24
        assert [line for line in lines if "SLOW" in line] == [
            "▲ SLOW firing: latency_p95_ms is 12.5, threshold > 10, since 01:12:00 UTC",
            "◷ SLOW pending: latency_p95_ms of /x is 12.5, threshold > 10, since 01:12:00 UTC",
        ]
        return [line.split()[1] for line in lines if "GET /" in line]

    first = shown("")
    assert first[0] == "/00"
    assert shown("\x1b[B")[0] == "/01"
    assert shown("\x1b[6~")[0] == "/11"
    assert shown("\x1b[6~" * 9)[-1] == "/39"
    assert len(shown("")) == len(first)
    assert shown("\x1b[5~" * 9) == first


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
from metricsmw.cli.main import main

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
