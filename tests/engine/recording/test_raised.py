"""What is kept of an exception: which kind it is, and no more of it than its traceback's places."""

from __future__ import annotations

import builtins
import json
import os
import sys
import sysconfig
import weakref
from collections.abc import Callable
from typing import Any

import _hypothesis_pytestplugin
import pytest

from metricsmw.engine.recording.raised import INNERMOST, OUTERMOST, Raised, is_own_file
from metricsmw.engine.storage.errors import TEXT_BYTES, ErrorText


def caught(function: Callable[..., object], *args: object) -> BaseException:
    try:
        function(*args)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def of(function: Callable[..., object], *args: object) -> Raised:
    return Raised.of(caught(function, *args))


def fail(kind: type[Exception] = KeyError) -> None:
    if kind is ValueError:
        raise ValueError  # on another line
    raise kind


def deep(depth: int) -> None:
    if depth:
        return deep(depth - 1)
    return fail()


def ping(depth: int) -> None:
    return pong(depth - 1) if depth else fail()


def pong(depth: int) -> None:
    return ping(depth - 1) if depth else fail()


def compiled(lines: int, name: str = "shop.views") -> Callable[[], object]:
    """A function of the app that fails, so many lines further down."""
    space: dict[str, object] = {"__name__": name}
    code = "\n" * lines + "def view():\n    raise KeyError('x')\n"
    exec(compile(code, "/srv/shop/views.py", "exec"), space)
    return space["view"]  # type: ignore[return-value]


def test_a_kind_is_a_type_and_the_apps_functions_and_no_line() -> None:
    assert of(compiled(0)).key == of(compiled(7)).key
    assert of(compiled(0)).key != of(compiled(0, "shop.other")).key
    assert of(fail).key != of(fail, TypeError).key
    assert of(fail, TypeError).key == of(fail, TypeError).key
    text = of(compiled(7)).text
    assert (text.type, text.message) == ("KeyError", None)
    frame = text.frames[-1]
    assert frame == ("/srv/shop/views.py", 9, "shop.views", "view", True)


def test_a_recursion_is_of_one_kind_at_any_depth() -> None:
    assert of(deep, 3).key == of(deep, 300).key != of(fail).key
    assert of(ping, 3).key == of(ping, 301).key
    text = of(deep, 300).text
    assert (len(text.frames), text.cut_at) == (OUTERMOST + INNERMOST, OUTERMOST)
    assert len(text.frames) + text.cut == 303  # with `caught` and `fail`
    assert [frame.function for frame in text.frames[-2:]] == ["deep", "fail"]


def test_functions_of_packages_tell_kinds_apart_where_there_are_no_others() -> None:
    """The last ones; and where there are others, they do not count."""
    pattern = "(" * 5
    inside = Raised.of(caught(json.loads, pattern).with_traceback(None))
    assert inside.text.frames == ()
    error = caught(json.loads, "{")
    trace = error.__traceback__
    assert trace is not None
    foreign = Raised.of(error.with_traceback(trace.tb_next))
    assert foreign.text.frames
    assert not any(frame.is_own for frame in foreign.text.frames)
    assert foreign.key != Raised.of(error.with_traceback(trace)).key


def package(name: str, code: str) -> dict[str, object]:
    """What a module of a package defines."""
    space: dict[str, object] = {"__name__": name}
    exec(compile(code, f"/usr/lib/python3/site-packages/{name}/app.py", "exec"), space)
    return space


WRAPPING = """
class StreamError(Exception): pass
def fail():
    raise StreamError
def run(function, kind=StreamError):
    try:
        function()
    except Exception as error:
        raise kind("it broke") from error
def gather(function):
    def gathered():
        try:
            function()
        except Exception as error:
            raise ExceptionGroup("tasks", [error]) from None
    return gathered
def handle(function, handler):
    try:
        function()
    except Exception:
        handler()
def end(function):
    try:
        function()
    except Exception as error:
        try:
            raise error
        except Exception:
            raise StreamError
"""


def test_where_a_framework_has_raised_it_the_apps_own_is_told() -> None:
    framework: Any = package("framework", WRAPPING)
    for run in (framework["run"], framework["end"]):
        found = of(run, fail)
        assert found.text.type == "framework.StreamError from KeyError"
        assert found.text.frames[-1].function == "fail"
        assert found.key == of(run, fail).key
        assert found.key != of(run, compiled(0)).key
    error = caught(framework["run"], fail)
    assert Raised.of(error).led_to(error)
    error.__cause__.__context__ = error
    assert Raised.of(error).text.type == "framework.StreamError from KeyError"
    # Nor where the app's own handler of it fails, by itself or in a package.
    for handler in (compiled(0), lambda: framework["fail"]()):
        kind = of(framework["handle"], fail, handler).text.type
        assert kind in ("KeyError", "framework.StreamError")
    # What the app itself has caught is its own affair.
    for function in (compiled_from, lambda: compiled_from(framework["fail"])):
        assert "from" not in of(function).text.type

    class FalseError(Exception):
        def __bool__(self) -> bool:
            raise TypeError

    def false() -> None:
        raise FalseError

    assert of(framework["run"], false).text.frames[-1].function.endswith("false")


def compiled_from(function: Callable[[], object] | None = None) -> None:
    try:
        fail()
    except KeyError as error:
        if function is not None:
            function()
        raise RuntimeError from error


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no groups")
def test_a_group_is_told_by_the_first_in_it() -> None:
    def group(*kinds: type[Exception]) -> None:
        raise builtins.ExceptionGroup("two", [caught(fail, kind) for kind in kinds])  # type: ignore[attr-defined]

    found = of(group, KeyError, TypeError)
    assert found.text.type == "ExceptionGroup[KeyError]"
    functions = [frame.function.rpartition(".")[2] for frame in found.text.frames]
    assert functions[-2:] == ["caught", "fail"]
    assert "group" in functions
    framework: Any = package("framework", WRAPPING)
    wrapped = of(framework["end"], framework["gather"](fail)).text
    assert wrapped.type == "framework.StreamError from ExceptionGroup[KeyError]"
    assert wrapped.frames[-1].function == "fail"
    assert found.key == of(group, KeyError, ValueError).key
    assert found.key != of(group, TypeError, KeyError).key


@pytest.mark.parametrize(
    ("file", "own"),
    [
        ("/srv/shop/views.py", True),
        ("C:\\shop\\views.py", True),
        ("<string>", True),
        (json.__file__, False),
        ("<frozen importlib._bootstrap>", False),
        ("/venv/lib/python3.11/site-packages/flask/app.py", False),
        ("C:\\Python\\Lib\\site-packages\\flask\\app.py", False),
        ("/usr/lib/python3/dist-packages/flask/app.py", False),
        # A package's module that is installed as a script, too, as bottle.py is.
        (
            os.path.join(sysconfig.get_path("scripts"), _hypothesis_pytestplugin.__name__ + ".py"),
            False,
        ),
        (os.path.join(sysconfig.get_path("scripts"), "site.py"), True),
    ],
)
def test_whose_a_file_is(file: str, own: bool) -> None:
    assert is_own_file(file) is own


def test_nothing_is_held_of_the_exception() -> None:
    class Local:
        pass

    def view() -> None:
        local = Local()
        seen.append(weakref.ref(local))
        raise KeyError(local)

    seen: list[weakref.ref[Local]] = []
    error = caught(view)
    trace, context = error.__traceback__, error.__context__
    references = sys.getrefcount(error)
    kept = Raised.of(error)
    assert (error.__traceback__, error.__context__) == (trace, context)
    assert sys.getrefcount(error) == references
    del error, trace
    assert seen[0]() is None
    assert kept.text.frames


def test_the_message_is_kept_where_it_is_wanted_and_bounded() -> None:
    error = KeyError("x" * 10_000)
    assert Raised.of(error).text.message is None
    message = Raised.of(error, with_message=True).text.message
    assert message == "'" + "x" * 298 + "…"


def test_a_message_that_cannot_be_told_is_none_and_the_rest_is_kept() -> None:
    class SilentError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    kept = Raised.of(caught(fail, SilentError), with_message=True).text
    assert kept.message is None
    assert kept.type.endswith("SilentError")
    assert kept.frames[-1].function == "fail"


def test_a_later_exception_in_the_place_of_one_that_is_gone_is_another_one() -> None:
    """CPython gives its memory, and so its `id`, to the next exception of the same size."""
    for kind in (TypeError, ValueError):  # of another class, and raised on another line
        earlier = of(fail, TypeError)
        assert not earlier.led_to(caught(fail, kind) if kind is ValueError else caught(compiled(0)))
        error = caught(fail, kind)
        known = Raised.of(error)
        assert known.led_to(error)
        assert known.led_to(caught(again, error))
        assert known.led_to(caught(instead, error))


def again(error: Exception) -> None:
    raise error


def instead(error: Exception) -> None:
    try:
        raise error
    except Exception:
        raise KeyError from None


@pytest.mark.parametrize("text", ["<b>x</b>", "\x1b[31m", "\ud800", "\u202e", "é" * 10_000, "\0"])
def test_hostile_names_fit(text: str) -> None:
    kind = type("Hostile", (Exception,), {"__module__": text})
    kept = Raised.of(caught(fail, kind), with_message=True).text
    packed = kept.pack()
    assert len(packed) <= TEXT_BYTES
    read = ErrorText.unpack(packed.ljust(TEXT_BYTES, b"\0"))
    read.type.encode()
    assert read.type[:3] == kept.type.encode("utf-8", "backslashreplace").decode()[:3]
    assert read.frames
    assert read.frames[-1].function == "fail"


def test_frames_are_cut_from_the_middle() -> None:
    whole = of(deep, 20).text
    stored = ErrorText.unpack(whole.pack().ljust(TEXT_BYTES, b"\0"))
    assert stored.cut > 0
    at = stored.cut_at
    assert 0 < at < len(stored.frames)
    assert stored.frames == (*whole.frames[:at], *whole.frames[at - len(stored.frames) :])
    assert stored.cut == whole.cut + len(whole.frames) - len(stored.frames)
