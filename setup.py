"""The build's three steps of its own: the charts, links for type checkers, the long description.

All else is in pyproject.toml. A build brings the charts into the package where npm can; without
npm, or without a registry, it goes on and says so; the page then shows numbers and tables. Files
that are not those of `FILES`, hash by hash, are in no build: it ends with an error. An sdist has
the charts in it, so a wheel is built from it without npm.

An editable install finds `metricsmw.adapters`, whose folder lies beside `metricsmw`, by an import
hook, which type checkers cannot follow. So a tree of links, the package as it is when installed, is
put on the path as well: mypy and pyright see it. The links are to folders, so that a new file is
seen at once; one directly in `metricsmw` is found by the hook, and seen after the next install.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
LINKS = ROOT / "build" / "editable"
VENDOR = ROOT / "adapters" / "dashboard" / "vendor"
# The files of the package uplot: name here, path there, SHA-256. They are those of the version in
# package-lock.json, and change with it.
FILES = {
    "uPlot.iife.min.js": (
        "dist/uPlot.iife.min.js",
        "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    ),
    "uPlot.min.css": (
        "dist/uPlot.min.css",
        "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    ),
    "uPlot.LICENSE": (
        "LICENSE",
        "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
    ),
}
SECONDS = 180


class BuildWithCharts(build_py):
    """`build_py`, after the charts were brought in."""

    def run(self) -> None:
        prepare_charts()
        super().run()


class SdistWithCharts(sdist):
    """`sdist`, after the charts were brought in."""

    def run(self) -> None:
        prepare_charts()
        super().run()


def prepare_charts() -> None:
    """Bring the charts in, or say that there are none; end where there are others."""
    try:
        bring_charts()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print(f"metricsmw: built without charts: {error}", file=sys.stderr)
    strange = [path.name for path in VENDOR.glob("*") if not is_as_known(path, path.name)]
    if strange:
        raise SystemExit(f"metricsmw: not the files that {VENDOR} has to have: {strange}")


def is_as_known(path: Path, name: str) -> bool:
    """Return whether a file is the one of FILES with that name."""
    known = name in FILES and path.is_file()
    return known and hashlib.sha256(path.read_bytes()).hexdigest() == FILES[name][1]


def bring_charts() -> None:
    """Fill VENDOR as package-lock.json says, unless it is so already. Raises where it cannot."""
    if all(is_as_known(VENDOR / name, name) for name in FILES):
        return
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(ROOT / name, folder)
        options = ["--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        done = subprocess.run(
            [npm, "ci", *options], cwd=folder, timeout=SECONDS, capture_output=True, text=True
        )
        if done.returncode:
            raise OSError(f"npm ci ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        package = Path(folder, "node_modules", "uplot")
        for name, (source, _) in FILES.items():
            if not is_as_known(package / source, name):
                raise SystemExit(f"metricsmw: npm has brought another {name} than is known")
        VENDOR.mkdir(exist_ok=True)
        for name, (source, _) in FILES.items():
            shutil.copy(package / source, VENDOR / name)


class EditableWithLinks(editable_wheel):
    """`editable_wheel`, whose wheel also puts the tree of links on the path."""

    def _select_strategy(self, *args: Any) -> Any:
        strategy = super()._select_strategy(*args)
        try:
            make_links()
        except OSError as error:  # as on Windows, without the right to make links
            print(f"metricsmw: type checkers will not see it: {error}", file=sys.stderr)
            return strategy
        return Linking(strategy)


class Linking:
    """A strategy of an editable install, and the path of the links after it."""

    def __init__(self, strategy: Any) -> None:
        self.strategy = strategy

    def __enter__(self) -> Linking:
        self.strategy.__enter__()
        return self

    def __exit__(self, *args: Any) -> Any:
        return self.strategy.__exit__(*args)

    def __call__(self, wheel: Any, files: list[str], mapping: dict[str, str]) -> None:
        self.strategy(wheel, files, mapping)
        wheel.writestr("metricsmw_links.pth", f"{LINKS}\n")


def make_links() -> None:
    """Fill LINKS with the package as it is when installed, by links into the two source folders."""
    shutil.rmtree(LINKS, ignore_errors=True)
    package = LINKS / "metricsmw"
    package.mkdir(parents=True)
    (package / "adapters").symlink_to(ROOT / "adapters", target_is_directory=True)
    for entry in (ROOT / "metricsmw").iterdir():
        if entry.name != "__pycache__":
            (package / entry.name).symlink_to(entry, target_is_directory=entry.is_dir())


def long_description() -> str:
    """Return README.md for readers elsewhere: its links and pictures lead to the repository."""
    project = (ROOT / "pyproject.toml").read_text()
    source = re.search(r'^Source = "(.+)"$', project, re.MULTILINE)
    version = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    assert source
    assert version
    base = f"{source[1]}/%s/v{version[1]}/"
    text = (ROOT / "README.md").read_text()
    text = re.sub(r"(!\[[^]]*\]\()(?!\w+:)", rf"\g<1>{base % 'raw'}", text)
    return re.sub(r"((?<!!)\[[^]]*\]\()(?!\w+:|#)", rf"\g<1>{base % 'tree'}", text)


setup(
    cmdclass={
        "build_py": BuildWithCharts,
        "editable_wheel": EditableWithLinks,
        "sdist": SdistWithCharts,
    },
    long_description=long_description(),
    long_description_content_type="text/markdown",
)
