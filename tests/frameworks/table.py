"""Write the table of docs/frameworks.md: what is known of each framework's requests.

    python tests/frameworks/table.py                # writes it into docs/frameworks.md
    python tests/frameworks/table.py --print        # only shows it
    python tests/frameworks/table.py --site flask   # asks one site, in this process

Needs the frameworks, in a venv of their own: `pip install -e . -r tests/frameworks.txt`. Each site
is asked in a process of its own, since frameworks change what they share.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
DOCUMENT = TESTS.parent / "docs" / "frameworks.md"
START, END = "<!-- table: tests/frameworks/table.py -->", "<!-- end of the table -->"
HEAD = "| framework | in one line | template | user | WebSockets | first byte of a stream |"
PATIENCE = 120.0  # seconds for one site, its imports included
SOCKET_PATIENCE = 20.0  # seconds
NONE = "\N{EN DASH}"
MISSING = "not installed here"

if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

from frameworks import asgi_sites, wsgi_sites  # noqa: E402,F401  # they fill SITES
from frameworks.sites import SITES, Site  # noqa: E402


def ask(site: Site) -> list[str]:
    """Ask a site for all that it has, in this process.

    Returns:
        The cells of its row behind the way of wrapping; one cell where it was refused.
    """
    from metricsmw import MetricsMonitor
    from metricsmw.adapters import wrap
    from metricsmw.adapters.auth import public

    monitor = MetricsMonitor()
    try:
        app = site.make(partial(wrap, monitor=monitor, auth=public()))
    except TypeError as error:
        return ["neither WSGI nor ASGI" if "is neither" in str(error) else str(error)]
    client, starting = _client(site, app)
    with starting:
        assert client(site.item), f"{site.item} fails"
        routes = [row["route"] for row in monitor.get_routes()]
        template = (
            "`route=`" if routes == ["<unmatched>"] else " ".join(f"`{each}`" for each in routes)
        )
        user = "`user=`"
        if "login" in site.has:
            assert client("/login"), "/login fails"
            client(site.item)
            user = "its session's" if monitor.get_active_user_ids() == ["ada"] else user
        sockets = ""
        if "ws" in site.has:
            counted = asyncio.run(_while_open(app, monitor.get_websocket_connections))
            sockets = "counted" if counted == 1 else NONE
            assert monitor.get_websocket_connections() == 0
        first = ""
        if "stream" in site.has:
            monitor.reset_statistics()
            assert client("/stream"), "/stream fails"
            first = "yes" if monitor.get_statistics()["current"]["latency_ttfb_p50_ms"] else NONE
    return [template, user, sockets, first]


def _client(site: Site, app: Any) -> tuple[Any, Any]:
    """Return what asks for a path and tells whether that succeeded, and the app's lifespan."""
    if site.is_asgi:
        from starlette.testclient import TestClient

        asgi = TestClient(app, raise_server_exceptions=False)
        # What has an answer at all has a route: MCP refuses a plain GET.
        return (
            lambda path: asgi.get(path).status_code != 404,
            asgi if site.lifespan else nullcontext(),
        )
    from werkzeug.test import Client

    wsgi = Client(app)

    def get(path: str) -> bool:
        with wsgi.get(path, environ_base={"REMOTE_ADDR": "127.0.0.1"}) as response:
            return bool(response.get_data() and response.status_code == 200)

    return get, nullcontext()


async def _while_open(app: Any, count: Callable[[], int]) -> int:
    """Return the count while a WebSocket at /ws is open.

    The messages of ASGI themselves: a client that is cancelled when it closes would race with the
    tasks that Quart cancels then.

    Raises:
        TimeoutError: the app does not accept it, or does not end once the client has gone.
    """
    scope = {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": "/ws",
        "raw_path": b"/ws",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"test")],
        "client": ("127.0.0.1", 50000),
        "server": ("test", 80),
        "subprotocols": [],
        "state": {},
        "extensions": {},
    }
    client: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    accepted = asyncio.Event()

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "websocket.accept":
            accepted.set()

    client.put_nowait({"type": "websocket.connect"})
    serving = asyncio.ensure_future(app(scope, client.get, send))
    await asyncio.wait_for(accepted.wait(), SOCKET_PATIENCE)
    counted = count()
    client.put_nowait({"type": "websocket.disconnect", "code": 1000})
    await asyncio.wait_for(serving, SOCKET_PATIENCE)
    return counted


def row(site: Site) -> str:
    """Return a site's row, asked in a process of its own."""
    if importlib.util.find_spec(site.package) is None:
        cells = [MISSING]
    else:
        command = [sys.executable, __file__, "--site", site.name]
        env = {**os.environ, "PYTHONPATH": str(TESTS), "METRICSMW_SHARED": "off"}
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{site.name}:\n{done.stdout}\n{done.stderr}")
        cells = json.loads(done.stdout.splitlines()[-1])
    way = f"`{site.way}`" if site.way else NONE
    cells += [NONE] * (4 - len(cells)) if site.way else [""] * (4 - len(cells))
    return f"| {site.framework} | {way} | {' | '.join(cells)} |"


def table(names: list[str] | None = None) -> list[str]:
    """Return the rows of these sites, or of all, in the order of their names' first letters."""
    sites = [SITES[name] for name in names or SITES]
    return [row(site) for site in sorted(sites, key=lambda site: site.framework.lower())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print", action="store_true", help="only show the table")
    parser.add_argument("--site", choices=SITES, help="ask one site, in this process")
    options = parser.parse_args()
    if options.site:
        warnings.simplefilter("ignore")
        logging.disable()
        answer = ask(SITES[options.site])
        print("\n" + json.dumps(answer), flush=True)
        os._exit(0)  # not all of them end their threads
    rows = [HEAD, "|---" * (HEAD.count("|") - 1) + "|", *table()]
    if options.print:
        print("\n".join(rows))
        return
    before, _, rest = DOCUMENT.read_text().partition(START)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text("\n".join([before + START, "", *rows, "", END + after]))


if __name__ == "__main__":
    main()
