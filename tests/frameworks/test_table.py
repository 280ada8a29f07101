"""The table in docs/frameworks.md is what its command prints, for the frameworks installed here."""

from __future__ import annotations

import importlib.util
import os

import pytest
from frameworks.table import DOCUMENT, END, SITES, START, row

# Those that the extra `dev` brings; the others need tests/frameworks.txt.
INSTALLED = [name for name in SITES if importlib.util.find_spec(SITES[name].package)]


def published() -> list[str]:
    text = DOCUMENT.read_text().split(START)[1].split(END)[0]
    return [line for line in text.splitlines() if line.startswith("| ")][1:]


def test_every_site_has_its_row() -> None:
    assert len(published()) == len(SITES)
    assert "not installed here" not in "".join(published())
    if os.environ.get("CI") == "true":
        assert len(INSTALLED) >= 15


@pytest.mark.parametrize("name", INSTALLED)
def test_the_row_is_what_the_command_prints(name: str) -> None:
    assert row(SITES[name]) in published()
