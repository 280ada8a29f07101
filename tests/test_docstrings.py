"""ruff holds every file of the package to the rule for docstrings: none is exempt."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent


def test_no_file_of_the_package_is_exempt() -> None:
    with (ROOT / "pyproject.toml").open("rb") as stream:
        lint = tomllib.load(stream)["tool"]["ruff"]["lint"]
    assert {"D", "D401"} <= set(lint["select"])
    assert lint["pydocstyle"]["convention"] == "google"
    exempt = [file for file in lint["per-file-ignores"] if file.startswith(("metricsmw", "adapt"))]
    assert not exempt, f"write these docstrings by the rule: {exempt}"
