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
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from kits.handlers import SLOW_REQUEST
from kits.servers import APPS_ROOT, Server, serve, wait_until

pytest.importorskip("rich")

from metricsmw.cli import client, top
from metricsmw.snapshot import NUMERIC_FIELDS

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


FINALIZING = """
import os, signal
from metricsmw.cli import main as cli
from metricsmw.cli import top

class Ending:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(100):
            pass

top.View.press = lambda view, keys: Ending()
raise SystemExit(cli.main(["top", *__import__("sys").argv[1:]]))
"""


def test_a_signal_within_a_finalizer_is_not_lost(server: Server) -> None:
    terminal = Terminal(server.url, "--token", TOKEN, command=[sys.executable, "-c", FINALIZING])
    try:
        assert terminal.ended() == 130
        assert termios.tcgetattr(terminal.slave) == terminal.before
    finally:
        terminal.close()


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
from metricsmw.snapshot import NUMERIC_FIELDS

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
    assert told["metrics"]["latency_ttfb_p95_ms"] > 0
    assert sum(row["requests"] for row in told["workers"]) == told["metrics"]["total_requests"]
    assert list(told["slowest"][0]) == SLOW_REQUEST


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
    slow = {**SLOW, **dict.fromkeys(client.SLOWEST.texts_or_null, evil), "timestamp": evil}
    slowest = [slow, {**slow, "path": None, "route": evil, "trace_id": None, "error": None}]
    snapshot = client.ServerAnswers({"timestamp": evil}, routes, [], [alert], slowest=slowest)
    console = Console(width=160, force_terminal=True, color_system=None)
    with console.capture() as caught:
        console.print(top.render(snapshot, top.View("http://h", panels={"l"}), 160))
    assert not set(caught.get()) & set("\x1b\x07\r\u202e\x9b")
    assert "[bold red]x[/]" in caught.get()


SNAPSHOT = {"timestamp": "2026-01-25T01:12:00+00:00", **dict.fromkeys(NUMERIC_FIELDS, 1)}
ROUTE = {"method": "GET", "route": "/a", **dict.fromkeys(client.ROUTES.numbers, 1)}
ALERT: dict[str, object] = {
    "type": "SLOW",
    "state": "firing",
    "field": "latency_p95_ms",
    "comparison": ">",
    "threshold": 1,
    "route": None,
    "since": None,
    "value": None,
}
OWN: dict[str, object] = {
    "name": "orders",
    "type": "counter",
    "help": "",
    "unit": "",
    "labels": {"shop": "north\x1b"},
    "value": 7,
}
WORKER: dict[str, object] = {
    "pid": 4711,
    "state": "spins\x1b",
    "since": "2026-01-25T01:12:00+00:00",
    "differs": ["latency_p95_ms"],
    **dict.fromkeys(client.WORKERS.numbers[1:], 1),
    **dict.fromkeys(client.WORKERS.numbers_or_null),
}
SLOW: dict[str, object] = {
    "timestamp": "2026-01-25T01:12:00+00:00",
    "method": "GET",
    "route": "/a",
    "status": 200,
    "latency_ms": 1234.5,
    "latency_ttfb_ms": 1234.5,
    "pid": 77,
    "requests_in_flight": None,
    **dict.fromkeys(client.SLOWEST.texts_or_null),
}
ERROR: dict[str, object] = {
    "type": "shop.DeclinedError\x1b[31m",
    "where": {"module": "shop.pay\u202e", "function": "<b>charge</b>", "line": 1041},
    "count": 12,
    "bars": [0, 3, 9],
    "last_seen": "2026-01-25T01:12:00+00:00",
    "routes": ["POST /pay\x1b"],
    "new": True,
}
GOOD: dict[str, object] = {
    "/current": {"metrics": SNAPSHOT},
    "/routes": {"routes": [ROUTE]},
    "/series": {"series": [{"request_rate_rpm": 1, "error_rate_pct": 0, "latency_p95_ms": None}]},
    "/alerts": {"alerts": [ALERT]},
    "/custom": {"custom": [OWN]},
    "/errors": {"errors": [ERROR, {**ERROR, "where": None, "new": False, "type": "HTTP 503"}]},
    "/workers": {"workers": [WORKER, {**WORKER, "pid": 8, "state": "running", "differs": []}]},
    "/slowest": {"slowest": [SLOW]},
    "/heatmap?seconds=1": {"distribution": {"scale": 5, "buckets": [[-160, 4], [-158, 1]]}},
}


def distribution(bucket: list[int]) -> dict[str, Any]:
    return {"distribution": {"scale": 5, "buckets": [bucket]}}


class Strange(BaseHTTPRequestHandler):
    """A server whose answers are those of `bodies`, byte for byte; a function writes its own."""

    bodies: ClassVar[dict[str, bytes | Callable[[Any], None]]] = {}

    def do_GET(self) -> None:
        body = self.bodies[self.path.removeprefix("/api/metrics")]
        if callable(body):
            body(self)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def strange() -> Iterator[Callable[..., str]]:
    """Returns the address of a server with these answers, and good ones elsewhere."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Strange) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
        thread.start()

        def answers(path: str = "/current", body: Any = b"") -> str:
            Strange.bodies = {name: json.dumps(good).encode() for name, good in GOOD.items()}
            Strange.bodies[path] = body
            return f"http://127.0.0.1:{server.server_port}"

        yield answers
        server.shutdown()


def problem(url: str, deadline: float = 20.0) -> str:
    with pytest.raises(client.TopError) as caught:
        client.MetricsClient(url, "", deadline).fetch()
    assert caught.value.code == client.UNREACHABLE
    return str(caught.value)


def test_good_answers_are_taken(strange: Callable[..., str]) -> None:
    url = strange("/current", json.dumps(GOOD["/current"]).encode())
    answers = client.MetricsClient(url, "").fetch()
    assert answers.metrics["workers"] == 1

    def shown(keys: str) -> str:
        from rich.console import Console

        view = top.View("http://h")
        view.press(keys)
        console = Console(width=160, color_system=None)
        with console.capture() as caught:
            console.print(top.render(answers, view, 160, rows=1))
        return caught.get()

    assert "orders{shop=north\ufffd}" in shown("c")
    assert "orders" not in shown("cc")
    assert "c the app's own numbers" in " ".join(shown("").split())
    assert "w workers" in shown("")
    assert re.search(r"Latencies +█ ▃ +31 ms to 33 ms", shown(""))
    assert "x kinds of error" in " ".join(shown("").split())
    errors = [line for line in shown("x").splitlines() if "HTTP 503" in line or "shop" in line]
    assert errors[0].split() == [
        *("▲", "shop.DeclinedError\ufffd[31m", "<b>charge</b>:1041", "shop.pay\ufffd", "12"),
        *("▁▃█", "01:12:00", "POST", "/pay\ufffd"),
    ]
    assert errors[1].split()[:3] == ["HTTP", "503", "-"]
    workers = [line for line in shown("w").splitlines() if re.match(r" ?(4711|8)\b", line)]
    assert [line.split()[:2] for line in workers] == [["4711", "spins\ufffd"], ["8", "running"]]
    assert ["▲" in line for line in workers] == [True, False]


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/current", b"", "it is no JSON"),
        ("/current", b"\xff", "it is no JSON"),
        ("/current", b'{"metrics": ' + b"[" * 100_000, "it is no JSON"),
        ("/current", b'{"metrics": NaN}', "it is no JSON"),
        ("/current", b'{"metrics": 1' + b"0" * 5000 + b"}", "it is no JSON"),
        ("/current", b"[]", "it has no metrics"),
        ("/current", b"{}", "it has no metrics"),
        ("/current", b'{"metrics": []}', "no object"),
        ("/current", {"metrics": {**SNAPSHOT, "workers": "1"}}, "workers is no number"),
        ("/current", {"metrics": {**SNAPSHOT, "workers": True}}, "workers is no number"),
        ("/current", {"metrics": {**SNAPSHOT, "workers": None}}, "workers is no number"),
        ("/current", {"metrics": {**SNAPSHOT, "timestamp": 1}}, "timestamp is no text"),
        ("/routes", {"routes": {}}, "routes is no list"),
        ("/routes", {"routes": [1]}, "no object"),
        ("/routes", {"routes": [{**ROUTE, "requests": []}]}, "requests is no number"),
        ("/routes", {"routes": [{**ROUTE, "requests": 10**400}]}, "requests is no number"),
        ("/routes", {"routes": [{**ROUTE, "route": None}]}, "route is no text"),
        ("/routes", {"routes": [{"route": "/a"}]}, "method is no text"),
        ("/series", {"series": [{"latency_p95_ms": "x"}]}, "latency_p95_ms is no number"),
        ("/alerts", {"alerts": [{**ALERT, "route": 1}]}, "route is no text"),
        ("/alerts", {"alerts": [{**ALERT, "value": "1"}]}, "value is no number"),
        ("/alerts", {"alerts": [{"state": "firing"}]}, "type is no text"),
        ("/custom", {"custom": [{**OWN, "value": "7"}]}, "value is no number"),
        ("/custom", {"custom": [{**OWN, "labels": {"a": 1}}]}, "labels are no texts by name"),
        ("/errors", {"errors": [{**ERROR, "type": None}]}, "type is no text"),
        ("/errors", {"errors": [{**ERROR, "bars": ["9"]}]}, "bars are no numbers"),
        ("/errors", {"errors": [{**ERROR, "new": 1}]}, "new is neither true nor false"),
        ("/errors", {"errors": [{**ERROR, "where": [1]}]}, "no object"),
        ("/errors", {"errors": [{**ERROR, "where": {"line": 1}}]}, "module is no text"),
        ("/heatmap?seconds=1", {"distribution": []}, "distribution is no object"),
        ("/heatmap?seconds=1", {"distribution": {"scale": 99}}, "scale is no scale"),
        ("/heatmap?seconds=1", distribution([10**9, 1]), "buckets are none"),
        ("/heatmap?seconds=1", distribution([1, 0]), "buckets are none"),
        ("/heatmap?seconds=1", distribution([1, 2, 3]), "buckets are none"),
        ("/workers", {"workers": [{**WORKER, "pid": None}]}, "pid is no number"),
        ("/workers", {"workers": [{**WORKER, "cpu_pct": "9"}]}, "cpu_pct is no number"),
        ("/workers", {"workers": [{**WORKER, "differs": [1]}]}, "differs are no texts"),
        ("/slowest", {"slowest": [{**SLOW, "trace_id": 1}]}, "trace_id is no text"),
        ("/slowest", {"slowest": [{**SLOW, "pid": None}]}, "pid is no number"),
    ],
)
def test_an_answer_of_another_shape_is_one_sentence(
    strange: Callable[..., str], path: str, body: Any, reason: str
) -> None:
    url = strange(path, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert problem(url) == problem(url)
    assert problem(url).startswith(f"{url}/api/metrics{path} does not answer as metrics do: ")
    assert reason in problem(url)
    assert "\n" not in problem(url)


def test_an_answer_without_end_is_left(strange: Callable[..., str]) -> None:
    def endless(handler: Strange) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        with suppress(OSError):
            while True:
                handler.wfile.write(b"data: " + b"x" * 65_536)

    assert "it has more than 16 MB" in problem(strange("/series", endless))


@pytest.mark.parametrize(
    ("head", "drop"),
    [(b"HTTP/1.0 200 OK\r\n\r\n", b" "), (b"HTTP/1.0 200 OK\r\nX: ", b"x")],
    ids=["body", "head"],
)
def test_an_answer_in_drops_is_left(strange: Callable[..., str], head: bytes, drop: bytes) -> None:
    left = threading.Event()

    def drops(handler: Strange) -> None:
        handler.wfile.write(head)
        with suppress(OSError):
            while not left.wait(0.05):
                handler.wfile.write(drop)

    assert "has not answered in full within 0.5 s" in problem(strange("/current", drops), 0.5)
    left.set()


def test_errors_cannot_write_to_the_terminal(strange: Callable[..., str]) -> None:
    def status(handler: Strange) -> None:
        handler.wfile.write("HTTP/\x1b[2J\u202e\x9b31m evil\r\n\r\n".encode())

    done = run(strange("/current", status), "--once")
    assert done.returncode == 1
    assert "evil" in done.stderr
    assert not set(done.stderr) & set("\x1b\x07\r\u202e\x9b")
    assert done.stderr.count("\n") == 1


def test_the_token_of_a_file(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert run(server.url, "--once", "--token-file", str(file)).returncode == 0
    # What is said on the command line goes before the environment.
    done = run(server.url, "--once", "--token-file", str(file), METRICSMW_TOKEN="wrong")
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot read the token in"),
        (b" \n", "has no token"),
        (b"x" * 70_000, "has no token"),
        (b"a\r\nX-Evil: 1", "characters that no header can carry"),
    ],
)
def test_a_token_that_is_none(tmp_path: Path, content: bytes | None, reason: str) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(client.TopError, match=reason) as caught:
        client.MetricsClient("http://h", client.read_token(str(file)))
    assert caught.value.code == client.WRONG_USAGE


def test_the_help_says_who_sees_a_token() -> None:
    assert "in `ps`" in " ".join(run("--help").stdout.split())


def test_a_token_is_asked_for_where_somebody_is_there(server: Server) -> None:
    terminal = Terminal(server.url)
    try:
        wait_until(lambda: "Token of http://" in terminal.read(), "the question")
        terminal.press(f"{TOKEN}\n")
        terminal.until("Requests ↓")
        assert TOKEN not in terminal.output
        terminal.press("q")
        assert terminal.ended() == 0
    finally:
        terminal.close()


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
            "▲ SLOW firing: latency_p95_ms is 12.5 ms (> 10 ms), since 01:12:00 UTC",
            "◷ SLOW pending: latency_p95_ms of /x is 12.5 ms (> 10 ms), since 01:12:00 UTC",
        ]
        return [line.split()[1] for line in lines if "GET /" in line]

    first = shown("")
    assert first[0] == "/00"
    assert shown("\x1b[B")[0] == "/01"
    assert shown("\x1b[6~")[0] == "/11"
    assert shown("\x1b[6~" * 9)[-1] == "/39"
    assert len(shown("")) == len(first)
    assert shown("\x1b[5~" * 9) == first


def test_what_the_server_failed_is_red_and_first() -> None:
    from rich.console import Console

    zero = dict.fromkeys((name for *_, name in top.COLUMNS.values()), 0)
    routes = [
        {
            **zero,
            "method": "GET",
            "route": route,
            "error_rate_pct": all_,
            "server_error_rate_pct": own,
        }
        for route, all_, own in (("/a", 0, 0), ("<unmatched>", 100, 0), ("/b", 50, 0), ("/c", 9, 9))
    ]
    view = top.View("http://h")
    view.press("e")
    assert [row["route"] for row in view.sorted(routes)] == ["/c", "/b", "/a", "<unmatched>"]
    console = Console(width=40, force_terminal=True, color_system="standard")
    with console.capture() as caught:
        console.print(top.render(client.ServerAnswers({}, routes, [], []), view, 40))
    red = [line for line in caught.get().splitlines() if "\x1b[1;31m" in line]
    assert len(red) == 1
    assert "GET /c" in red[0]


def test_slow_requests_are_a_panel() -> None:
    from rich.console import Console

    rows = [{**SLOW, "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}, {**SLOW, "request_id": "id"}]
    snapshot, view = client.ServerAnswers({}, [], [], slowest=rows * 5), top.View("http://h")

    def shown(keys: str) -> str:
        view.press(keys)
        console = Console(width=120, height=40, color_system=None)
        with console.capture() as caught:
            console.print(top.fitting(console, snapshot, view))
        return caught.get()

    assert "slow requests" in shown("")
    assert "Slow request" not in shown("")
    panel = shown("l")
    first, second = [line.split() for line in panel.splitlines() if "GET /a" in line][:2]
    shown_of_it = "GET /a 4bf92f3577b34da6a3ce929d0e0e4736 1,234.5 200 01:12:00 77 -"
    assert " ".join(first) == shown_of_it
    assert second[2] == "id"
    assert "… and 2 more" in panel
    assert "Slow request" not in shown("l")


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([], ""),
        ([-9e9, 1], "▁█"),
        ([0, 0], "▁▁"),
        ([0, 50, 100], "▁▅█"),
        ([None, 1], " █"),
        ([None], " "),
    ],
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


@pytest.mark.parametrize(
    ("value", "said"), [(1234.5, "1,234.5"), (0.125, "0.12"), (0.00123, "0.00123"), (0, "0")]
)
def test_numbers(value: float, said: str) -> None:
    from metricsmw.cli.text import number

    assert number(value) == said


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
