"""Tests ask what is promised: they take no private name of the package, and patch none.

Private is what begins with an underscore. Code in strings, which another process runs, is held to
the same.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
PRIVATE = re.compile(r"_[a-z]\w*")
# Public by the described system, whose own code uses them; and a method of every NamedTuple.
PROMISED = {"_total_requests", "_total_errors", "_replace"}

# The list only shrinks. The monitor of a process is made once: only a test begins anew. And the
# turn of a job is asked for by hand in a process of its own.
TAKEN = """
tests/conftest.py _singleton
tests/monitor/test_fork.py _singleton_lock
tests/surroundings/test_notes.py _interval
tests/surroundings/test_notes.py _job
tests/surroundings/test_notes.py _task
"""


def bound(tree: ast.AST) -> set[str]:
    """Return the private names that a file binds: functions, classes, variables, attributes."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return {name for name in names if PRIVATE.fullmatch(name)}


def own_names() -> set[str]:
    """Return the private names of the package."""
    paths = [path for folder in ("metricsmw", "adapters") for path in (ROOT / folder).rglob("*.py")]
    return set().union(*(bound(ast.parse(path.read_text())) for path in paths)) - PROMISED


def taken(tree: ast.AST) -> Iterator[str]:
    """Yield the private names of others that a file of tests takes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"(?<=[\w\])]\.)_[a-z]\w*", node.value)  # run by another process
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            name = getattr(node.func, "attr", "") or getattr(node.func, "id", "")
            second = node.args[1]
            if name in ("setattr", "getattr", "delattr") and isinstance(second, ast.Constant):
                yield str(second.value)


def paths_patched(tree: ast.AST) -> Iterator[str]:
    """Yield what is patched by the path of a module of ours, as a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", "")
            first = node.args[0]
            path = str(first.value) if isinstance(first, ast.Constant) else ""
            if name in ("setattr", "delattr", "patch") and path.startswith("metricsmw"):
                yield path


def test_tests_take_no_private_name() -> None:
    private = own_names()
    assert len(private) > 200
    found: set[str] = set()
    for path in TESTS.rglob("*.py"):
        tree = ast.parse(path.read_text())
        names = set(taken(tree)) & private - bound(tree)
        found |= {f"{path.relative_to(ROOT).as_posix()} {name}" for name in names}
    listed = TAKEN.split("\n")[1:-1]
    new, gone = sorted(found - set(listed)), sorted(set(listed) - found)
    assert not new, f"private names of the package: ask for what is promised instead: {new}"
    assert not gone, f"no longer taken: take these out of TAKEN: {gone}"
    assert listed == sorted(listed)


def test_tests_patch_nothing_by_a_path_in_a_string() -> None:
    texts = {path.name: path.read_text() for path in TESTS.rglob("*.py")}
    found = {
        name: list(paths_patched(ast.parse(text)))
        for name, text in texts.items()
        if re.search(r"""(setattr|delattr|patch)\(\s*["']metricsmw""", text)
    }
    assert not any(found.values()), {name: paths for name, paths in found.items() if paths}
