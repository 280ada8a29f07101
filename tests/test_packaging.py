"""The package as it is built holds what is in the tree, and each file says what it is for."""

from __future__ import annotations

import ast
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {"metricsmw": ROOT / "metricsmw", "metricsmw.adapters": ROOT / "adapters"}
MODULES = sorted(
    path
    for folder in ("metricsmw", "adapters", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
)


def setuptools_table() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as stream:
        table: dict[str, Any] = tomllib.load(stream)["tool"]["setuptools"]
    return table


def folders() -> dict[str, Path]:
    """Package name -> folder, for each folder below the sources that holds a module."""
    found = {}
    for root, top in SOURCES.items():
        for folder in sorted({path.parent for path in top.rglob("*.py")}):
            found[".".join([root, *folder.relative_to(top).parts])] = folder
    return found


def test_every_package_of_the_tree_is_listed() -> None:
    assert sorted(setuptools_table()["packages"]) == sorted(folders())
    for name, folder in folders().items():
        assert (folder / "__init__.py").is_file(), f"{name} has no __init__.py"


def test_the_listed_folders_are_those_of_the_tree() -> None:
    listed = setuptools_table()["package-dir"]
    for name, folder in folders().items():
        assert listed.get(name, name.replace(".", "/")) == str(folder.relative_to(ROOT))


def test_every_other_file_is_package_data() -> None:
    patterns = setuptools_table().get("package-data", {})
    packages = sorted(folders().items(), key=lambda package: len(str(package[1])))
    for top in SOURCES.values():
        for path in top.rglob("*"):
            if path.is_dir() or path.suffix in (".py", ".pyc"):
                continue
            name, folder = [p for p in packages if path.is_relative_to(p[1])][-1]
            inside = str(path.relative_to(folder))
            assert any(fnmatch(inside, pattern) for pattern in patterns.get(name, [])), path


def test_there_are_modules_to_look_at() -> None:
    assert len(MODULES) > 20


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_opens_with_its_purpose(path: Path) -> None:
    source = path.read_text()
    assert source.startswith(('"""', 'r"""'))
    assert ast.get_docstring(ast.parse(source))
