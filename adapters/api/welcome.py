"""What a server says as it begins to serve: who may read and reset, and in development a link.

Once per server, not once per worker, and not again as a reloader starts it anew. The link's token
is in its fragment, which browsers send to nobody, so that it reaches no log of requests.
"""

from __future__ import annotations

import logging
import sys
import time
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from metricsmw.engine.aside import do_aside, runs_event_loop
from metricsmw.engine.workers.token import first_to, is_reloaded, token_home

from ..opening import ON_OPEN
from .claims import Claim, apps_in, claim_path, fields_of
from .policies import Policy, ResetRule, token_variable, who_may
from .tokens import own_token

if TYPE_CHECKING:
    from metricsmw import MetricsMonitor

logger = logging.getLogger("metricsmw")

# Where a monitor keeps what is to be said yet.
_SERVED = "_metricsmw_served"
LISTEN_SECONDS = 10.0  # within which a server that has loaded its app listens
_IN_DEVELOPMENT = ("--reload", "--debug")
_BY_TLS = ("--ssl-keyfile", "--ssl-certfile", "--certfile", "--keyfile", "--cert")


class Served(NamedTuple):
    """A path at which an app serves the sub-app.

    Attributes:
        app: What serves it.
        path: The path.
        claim: Who may read and reset.
        has_login: Returns whether the app has users of its own, as far as is known.
    """

    app: object
    path: str
    claim: Claim
    has_login: Callable[[], bool]


def _unknown() -> bool:
    return False


def serve_at(
    owner: Any, app: object, path: str | None, auth: Policy | None, reset: ResetRule
) -> Claim:
    """Claim a path for a middleware, see `claim_path`, and have it said as the server begins."""
    claim = claim_path(owner, app, path, Claim(auth, reset))
    if path is not None:
        serves(owner.monitor, Served(app, path, claim, _unknown))
    return claim


def serves(monitor: MetricsMonitor, served: Served) -> None:
    """Have `announce` say who may read at a path; each path once a monitor."""
    known: dict[str, Served | None] = vars(monitor).setdefault(_SERVED, {})
    known.setdefault(served.path, served)


def announce(monitor: MetricsMonitor, served: Served | None = None) -> None:
    """Say what has not been said yet. Never raises; waits for nothing where an app is served.

    Args:
        monitor: The monitor.
        served: What `serves` was not told of before.
    """
    if served is not None:
        serves(monitor, served)
    known: dict[str, Served | None] = vars(monitor).get(_SERVED, {})
    waiting = [served for served in known.values() if served is not None]
    if waiting:
        known.update(dict.fromkeys(known))
        # In an event loop by a thread, which can wait until the server listens.
        patience = LISTEN_SECONDS if runs_event_loop() else 0.0
        do_aside(lambda _: _say(monitor, waiting, patience), 0.0)


ON_OPEN.append(announce)


def _say(monitor: MetricsMonitor, waiting: list[Served], patience: float) -> None:
    try:
        for served in waiting:
            if not _is_first(monitor, served.path):
                continue
            has_login = served.has_login()
            readers, resetters = who_may(*served.claim, has_login=has_login)
            # What may surprise is a warning: logs show those where nobody has set them up.
            surprises = has_login and served.claim.is_default and monitor.settings.shared
            logger.log(
                logging.WARNING if surprises else logging.INFO,
                "metricsmw: %s may be read by %s, and reset by %s;"
                " auth= and reset= narrow that (docs: api, Who may read)",
                served.path,
                readers,
                resetters,
            )
            if served.claim.auth is None and not token_variable() and _is_development(served.app):
                address = address_of_server(patience)
                if address:
                    link = f"{address}{quote(served.path)}/#token={own_token(monitor)}"
                    print(f"metricsmw: the live page, for you: {link}", file=sys.stderr, flush=True)
    except Exception:
        monitor.recorder.faults.report("saying who may read")


def _is_first(monitor: MetricsMonitor, path: str) -> bool:
    directory = monitor.shared_directory
    if directory is None:
        return True
    try:
        return first_to(token_home(directory), f"told-{zlib.crc32(path.encode()):08x}")
    except OSError:
        return True


def _is_development(app: object) -> bool:
    if is_reloaded():
        return True
    if any(word in sys.argv for word in _IN_DEVELOPMENT):
        return True
    try:
        if sys.stderr.isatty():
            return True
    except (AttributeError, ValueError):  # there is none, or it is closed
        pass
    django = sys.modules.get("django.conf")
    if django is not None and django.settings.configured and django.settings.DEBUG:
        return True
    return any(_is_debugged(each) for each in apps_in(app))


def _is_debugged(app: object) -> bool:
    fields = fields_of(app)
    config = fields.get("config")
    in_config = isinstance(config, dict) and config.get("DEBUG") is True
    return fields.get("debug") is True or in_config


def address_of_server(patience: float) -> str:
    """Return the address that this process listens at; empty where it listens at none."""
    end = time.monotonic() + patience
    while True:
        found = _listening()
        if found or time.monotonic() >= end:
            break
        time.sleep(0.1)
    if not found:
        return ""
    _, host, port = min(found)
    host = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(host, host)
    name = f"[{host}]" if ":" in host else host
    scheme = "https" if any(word.partition("=")[0] in _BY_TLS for word in sys.argv) else "http"
    return f"{scheme}://{name}:{port}"


def _listening() -> list[tuple[int, str, int]]:
    """Return the descriptor, host and port of each TCP socket that this process listens on."""
    import psutil

    process = psutil.Process()
    # Before psutil 6 it has another name.
    name = "net_connections" if hasattr(process, "net_connections") else "connections"
    connections: Callable[..., Any] = getattr(process, name)
    return [
        (each.fd, each.laddr.ip, each.laddr.port)
        for each in connections(kind="tcp")
        if each.status == psutil.CONN_LISTEN
    ]
