"""The build's one step of its own: bringing the page's charts into the package, where npm can.

All else is in pyproject.toml. Without npm, or without a registry, the build goes on and says so;
the page then shows numbers and tables.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
VENDOR = ROOT / "adapters" / "dashboard" / "vendor"
FILES = {
    "dist/uPlot.iife.min.js": "uPlot.iife.min.js",
    "dist/uPlot.min.css": "uPlot.min.css",
    "LICENSE": "uPlot.LICENSE",
}
SECONDS = 180


class BuildWithCharts(build_py):
    """`build_py`, after the charts were brought in."""

    def run(self) -> None:
        try:
            bring_charts()
        except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
            print(f"metricsmw: built without charts: {error}", file=sys.stderr)
        super().run()


def bring_charts() -> None:
    """Fill VENDOR as package-lock.json says, unless it is so already. Raises where it cannot."""
    lock = json.loads((ROOT / "package-lock.json").read_text())
    version = lock["packages"]["node_modules/uplot"]["version"]
    if all((VENDOR / name).is_file() for name in FILES.values()):
        head = (VENDOR / "uPlot.iife.min.js").read_text()[:200]
        if f"(v{version})" in head:
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
        VENDOR.mkdir(exist_ok=True)
        for source, name in FILES.items():
            shutil.copy(Path(folder, "node_modules", "uplot", source), VENDOR / name)


setup(cmdclass={"build_py": BuildWithCharts})
