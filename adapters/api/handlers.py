"""The routes of the sub-app, free of any framework: `Handlers.handle(Request) -> Response`.

The routes are one table in `answers`. A request is authorised first (`admission`), so that nobody
else learns which routes exist; then come, in this order, unknown path (404), wrong method (405), a
change that is not allowed (403), and the answer. Every error is JSON, without internals.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from metricsmw import MetricsMonitor

from .. import dashboard
from .admission import CHANGES, Admission, Pause
from .answers import (
    OPEN,
    ROUTES,
    Answer,
    Shared,
    static_file,
)
from .messages import Request, Response
from .parameters import BadRequestError, is_text
from .policies import Grant, Policy, ResetRule
from .readings import IN_THIS_THREAD, Work
from .responses import error_response


class Handlers:
    """The sub-app's routes over one monitor.

    Args:
        monitor: Its metrics are served.
        auth: Who may read; None means the default policy.
        work: Where answers are worked out, as they read files: for ASGI outside the event loop.
        reset: Who may reset: True for whoever may read, "token" for whoever has the token, False
            for nobody.
        pause: Waits in the event loop; None: there is none.
    """

    def __init__(
        self,
        monitor: MetricsMonitor,
        auth: Policy | None = None,
        work: Work = IN_THIS_THREAD,
        *,
        reset: ResetRule = True,
        pause: Pause | None = None,
    ) -> None:
        self._monitor = monitor
        self._work = work
        self._admission = Admission(monitor, auth, reset, pause)

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
            grant = await self._admission.admit(request)
            doing = f"answer to {request.path}" if request.path in ROUTES else "unknown path"
            found = grant if isinstance(grant, Response) else self._find(request, grant)
            if request.path in CHANGES and isinstance(grant, Grant):
                request.asker = self._admission.asker(request, grant)
            response = found if isinstance(found, Response) else await self._answer(found, request)
            if request.path in CHANGES and response.status == 200:
                self._admission.tell_change(request)
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

    def _find(self, request: Request, grant: Grant | None) -> Answer | Response:
        """Return what answers a request, or the error that it is answered with; reads nothing."""
        if grant is None and request.path not in OPEN:
            return self._admission.refused(request)
        methods = ROUTES.get(request.path)
        if methods is None:
            return error_response(404, "Not found")
        safe = request.method in ("GET", "HEAD")
        answer = methods.get("GET" if safe else request.method)
        if answer is None:
            allowed = "GET, HEAD" if "GET" in methods else ", ".join(methods)
            return error_response(405, "Method not allowed", {"Allow": allowed})
        forbidden = None if safe else self._admission.forbidden(request, grant)
        if forbidden is not None:
            return error_response(403, forbidden)
        if not is_text(request.query):
            return error_response(400, "the query is not text in UTF-8")
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
