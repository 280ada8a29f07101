"""The public API as a user's mypy and pyright see it, from the package as it is installed.

The programs in tests/typing are checked in a fresh virtual environment that holds the package as
`pip install -e .` puts it there, or as a wheel does, and may import what this one has.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from kits.servers import missing

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = sorted((ROOT / "tests" / "typing").glob("*.py"))
BUILD = """
import sys
from setuptools import build_meta
getattr(build_meta, sys.argv[1])(sys.argv[2])
"""
PYRIGHT = """
{"typeCheckingMode": "strict", "enableTypeIgnoreComments": false,
 "reportUnnecessaryTypeIgnoreComment": true, "reportUnusedExpression": false,
 "reportMissingTypeStubs": false, "reportUnknownMemberType": false}
"""


@pytest.fixture(scope="module", params=["build_editable", "build_wheel"])
def user(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a user's own: the programs, and `venv` with the package."""
    folder = tmp_path_factory.mktemp("user")
    tree = folder / "tree"
    ignored = shutil.ignore_patterns("vendor", "build", "*.egg-info", "__pycache__", "node_modules")
    for name in ("metricsmw", "adapters"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    run(sys.executable, "-c", BUILD, request.param, str(folder), cwd=tree)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv")
    paths = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    packages = Path(sysconfig.get_path("purelib", "venv" if os.name == "posix" else "nt", paths))
    zipfile.ZipFile(wheel).extractall(packages)
    # Found after the package: what it needs, and the frameworks.
    (packages / "the_frameworks.pth").write_text(sysconfig.get_path("purelib"))
    (folder / "pyrightconfig.json").write_text(PYRIGHT)
    for program in PROGRAMS:
        shutil.copy(program, folder)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where mypy keeps what it knows of the frameworks, which are the same for both users."""
    return tmp_path_factory.mktemp("mypy")


def run(*command: str, cwd: Path) -> str:
    """Run a command that must succeed; what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_mypy_knows_the_public_api(user: Path, cache: Path) -> None:
    pytest.importorskip("mypy")
    run(
        *(sys.executable, "-m", "mypy", "--strict", "--python-executable", "venv/bin/python"),
        *("--cache-dir", str(cache), *(program.name for program in PROGRAMS)),
        cwd=user,
    )


def test_pyright_knows_the_public_api(user: Path) -> None:
    pytest.importorskip("pyright")
    if shutil.which("node") is None:
        missing("node is not installed")
    run(
        *(sys.executable, "-m", "pyright", "--pythonpath", "venv/bin/python"),
        *(program.name for program in PROGRAMS),
        cwd=user,
    )
