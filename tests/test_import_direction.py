"""Imports run down only: no module imports a room above its own, and no modules form a circle.

Every import counts, also one inside a function or under TYPE_CHECKING. ORDER is the direction;
EXCEPTIONS are the imports that still run against it, and the list only shrinks.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"metricsmw": ROOT / "metricsmw", "metricsmw.adapters": ROOT / "adapters"}

# From the top down. A name stands for its module or package and all that is in it, but for what
# another line names more closely. Modules of one line may import one another, in no circle.
ORDER = """
cli __main__
adapters
adapters.django adapters.fastapi adapters.flask adapters.prometheus adapters.starlette
adapters.asgi adapters.auth adapters.wsgi
adapters.api
adapters.asgi_exchange adapters.bodies
adapters.measurement adapters.opening adapters.websockets
adapters.resolvers adapters.servers
adapters.carriers
adapters.arguments adapters.dashboard adapters.interpose adapters.kinds adapters.paths
adapters.types adapters.walks
alerts exporters exporting
__init__ monitor
getters
engine.reading engine.recording history
engine.workers
engine.storage
clock config engine.aside engine.builds engine.directory engine.faults engine.files engine.fork
asked extras formats snapshot validation
"""
# Empty __init__ modules of rooms that only hold others.
ROOMS = {"metricsmw.engine"}

EXCEPTIONS = """
"""

# The one module of each extra that the public API takes settings for; it is imported where such a
# setting is given, inside a function. All other extras are imported by the command line only.
EXTRAS = {"metricsmw.alerts.apprise": "apprise", "metricsmw.exporters.otlp": "opentelemetry"}


def full_name(name: str) -> str:
    """Return a name of ORDER as Python imports it."""
    return "metricsmw" if name == "__init__" else f"metricsmw.{name}"


LINES = [[full_name(name) for name in line.split()] for line in ORDER.strip().split("\n")]
RANKS = {name: -index for index, line in enumerate(LINES) for name in line}


def modules() -> dict[str, Path]:
    """Return the file of every module of both trees, by the module's name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


@cache
def parsed(path: Path) -> ast.Module:
    """Return a file's syntax tree."""
    return ast.parse(path.read_text())


def imports(name: str, path: Path, inside: bool = True) -> Iterator[str]:
    """Yield every name that the module imports, in full: a module's or one of a module.

    With ``inside`` also those in functions and under a condition.
    """
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = parsed(path)
    for node in ast.walk(tree) if inside else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


MODULES = modules()


@cache
def all_imports() -> dict[str, set[str]]:
    """Return what each module imports."""
    return {name: set(imports(name, path)) for name, path in MODULES.items()}


def closest(name: str, known: dict[str, int] | dict[str, Path]) -> str:
    """Return the longest of the known names that is the name or a package around it, or ""."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name


def room(module: str) -> str:
    """Return the name of ORDER that a module belongs to; "" where only `metricsmw` itself fits."""
    found = closest(module, RANKS)
    return "" if found == "metricsmw" != module else found


@cache
def all_edges() -> set[tuple[str, str]]:
    """Return each pair of a module and a module of ours that it imports."""
    return {
        (name, target)
        for name, found in all_imports().items()
        for target in {closest(one, MODULES) for one in found} - {"", name}
    }


def against_the_order() -> set[tuple[str, str]]:
    """Return the imports that run up, and those of a circle in one line of ORDER."""
    edges = all_edges()
    up = {edge for edge in edges if RANKS[room(edge[0])] < RANKS[room(edge[1])]}
    rest = edges - up

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            module = waiting.pop()
            new = {target for source, target in rest if source == module} - found
            found |= new
            waiting += new
        return found

    below = {name: reached(name) for name in MODULES}
    return up | {(source, target) for source, target in rest if source in below[target]}


def test_both_trees_are_looked_at() -> None:
    assert {"metricsmw.monitor", "metricsmw.adapters.wsgi"} <= set(MODULES)
    assert ("metricsmw", "metricsmw.monitor") in all_edges()
    assert ("metricsmw.adapters", "metricsmw.adapters.wsgi") in all_edges()
    assert ("metricsmw.adapters.wsgi", "metricsmw") in all_edges()


def test_every_module_has_a_place() -> None:
    lost = sorted(name for name in MODULES if name not in ROOMS and not room(name))
    assert not lost, f"give these rooms a place in ORDER of {Path(__file__).name}: {lost}"
    gone = sorted(set(RANKS) - set(MODULES))
    assert not gone, f"these are gone: take them out of ORDER of {Path(__file__).name}: {gone}"


def test_imports_run_down_only() -> None:
    listed = EXCEPTIONS.split("\n")[1:-1]
    found = {f"{source} -> {target}" for source, target in against_the_order()}
    new, mended = sorted(found - set(listed)), sorted(set(listed) - found)
    assert not new, (
        "these imports run up in ORDER or close a circle. Move what is needed to a lower room, or"
        " pass it as an argument; where a listed module only got another name, rename its entry"
        " in EXCEPTIONS:\n" + "\n".join(new)
    )
    assert not mended, "these are mended: take them out of EXCEPTIONS:\n" + "\n".join(mended)
    assert listed == sorted(listed)


def test_only_the_command_line_and_the_modules_of_extras_import_extras() -> None:
    known = set(sys.stdlib_module_names) | {"metricsmw", "psutil"}
    found = {
        (name, package)
        for name in MODULES
        if not name.startswith(("metricsmw.adapters", *LINES[0]))
        for package in {one.partition(".")[0] for one in all_imports()[name]} - known
    }
    assert found == set(EXTRAS.items())


def test_no_module_of_an_extra_is_imported_before_it_is_needed() -> None:
    for name, path in MODULES.items():
        if not name.startswith(LINES[0][0]):
            at_once = set(imports(name, path, inside=False))
            assert not {closest(one, MODULES) for one in at_once} & set(EXTRAS), name
