"""Who is let in to one sub-app, for what: the policy, `reset=`, wrong guesses, and the refusals.

Every way in leads through `Admission.admit`: bearer headers, the cookie that stands for one, the
sign-in itself, and also `/health`, which tells more to those who may read. A right token is let in
whatever others have tried. Wrong ones are slowed: past the free ones the answer is 429, and where
that holds up nobody else it comes late.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from inspect import isawaitable
from typing import TypeAlias

from metricsmw import MetricsMonitor

from .answers import (
    OPEN,
    is_page,
    page_response,
)
from .messages import Request, Response
from .policies import (
    Grant,
    Policy,
    ResetRule,
    as_policy,
    as_reset_rule,
    asker,
    asks_identity,
    by_token,
    challenge_of,
    guess_of,
    hosts_of,
    token_of,
    token_variable,
    ways_of,
)
from .responses import error_response
from .signin import LOGIN_RATE_LIMIT
from .sites import is_cross_site, may_be_rebound
from .tokens import own_token

logger = logging.getLogger("metricsmw")

# Waits so many seconds, and holds up nothing but this request.
Pause: TypeAlias = Callable[[float], Awaitable[None]]

SLOW_SECONDS = 1.0  # that an answer to one guess too many takes
MAX_SLOWED = 32  # of them at once in a process
RESET = "/reset"
# What changes something for everybody, and so needs the permission to reset.
CHANGES = {RESET: "Reset", "/alerts/silence": "Silencing", "/alerts/test": "Sending a test"}
DONE = {
    RESET: "counts were reset",
    "/alerts/silence": "alerts were silenced, or a silence ended,",
    "/alerts/test": "a test alert was sent",
}
_OPEN_TO_ALL = "/widget.js"
# What changes nothing but the asker's own cookies.
_COOKIES = ("/signin", "/signout")
CROSS_SITE_REFUSED = (
    "Cross-site request refused: its Origin is not the Host (a proxy has to pass the Host on, "
    "with its port)"
)


class Admission:
    """Decides who is let in to the sub-app over one monitor.

    Args:
        monitor: Its metrics are served.
        auth: Who may read; None means the default policy.
        reset: Who may reset.
        pause: Waits without holding up anything else; None: nothing here can.
    """

    slowed = 0  # answers of this process that wait just now

    def __init__(
        self,
        monitor: MetricsMonitor,
        auth: Policy | None = None,
        reset: ResetRule = True,
        pause: Pause | None = None,
    ) -> None:
        self._monitor = monitor
        self.policy = as_policy(auth, lambda: own_token(monitor))
        self.reset = as_reset_rule(reset)
        self._pause = pause
        self._asks_identity = asks_identity(self.policy)

    def _token(self) -> str | None:
        """Return the token that lets in, or resets, here; None: there is none."""
        secret = token_of(self.policy)
        if secret is None and self.reset == "token":
            secret = token_variable() or own_token(self._monitor)
        return secret

    async def admit(self, request: Request) -> Grant | Response | None:
        """Return what a request has proved, None for nothing, or the answer to a guess too many.

        Raises what the policy and the identity raise.
        """
        request.by_session = self._asks_identity and request.has_login
        if request.path == _OPEN_TO_ALL:
            return Grant.AMBIENT
        if request.path in _COOKIES:
            request.token = self._token()
        try:
            grant = await self._verdict(request)
        except Exception:
            if request.path not in OPEN:
                raise
            self._monitor.recorder.faults.report("auth policy")
            grant = None
        if grant is None or (request.path == "/signin" and grant is not Grant.EXPLICIT):
            refusal = await self._slowed_refusal(request)
            if refusal is not None:
                return refusal
        request.ways = ways_of(self.policy, request)
        request.is_known = grant is not None
        return grant

    async def _verdict(self, request: Request) -> Grant | None:
        if self.reset == "token" and request.path in CHANGES:
            secret = self._token()
            grant = by_token(request, secret) if secret else None
            if grant is not None:
                return grant
        if self._asks_identity:
            await request.settle()
        verdict = self.policy(request)
        return Grant.of(await verdict if isawaitable(verdict) else verdict)

    async def _slowed_refusal(self, request: Request) -> Response | None:
        guess = guess_of(self.policy, request)
        if guess is None:
            return None
        wait = LOGIN_RATE_LIMIT.failed(guess, self._monitor.clock.monotonic())
        if not wait:
            return None
        if self._pause is not None and Admission.slowed < MAX_SLOWED:
            Admission.slowed += 1
            try:
                await self._pause(SLOW_SECONDS)
            finally:
                Admission.slowed -= 1
        headers = {"Retry-After": str(wait)}
        challenge = challenge_of(self.policy)
        if challenge is not None:
            headers["WWW-Authenticate"] = challenge
        return error_response(429, "Too many wrong credentials", headers)

    def refused(self, request: Request) -> Response:
        """Return the answer to a request that has proved nothing."""
        self._token()  # of which the answer tells: made now, for `metricsmw token` to print
        challenge = challenge_of(self.policy)
        headers = {} if challenge is None else {"WWW-Authenticate": challenge}
        if is_page(request) and "text/html" in request.headers.get("accept", ""):
            # A browser gets the page all the same, which holds no data: people sign in there.
            page = page_response(self._monitor, request)
            return replace(page, status=401, headers=[*page.headers, *headers.items()])
        return error_response(401, "Authentication required", headers, ways=request.ways)

    def forbidden(self, request: Request, grant: Grant | None) -> str | None:
        """Return why a request may not change anything; None: it may."""
        if grant is not Grant.EXPLICIT and is_cross_site(request.headers):
            return CROSS_SITE_REFUSED
        if request.path in _COOKIES:
            return None
        hosts = hosts_of(self.policy)
        if hosts is not None and grant is Grant.AMBIENT and may_be_rebound(request.headers, hosts):
            return "Host refused: auth.public(hosts=[…]) names the hosts that may be asked for"
        if request.path in CHANGES:
            what = CHANGES[request.path]
            if not self.reset:
                return f"{what} is switched off here (reset=False)"
            if self.reset == "token" and grant is Grant.AMBIENT:
                return f'{what} needs the token here (reset="token")'
        return None

    def asker(self, request: Request, grant: Grant) -> str:
        """Return who asks for a change, for the log and the events."""
        try:
            return asker(self.policy, grant, request)
        except Exception:  # the app's own identity, which nobody has asked before
            self._monitor.recorder.faults.report("identity")
            return "whom the application's policy let in"

    def tell_change(self, request: Request) -> None:
        """Log who has changed something for everybody."""
        logger.warning("metricsmw: %s by %s", DONE[request.path], request.asker)
