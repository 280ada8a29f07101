"""The list of files whose docstrings ruff does not hold to the rule yet only shrinks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent


def exempt() -> dict[str, list[str]]:
    """Return the rules that each file of the package is exempt from."""
    with (ROOT / "pyproject.toml").open("rb") as stream:
        ignores = tomllib.load(stream)["tool"]["ruff"]["lint"]["per-file-ignores"]
    return {file: rules for file, rules in ignores.items() if "*" not in file}


@pytest.mark.parametrize(
    ("file", "rule"), [(f, rule) for f, rules in exempt().items() for rule in rules]
)
def test_an_exemption_is_needed(file: str, rule: str) -> None:
    assert (ROOT / file).is_file(), f"take {file} out of ruff's per-file-ignores, or rename it"
    settings = ["--isolated", "--config", 'lint.pydocstyle.convention="google"', "--select", rule]
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", *settings, file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, f"take {rule} of {file} out of ruff's per-file-ignores"
