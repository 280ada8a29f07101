"""The base of all resolvers: keys in environ and scope, `MatchedRequest`, sessions.

A resolver module imports this one and its own framework, nothing else of the adapters but paths and
types. It reads the insides of a package of others, which may be another release tomorrow: whatever
of it fails goes through `report_fault`, and the app does not notice.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from metricsmw.engine.faults import FaultLog
    from metricsmw.engine.recording.recorder import Recorder

# The key of a recorder's measurement in environ or scope is this prefix and the recorder's number.
MEASUREMENT_PREFIX = "metricsmw."

# The key under which a framework that cleans up after itself leaves a `MatchedRequest`.
FRAMEWORK_KEY = "metricsmw_framework"

# The key in environ or scope of what Django is to resolve a URL to, whatever its own URLs are.
MATCH_KEY = "metricsmw_match"

# Called with environ as a WSGI response starts, for frameworks that drop the request's context
# before the middleware around the app has the response.
ON_START_RESPONSE: list[Callable[[WSGIEnvironment], None]] = []

# The end of a template that leads to a mounted app whose routes are not known.
MOUNTED = "/{path:path}"

# Environ or scope of an answered request.
Carrier: TypeAlias = Mapping[str, Any]

# The session keys of the logged-in user, in this order: of many apps, of Flask-Login, of Django.
SESSION_KEYS = ("user", "user_id", "_user_id", "_auth_user_id")
# Where session["user"] is itself a mapping (OpenID's userinfo), the keys that tell users apart.
_NAMES = ("id", "user_id", "sub", "username", "email", "name")


class MatchedRequest:
    """The route and the user of one request, left in environ or scope under `FRAMEWORK_KEY`."""

    __slots__ = ()

    def route(self) -> str | None:
        """Return the template without the prefix that the app is mounted under, or None."""
        raise NotImplementedError

    def user(self) -> object | None:
        """Return the session's user as far as the app has loaded it, or None."""
        raise NotImplementedError

    def both(self) -> tuple[str | None, object | None]:
        """Return route and user, in that order."""
        return self.route(), self.user()


class ForwardedRequest(MatchedRequest):
    """A `MatchedRequest` whose answers stand in the copy of environ or scope that was passed on.

    Unlike others it returns the template with the prefix, which only the copy knows. Once asked it
    releases the copy, which may hold what it was made of.
    """

    __slots__ = ("_answers", "_copy", "_route", "_user")

    def __init__(
        self,
        copy: Carrier,
        route: Callable[[Any], str | None],
        user: Callable[[Any], object],
    ) -> None:
        self._copy: Carrier | None = copy
        self._route = route
        self._user = user
        self._answers: tuple[str | None, object | None] = None, None

    def route(self) -> str | None:
        """Return the copy's template, with the prefix, or None."""
        return self.both()[0]

    def user(self) -> object | None:
        """Return the copy's user, or None."""
        return self.both()[1]

    def both(self) -> tuple[str | None, object | None]:
        """Return both."""
        copy = self._copy
        if copy is not None:
            self._answers = self._route(copy), self._user(copy)
            self._copy = None
        return self._answers


@dataclass(frozen=True)
class Framework:
    """One row of the table of frameworks.

    Attributes:
        name: The framework's module; a process that has imported it uses the framework.
        interface: "wsgi" or "asgi".
        key: The key in environ or scope that marks an answered request as the framework's.
        template: Returns the route's template of such a request, with the prefix that the app is
            mounted under, or None where no route matched. None: the `MatchedRequest` at `key` does.
        user: Returns the user of such a request, or None. None: the `MatchedRequest` at `key` does,
            or else the user that the session in scope or REMOTE_USER names.
        install: Makes every app of the framework in this process leave its route and user. Called
            for each middleware that is made: must be idempotent. None: nothing need be done.
    """

    name: str
    interface: str
    key: str = FRAMEWORK_KEY
    template: Callable[[Any], str | None] | None = None
    user: Callable[[Any], object | None] | None = None
    install: Callable[[], None] | None = None


def mount_of_environ(environ: Carrier) -> str:
    """Return the path that a WSGI app is mounted under, without what a client has made up of it.

    gunicorn takes it from a header, `SCRIPT_NAME`, which a proxy may pass on from any client. As a
    prefix of templates that would make rows without end.
    """
    mount: str = environ.get("SCRIPT_NAME", "")
    if not mount or "HTTP_SCRIPT_NAME" not in environ:
        return mount
    given: str = environ["HTTP_SCRIPT_NAME"]
    if given == os.environ.get("SCRIPT_NAME"):  # as gunicorn was told
        return mount
    # A header that came several times is joined, and the last one counts.
    ends = range(len(mount), 0, -1)
    return next((mount[end:] for end in ends if given.endswith(mount[:end])), mount)


def mount_of_scope(scope: Carrier, mount: str | None) -> str:
    """Return the path that an ASGI app is mounted under, likewise: Daphne has a header for it.

    Args:
        scope: The request's scope.
        mount: The path, as the server tells it.
    """
    if not mount:
        return ""
    if "daphne.server" in sys.modules:
        for name, value in scope.get("headers", ()):
            given = unquote(value.decode("latin-1")) if name == b"daphne-root-path" else ""
            if given and mount.startswith(given):
                return mount.removeprefix(given)
    return mount


def join(prefix: str, route: str) -> str:
    """Return a template below the path that its app is mounted under."""
    return prefix.rstrip("/") + route if prefix else route


# The keys of all recorders that some middleware of this process measures with.
MEASUREMENT_KEYS: list[str] = []
# Their fault logs, by the same keys.
_FAULT_LOGS: dict[str, FaultLog] = {}


def measured_by(recorder: Recorder) -> None:
    """Have `follow_copy` look for this recorder's measurements, as long as the recorder lives."""
    if recorder.key not in MEASUREMENT_KEYS:
        MEASUREMENT_KEYS.append(recorder.key)
        _FAULT_LOGS[recorder.key] = recorder.faults
        weakref.finalize(recorder, _forget, recorder.key).atexit = False


def _forget(key: str) -> None:
    MEASUREMENT_KEYS.remove(key)
    del _FAULT_LOGS[key]


def report_fault(where: str) -> None:
    """Report the exception being handled to all that measure in this process.

    For what serves all apps of a framework, and so no monitor of its own. Never raises.

    Args:
        where: What failed, as the log names it.
    """
    for faults in list(_FAULT_LOGS.values()):
        faults.report(where)


def follow_copy(carrier: MutableMapping[str, Any]) -> bool:
    """Have the measurements around a request read what a framework leaves in this carrier.

    Dispatchers pass on a copy of environ or scope: the outer middlewares would look in vain into
    the original.

    Returns:
        Whether anybody may read it: False where all middlewares around exclude the request.
    """
    excluded = measured = False
    for key in MEASUREMENT_KEYS:
        measurement = carrier.get(key)
        if measurement is not None:
            if measurement.carrier is carrier:
                measured = True
                continue
            measurement.follow_copy(carrier)
            if measurement.is_marker:
                excluded = True
            else:
                measured = True
    return measured or not excluded


def see_error(carrier: Carrier, error: BaseException | None) -> None:
    """Have the measurements around a request know what the framework makes its answer of.

    Nothing of the exception is kept but texts, and nothing is changed in it. Never raises.

    Args:
        carrier: The request's environ or scope.
        error: The exception; None: there is none.
    """
    try:
        if error is None:
            return
        for key in MEASUREMENT_KEYS:
            measurement = carrier.get(key)
            if measurement is not None:
                measurement.see(error)
    except Exception:
        report_fault("looking at an exception")


def session_user(session: object) -> str | None:
    """Return the user that a session names, or None; does not mark the session as accessed."""
    if type(session) is dict:
        for key in SESSION_KEYS:
            if key in session:
                value = session[key]
                if type(value) is not str:
                    value = _text_of(value)
                if value:
                    name: str = value
                    return name
        return None
    # By its real type, and past its own methods: a lazy session would load itself for
    # isinstance(), and a tracking one would add "Vary: Cookie" to the app's response for get().
    if issubclass(type(session), dict):
        if not _keys(session):
            return None
        for key in SESSION_KEYS:
            if _has(session, key):
                value = _get(session, key)
                if type(value) is not str:
                    value = _text_of(value)
                if value:
                    found: str = value
                    return found
    return None


def _text_of(user: object) -> str | None:
    """Return what tells one user from the others."""
    if isinstance(user, Mapping):
        user = next((user[name] for name in _NAMES if user.get(name)), None)
    return str(user) if user else None


_keys: Callable[[Any], Any] = dict.keys
_has: Callable[[Any, str], bool] = dict.__contains__
_get: Callable[[Any, str], Any] = dict.__getitem__


def session_identity(session: object) -> str | None:
    """Return the name of a session's user, as an identity for the sub-app, or None."""
    return session_user(session)
