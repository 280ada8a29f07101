"""`Raised`: what is kept of an exception, without a reference to it, its frames or their variables.

The traceback is walked once, and no source file is read. Two exceptions are of one kind where they
have the same type and went through the same functions of the app itself, whatever the lines: so a
kind outlives a change of the code around it. Functions count once each, so that a recursion is of
one kind at any depth. Where no function of the app took part, the innermost ones tell.
"""

from __future__ import annotations

import builtins
import os
import sys
import sysconfig
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from metricsmw.engine.storage.errors import OTHER_KEY, ErrorText, Frame
from metricsmw.engine.storage.keys import user_key

if TYPE_CHECKING:
    from types import CodeType, FrameType, TracebackType

OUTERMOST, INNERMOST = 12, 24  # frames of a traceback that are kept
MOST_WALKED = 10_000  # frames of a traceback that are looked at
MOST_CAUSES = 20  # exceptions in whose handling one was raised
MOST_OWN = 100  # functions of the app that tell kinds apart
MOST_TYPE, MOST_MESSAGE, MOST_NAME, MOST_FILE = 200, 300, 100, 140
STANDARD = tuple(
    {
        path.replace("\\", "/").rstrip("/") + "/"
        for path in map(sysconfig.get_path, ("stdlib", "platstdlib"))
        if path
    }
)
PACKAGES = ("/site-packages/", "/dist-packages/")
# Bottle is installed as a script, too, which servers that are scripts of that folder import.
SCRIPTS, PURELIB = (sysconfig.get_path(name) or "" for name in ("scripts", "purelib"))
OURS = ("metricsmw.adapters.", "metricsmw.engine.")
MOST_FILES = 10_000  # whose places are remembered

_own_files: dict[str, bool] = {}


class Identity(NamedTuple):
    """What an exception is known by, as another one may have its `id` once it is gone.

    Attributes:
        number: Its `id`.
        type: The full name of its class.
        file: The file that has raised it; empty where it was not raised so far.
        line: The line, likewise.
    """

    number: int
    type: str
    file: str
    line: int

    @classmethod
    def of(cls, error: BaseException) -> Identity:
        """Return what an exception is known by."""
        trace = error.__traceback__
        for _ in range(MOST_WALKED):
            if trace is None or trace.tb_next is None:
                break
            trace = trace.tb_next
        file, line = "", 0
        if trace is not None:
            file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno or 0
        return cls(id(error), type_name(error), file, line)


class Raised(NamedTuple):
    """What is kept of an exception.

    Attributes:
        key: The fingerprint of its kind.
        text: Its type, its traceback, and its message where that is kept.
        identity: What it is known by; None: there was no exception.
    """

    key: int
    text: ErrorText
    identity: Identity | None = None

    @classmethod
    def of(cls, error: BaseException, *, with_message: bool = False) -> Raised:
        """Return what is kept of an exception.

        Args:
            error: The exception.
            with_message: Keep its message, too.
        """
        name, told = _told(error)
        walked = _walk(told)
        last = [(place.module, place.function) for place in walked.frames[-3:]]
        places = "\n".join(f"{module}\0{function}" for module, function in walked.own or last)
        text = ErrorText(
            shortened(name, MOST_TYPE),
            _message(error) if with_message else None,
            walked.frames,
            walked.cut,
            OUTERMOST if walked.cut else 0,
        )
        key = max(user_key(f"{name}\n{places}"), OTHER_KEY + 1)
        return cls(key, text, Identity.of(error))

    def led_to(self, error: BaseException | None) -> bool:
        """Return whether an exception is this one, or was raised as this one was handled."""
        known = self.identity
        for _ in range(MOST_CAUSES):
            if error is None or known is None:
                return False
            if id(error) == known.number and Identity.of(error) == known:
                return True
            error = _handled(error)
        return False

    def in_status(self, code: int) -> int:
        """Return the status of the answer; of the server's own failures one that has this, too."""
        if code < 500:
            return code
        status = Known(code)
        status.raised = self
        return status


class Walked(NamedTuple):
    """What a traceback has, or several one behind the other.

    Attributes:
        frames: The frames that are kept, without our own.
        cut: How many are left out behind the outermost ones.
        own: Module and name of the app's functions, each once, the outermost first.
    """

    frames: tuple[Frame, ...]
    cut: int
    own: tuple[tuple[str, str], ...]


Seen = tuple["CodeType", int, str, bool]  # of a frame: code, line, module, whether it is the app's


def _told(error: BaseException) -> tuple[str, list[BaseException]]:
    """Return the name of an exception, and those whose frames tell of it: one behind the other.

    The app's own exception, which a framework has caught and made this one of, tells more of it; so
    does the first one in a group.
    """
    name, found = type_name(error), [error]
    for _ in range(MOST_CAUSES):
        if (first := _first_in(error)) is not None:
            error, form = first, "{}[{}]"
        elif (cause := _wrapped(error)) is not None:
            error, form = cause, "{} from {}"
        else:
            break
        if any(error is one for one in found):  # a circle
            break
        found.append(error)
        name = form.format(name, type_name(error))
    return name, found


def _first_in(error: BaseException) -> BaseException | None:
    """Return the first exception in a group: of Python's since 3.11, or of its backport."""
    for place in (builtins, sys.modules.get("exceptiongroup")):
        kind = getattr(place, "BaseExceptionGroup", None)
        if kind is not None and isinstance(error, kind):
            first: BaseException = error.exceptions[0]
            return first
    return None


def _with_firsts(error: BaseException) -> list[BaseException]:
    """Return an exception, the first one in it where it is a group, and so on."""
    found = [error]
    while len(found) <= MOST_CAUSES and (first := _first_in(found[-1])) is not None:
        found.append(first)
    return found


def _wrapped(error: BaseException) -> BaseException | None:
    """Return the app's exception that a framework has caught, and raised this one instead."""
    cause = _handled(error)
    for _ in range(MOST_CAUSES):
        if cause is None or cause.__traceback__ is None:
            return None
        catcher = cause.__traceback__.tb_frame  # the first frame is the one that has caught it
        if _is_own(catcher) or _is_own_after(error, catcher):
            return None
        if _walk(_with_firsts(cause)).own:
            return cause
        cause = _handled(cause)
    return None


def _is_own_after(error: BaseException, frame: FrameType) -> bool:
    """Return whether an exception went through the app's functions further in than this frame."""
    found = False
    for trace in islice(_frames([error]), MOST_WALKED):
        found = trace.tb_frame is not frame and (found or _is_own(trace.tb_frame))
    return found


def _is_own(frame: FrameType) -> bool:
    return is_own_file(frame.f_code.co_filename) and not _module_of(frame).startswith(OURS)


def _module_of(frame: FrameType) -> str:
    module = frame.f_globals.get("__name__")
    return module if isinstance(module, str) else ""


def _handled(error: BaseException) -> BaseException | None:
    """Return the exception in whose handling one was raised."""
    cause = error.__cause__  # which may be false, or refuse to say
    return error.__context__ if cause is None else cause


def _frames(errors: list[BaseException]) -> Iterator[TracebackType]:
    for error in errors:
        trace = error.__traceback__
        while trace is not None:
            yield trace
            trace = trace.tb_next


def _walk(errors: list[BaseException]) -> Walked:
    first: list[Seen] = []
    last: deque[Seen] = deque(maxlen=INNERMOST)
    own: dict[tuple[str, str], None] = {}
    count = 0
    for trace in islice(_frames(errors), MOST_WALKED):
        frame = trace.tb_frame
        code, module = frame.f_code, _module_of(frame)
        if not module.startswith(OURS):
            is_own = is_own_file(code.co_filename)
            seen = code, trace.tb_lineno or 0, module, is_own
            count += 1
            if len(first) < OUTERMOST:
                first.append(seen)
            else:
                last.append(seen)
            if is_own and len(own) < MOST_OWN:
                own[module, _name_of(code)] = None
    kept = tuple(
        Frame(
            _tail(code.co_filename, MOST_FILE),
            line,
            shortened(module, MOST_NAME),
            shortened(_name_of(code), MOST_NAME),
            is_own,
        )
        for code, line, module, is_own in (*first, *last)
    )
    return Walked(kept, count - len(kept), tuple(own))


def _name_of(code: CodeType) -> str:
    name: str = getattr(code, "co_qualname", code.co_name)  # since 3.11
    return name


def is_own_file(file: str) -> bool:
    """Return whether a file is the app's own: of no package, and not the standard library's."""
    known = _own_files.get(file)
    if known is None:
        if len(_own_files) >= MOST_FILES:
            _own_files.clear()
        path = file.replace("\\", "/")
        known = _own_files[file] = not (
            path.startswith(("<frozen ", *STANDARD))
            or any(part in path for part in PACKAGES)
            or _is_script_of_package(file)
        )
    return known


def _is_script_of_package(file: str) -> bool:
    folder, name = os.path.split(file)
    return folder == SCRIPTS and os.path.exists(os.path.join(PURELIB, name))


def type_name(error: BaseException) -> str:
    """Return the full name of an exception's class."""
    name, module = type(error).__qualname__, type(error).__module__
    return name if module == "builtins" else f"{module}.{name}"


def _message(error: BaseException) -> str | None:
    """Return an exception's message; None where the app's own code for it fails."""
    try:
        return shortened(str(error), MOST_MESSAGE)
    except Exception:
        return None


def shortened(text: str, most: int) -> str:
    """Return a text of at most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _tail(text: str, most: int) -> str:
    return text if len(text) <= most else "…" + text[1 - most :]


class Known(int):
    """The status of an answer to an exception that is known: equal to the plain number."""

    raised: Raised


# The frame in which a request enters the app: an exception that is handled further out is of no
# request. Module and name of it.
ENTRY_MODULE, ENTRY_NAME = "metricsmw.adapters.", "__call__"
MOST_CALLS = 400


def being_answered() -> BaseException | None:
    """Return the exception that the app is answering; None: it is answering none.

    Frameworks on ASGI send the answer from within the ``except`` block that has the exception.
    """
    error = sys.exc_info()[1]
    if error is None or error.__traceback__ is None:
        return None
    handler = error.__traceback__.tb_frame  # the first frame of a traceback is that of the block
    frame = sys._getframe(1).f_back
    is_inside = False
    for _ in range(MOST_CALLS):
        if frame is None:
            return None
        is_inside = is_inside or frame is handler
        if frame.f_code.co_name == ENTRY_NAME:
            module = frame.f_globals.get("__name__")
            if isinstance(module, str) and module.startswith(ENTRY_MODULE):
                return error if is_inside else None
        frame = frame.f_back
    return None
