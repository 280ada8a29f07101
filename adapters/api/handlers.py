"""The routes of the sub-app, free of any framework: `Handlers.handle(Request) -> Response`.

The routes are one table in `answers`. A request is authorised first, so that nobody else learns
which routes exist; then come, in this order, unknown path (404), wrong method (405), a change that
another site asks for (403), and the answer. Every error is JSON and says nothing of the inside.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from inspect import isawaitable

from metricsmw import MetricsMonitor

from .. import dashboard
from .answers import (
    OPEN,
    ROUTES,
    Answer,
    BadRequestError,
    Shared,
    error_response,
    is_page,
    page_response,
    static_file,
)
from .messages import Request, Response
from .policies import (
    Grant,
    Policy,
    as_policy,
    asks_identity,
    challenge_of,
    is_cross_site,
    token_of,
)
from .readings import IN_THIS_THREAD, Work


class Handlers:
    """The sub-app's routes over one monitor.

    Args:
        monitor: Its metrics are served.
        auth: Who may read; None means the default policy.
        work: Where answers are worked out, as they read files: for ASGI outside the event loop.
    """

    def __init__(
        self, monitor: MetricsMonitor, auth: Policy | None = None, work: Work = IN_THIS_THREAD
    ) -> None:
        self._monitor = monitor
        self._work = work
        self._policy = as_policy(auth)
        self._asks_identity = asks_identity(self._policy)

    def handle(self, request: Request) -> Response:
        """Answer a request; never raises.

        A policy that is `async def` but waits for nothing is fine; one that waits is a fault (500).
        """
        work = self.handle_async(request)
        try:
            work.send(None)
            work.throw(RuntimeError("an auth policy or identity that waits needs ASGI"))
        except StopIteration as done:
            response: Response = done.value
            return response
        return error_response(500, "Internal error")  # the policy caught the error and waits on

    async def handle_async(self, request: Request) -> Response:
        """Answer a request, waiting where policy or identity are asynchronous; never raises."""
        doing = "auth policy"
        self._monitor.recorder.serve()
        try:
            static = self._static_file(request)
            if static is not None:
                return static
            request.token = token_of(self._policy)
            request.by_session = self._asks_identity
            grant = await self._grant(request)
            doing = f"answer to {request.path}" if request.path in ROUTES else "unknown path"
            found = self._find(request, grant)
            response = found if isinstance(found, Response) else await self._answer(found, request)
        except Exception:
            self._monitor.recorder.faults.report(doing)
            response = error_response(500, "Internal error")
        return replace(response, body=b"", stream=False) if request.method == "HEAD" else response

    @staticmethod
    def _static_file(request: Request) -> Response | None:
        if request.method not in ("GET", "HEAD") or not request.path.startswith("/static/"):
            return None
        file = dashboard.file_at(request.path.removeprefix("/static/"))
        if file is None:
            return None
        response = static_file(file, request, "public, max-age=31536000, immutable")
        return replace(response, body=b"") if request.method == "HEAD" else response

    async def _grant(self, request: Request) -> Grant | None:
        if request.path in OPEN:
            return Grant.AMBIENT
        if self._asks_identity:
            await request.settle()
        verdict = self._policy(request)
        return Grant.of(await verdict if isawaitable(verdict) else verdict)

    def _find(self, request: Request, grant: Grant | None) -> Answer | Response:
        """Return what answers a request, or the error that it is answered with; reads nothing."""
        if grant is None:
            challenge = challenge_of(self._policy)
            headers = {} if challenge is None else {"WWW-Authenticate": challenge}
            if is_page(request) and "text/html" in request.headers.get("accept", ""):
                # A browser gets the page all the same, which holds no data: people sign in there.
                page = page_response(self._monitor, request)
                return replace(page, status=401, headers=[*page.headers, *headers.items()])
            return error_response(401, "Authentication required", headers)
        methods = ROUTES.get(request.path)
        if methods is None:
            return error_response(404, "Not found")
        safe = request.method in ("GET", "HEAD")
        answer = methods.get("GET" if safe else request.method)
        if answer is None:
            allowed = "GET, HEAD" if "GET" in methods else ", ".join(methods)
            return error_response(405, "Method not allowed", {"Allow": allowed})
        if not safe and grant is Grant.AMBIENT and is_cross_site(request.headers):
            return error_response(403, "Cross-site request refused")
        return answer

    async def _answer(self, answer: Answer, request: Request) -> Response:
        monitor = self._monitor
        try:
            if isinstance(answer, Shared):
                shared = answer.answer
                return await self._work.read(
                    monitor, lambda reading: shared(monitor, reading, request)
                )
            return await self._work.run(partial(answer, monitor, request))
        except BadRequestError as error:
            return error_response(400, str(error))
