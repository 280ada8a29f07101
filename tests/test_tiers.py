"""The tiers' tables name tests that are there, and hypothesis has one profile, without deadline."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import hypothesis
import pytest

TESTS = Path(__file__).resolve().parent


def tables(config: pytest.Config) -> set[str]:
    """Return all that the tables in tests/conftest.py name."""
    conftest = config.pluginmanager.getplugin(str(TESTS / "conftest.py"))
    return (
        conftest.SERVER | conftest.SLOW | {str(path.relative_to(TESTS)) for path in conftest.LONG}
    )


def test_the_tables_name_tests_that_are_there(pytestconfig: pytest.Config) -> None:
    for entry in tables(pytestconfig):
        file, _, name = entry.partition("::")
        path = TESTS / file
        assert path.is_file(), f"{entry} of tests/conftest.py: no such file"
        found = re.search(rf"^ *(async )?def {name}\(", path.read_text(), re.MULTILINE)
        assert not name or found, f"{entry} of tests/conftest.py: no such test"


def test_no_test_sets_a_deadline() -> None:
    assert hypothesis.settings().deadline is None
    for path in TESTS.rglob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "deadline=" in text else ():
            if isinstance(node, ast.Call) and path.name != "conftest.py":
                names = [keyword.arg for keyword in node.keywords]
                assert getattr(node.func, "id", "") != "settings" or "deadline" not in names, (
                    f"{path}: the profile in tests/conftest.py has no deadline for all"
                )
