"""The hot path takes no lock, and may not: `lane[i] += x` must hold no switch point.

CPython hands the interpreter over only at calls, at jumps and at a function's start. So an
augmented assignment to a subscript is atomic on a build with a GIL as long as there is nothing
but constants, locals and arithmetic between its load and its store.
"""

from __future__ import annotations

import ast
import dis
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

from metricsmw.adapters.asgi import ASGIMetricsMiddleware
from metricsmw.adapters.asgi_exchange import ASGIMeasurement
from metricsmw.adapters.wsgi import WSGIMetricsMiddleware
from metricsmw.engine.recording.instruments import Instruments
from metricsmw.engine.recording.recorder import Recorder

# By their classes, so that a module that has moved is found, and one that is gone fails.
RECORDER = Path(inspect.getfile(Recorder))
HOT_FILES = [
    RECORDER,
    *(
        Path(inspect.getfile(cls))
        for cls in (
            Instruments,
            WSGIMetricsMiddleware,
            ASGIMetricsMiddleware,
            ASGIMeasurement,
        )
    ),
]

# Before 3.11, from 3.11 on, and where two loads of locals are one (3.13) or borrow (3.14).
HARMLESS = {
    "BINARY_OP",
    "CACHE",
    "COPY",
    "EXTENDED_ARG",
    "INPLACE_ADD",
    "INPLACE_SUBTRACT",
    "LOAD_CONST",
    "LOAD_DEREF",
    "LOAD_FAST",
    "LOAD_FAST_BORROW",
    "LOAD_FAST_BORROW_LOAD_FAST_BORROW",
    "LOAD_FAST_LOAD_FAST",
    "LOAD_SMALL_INT",
    "ROT_THREE",
    "ROT_TWO",
    "SWAP",
}


def code_objects(code: CodeType) -> Iterator[CodeType]:
    """The code object and all that are nested in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from code_objects(constant)


def augmented_stores(code: CodeType) -> Iterator[list[dis.Instruction]]:
    """For each augmented assignment to a subscript, what lies between its load and its store.

    The compiler opens one, and nothing else, by doubling the container and the key.
    """
    instructions = list(dis.get_instructions(code))
    for index, instruction in enumerate(instructions):
        doubled = instruction.opname == "DUP_TOP_TWO" or (
            index > 0
            and [(i.opname, i.arg) for i in instructions[index - 1 : index + 1]]
            == [("COPY", 2)] * 2
        )
        if doubled:
            rest = instructions[index + 1 :]
            names = [i.opname for i in rest]
            store = names.index("STORE_SUBSCR")
            assert names[0] in ("BINARY_SUBSCR", "BINARY_OP")
            yield rest[1:store]


def switch_points(source: str) -> tuple[int, list[str]]:
    """How many augmented assignments to subscripts there are, and what in them may switch."""
    count, found = 0, []
    for code in code_objects(compile(source, "<hot>", "exec")):
        for between in augmented_stores(code):
            count += 1
            found += [
                f"{instruction.opname} in {code.co_name}"
                for instruction in between
                # From 3.14 on a subscript is a BINARY_OP, too.
                if instruction.opname not in HARMLESS or instruction.argrepr == "[]"
            ]
    return count, found


def written(source: str) -> int:
    """The augmented assignments to subscripts as the source has them."""
    return sum(
        isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Subscript)
        for node in ast.walk(ast.parse(source))
    )


@pytest.mark.parametrize("file", HOT_FILES, ids=lambda file: file.name)
def test_stores_of_the_hot_path_hold_no_switch_point(file: Path) -> None:
    source = file.read_text()
    count, found = switch_points(source)
    assert found == []
    assert count >= written(source)  # the compiler writes a `finally` twice


def test_the_recorder_has_such_stores() -> None:
    assert written(RECORDER.read_text()) > 0


@pytest.mark.parametrize(
    ("statement", "is_atomic"),
    [
        ("h[i] += 1.0", True),
        ("h[i] -= 1.0", True),
        ("h[ceil(x)] += 1.0", True),  # the call comes before the load
        ("h[i] += x", True),
        ("h[i] += f()", False),
        ("h[i] += 1.0 if x else 2.0", False),
        ("h[i] += x.y", False),
        ("h[i] += x[0]", False),
    ],
)
def test_the_check_tells_them_apart(statement: str, is_atomic: bool) -> None:
    count, found = switch_points(f"def hot(h, i, x, f, ceil):\n    {statement}\n")
    assert count == 1
    assert (found == []) is is_atomic
