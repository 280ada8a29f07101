"""The package as it is built holds what is in the tree, and each file says what it is for."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from fnmatch import fnmatch
from hashlib import sha256
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest
from kits.servers import missing
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {"metricsmw": ROOT / "metricsmw", "metricsmw.adapters": ROOT / "adapters"}
VENDOR = ROOT / "adapters" / "dashboard" / "vendor"
# The folders of the repository.
PARTS = {".ci", ".github", "adapters", "benchmarks", "docs", "metricsmw", "tests"}
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


def test_a_module_opens_with_its_purpose() -> None:
    opening = re.compile(r'r?"""\s*\S')
    assert [path for path in MODULES if not opening.match(path.read_text())] == []


def run_setup(
    tree: Path, command: str, *arguments: str, path: str = "/nonexistent"
) -> subprocess.CompletedProcess[str]:
    """Run a command of a tree's setup.py with that PATH; by default there is no npm on it."""
    return subprocess.run(
        [sys.executable, "setup.py", "-q", command, *arguments],
        cwd=tree,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=110,
    )


def copy_tree(folder: Path) -> Path:
    """Copy what a build needs, without charts; return the folder."""
    tree = folder / "tree"
    ignored = shutil.ignore_patterns("vendor", "build", "*.egg-info", "__pycache__", "node_modules")
    tree.mkdir()
    for name in ("metricsmw", "adapters"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "package.json",
                 "package-lock.json"):  # fmt: skip
        shutil.copy(ROOT / name, tree)
    return tree


def build(folder: Path, path: str) -> tuple[set[str], str]:
    """Build a copy of the tree with that PATH; the page's files in it, and what was said."""
    tree = copy_tree(folder)
    done = run_setup(tree, "build_py", "--build-lib", str(folder / "built"), path=path)
    assert done.returncode == 0, done.stderr
    page = folder / "built" / "metricsmw" / "adapters" / "dashboard"
    return {str(path.relative_to(page)) for path in page.rglob("*.*")}, done.stderr


def test_a_build_brings_the_charts(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77")
    if shutil.which("npm") is None:
        missing("npm is not installed")
    files, said = build(tmp_path, os.environ["PATH"])
    assert {"index.html", "vendor/uPlot.iife.min.js", "vendor/uPlot.LICENSE"} <= files
    assert "without charts" not in said


def test_a_build_without_npm_goes_on_and_says_so(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77")
    files, said = build(tmp_path, str(tmp_path))
    assert "index.html" in files
    assert not any("uPlot" in name for name in files)
    assert "built without charts: npm is not installed" in said


# Releases with published faults, by the package; see pyproject.toml.
FAULTY = {
    "werkzeug": ("2.3.8", "3.0.6", "3.1.5", "3.1.8"),
    "starlette": ("0.49.1", "0.50.0", "1.0.0", "1.3.0"),
    "orjson": ("3.9.14", "3.11.5"),
    "opentelemetry-exporter-otlp-proto-http": ("1.44.0",),
    "opentelemetry-sdk": ("1.44.0",),
}


@pytest.mark.parametrize("name", FAULTY)
def test_no_release_with_a_published_fault_is_let_in(name: str) -> None:
    with (ROOT / "pyproject.toml").open("rb") as stream:
        extras = tomllib.load(stream)["project"]["optional-dependencies"]
    users = [
        text
        for extra in ("wsgi", "asgi", "alerts", "otlp", "cli", "demo")
        for text in extras[extra]
    ]
    asked = [one for one in map(Requirement, users) if one.name == name]
    assert asked
    for one in asked:
        assert not [release for release in FAULTY[name] if release in one.specifier]


def charts() -> dict[str, str]:
    """Return the charts' files and their SHA-256, as setup.py knows them."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FILES":
            return {name: known for name, (_, known) in ast.literal_eval(node.value).items()}
    raise AssertionError("setup.py has no FILES")


def test_the_charts_are_those_that_are_known() -> None:
    if not (VENDOR / "uPlot.iife.min.js").exists():
        missing("the tree has no charts")
    assert {
        path.name: sha256(path.read_bytes()).hexdigest() for path in VENDOR.iterdir()
    } == charts()
    version = json.loads((ROOT / "package-lock.json").read_text())["packages"]["node_modules/uplot"]
    assert f"(v{version['version']})" in (VENDOR / "uPlot.iife.min.js").read_text()[:200]


@pytest.mark.parametrize("name", ["uPlot.iife.min.js", "other.js"])
def test_a_build_refuses_other_charts(tmp_path: Path, name: str) -> None:
    pytest.importorskip("setuptools", "77")
    tree = copy_tree(tmp_path)
    vendor = tree / VENDOR.relative_to(ROOT)
    vendor.mkdir()
    (vendor / name).write_text("alert(1)")
    done = run_setup(tree, "build_py", "--build-lib", str(tmp_path / "built"))
    assert done.returncode != 0
    assert "not the files that" in done.stderr
    assert name in done.stderr
    assert not list(tmp_path.rglob("built/**/*.js"))


def test_an_sdist_has_all_and_builds_without_npm(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77")
    if not (VENDOR / "uPlot.iife.min.js").exists():
        missing("the tree has no charts")
    tree = tmp_path / "tree"
    ignored = shutil.ignore_patterns(
        "build", "dist", "*.egg-info", "__pycache__", "node_modules", ".*_cache", ".hypothesis"
    )
    tree.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
        elif path.name in PARTS:
            shutil.copytree(path, tree / path.name, ignore=ignored)
    done = run_setup(tree, "sdist", "--dist-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "sdist", filter="data")
    (unpacked,) = (tmp_path / "sdist").iterdir()
    there = {path.relative_to(tree) for path in tree.rglob("*") if path.is_file()}
    packed_files = {path.relative_to(unpacked) for path in unpacked.rglob("*") if path.is_file()}
    gone = {path for path in there - packed_files if path.parts[0] != "metricsmw.egg-info"}
    assert not gone - {Path(".git")}
    done = run_setup(unpacked, "build_py", "--build-lib", str(tmp_path / "built"))
    assert done.returncode == 0, done.stderr
    assert "without charts" not in done.stderr
    built = tmp_path / "built" / "metricsmw" / "adapters" / "dashboard" / "vendor"
    assert {
        path.name: sha256(path.read_bytes()).hexdigest() for path in built.iterdir()
    } == charts()


def test_the_lock_file_names_no_registry() -> None:
    for name in ("package.json", "package-lock.json"):
        assert "://" not in (ROOT / name).read_text()
    lock = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    assert all("integrity" in package for path, package in lock.items() if path)


def test_the_long_description_leads_somewhere_wherever_it_is_read() -> None:
    text = str(metadata("metricsmw")["Description"] or metadata("metricsmw").get_payload())
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) > 20
    assert all(target.startswith(("https://", "#")) for target in targets)
    assert "/raw/v1.0.0/docs/images/dashboard-light.png" in text
    labels = [url.partition(",")[0] for url in metadata("metricsmw").get_all("Project-URL") or ()]
    assert {"Documentation", "Source", "Issues", "Changelog"} <= set(labels)


def test_every_document_is_in_the_sites_contents() -> None:
    contents = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"- {page.name}\n" in contents, page.name
