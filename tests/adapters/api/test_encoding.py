"""The sub-app's JSON: the same documents with and without orjson."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from kits.handlers import ask, body_of

from metricsmw import MetricsMonitor
from metricsmw.adapters.api import encoding
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.auth import public


@pytest.mark.parametrize("path", ["/current", "/routes", "/statistics", "/history", "/series"])
def test_answers_are_the_same_without_orjson(
    path: str, monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor.record_request(12.5, route="/Zürich/{id}", method="GET", status=200)
    handlers = Handlers(monitor, public())
    assert encoding.has_orjson
    quick = ask(handlers, path)
    monkeypatch.setattr(encoding, "has_orjson", False)
    assert encoding.to_json(json.loads(quick.body)) == quick.body
    assert body_of(ask(handlers, path)).keys() == body_of(quick).keys()


def test_texts_are_the_same_without_orjson(monkeypatch: pytest.MonkeyPatch) -> None:
    document = {"route": "/Zürich/\u2028\n", "p99": 0.1 + 0.2, "of": [1, None, True], "empty": {}}
    quick = encoding.to_json(document), encoding.to_indented_json(document)
    monkeypatch.setattr(encoding, "has_orjson", False)
    assert (encoding.to_json(document), encoding.to_indented_json(document)) == quick
    assert json.loads(quick[0]) == document


@pytest.mark.parametrize(
    "fault",
    [
        'sys.modules["orjson"] = None',
        'sys.version = "3.14.0 free-threading build"; sys._is_gil_enabled = lambda: True',
    ],
    ids=["not installed", "no GIL"],
)
def test_orjson_is_not_imported_where_it_cannot_be_had(
    fault: str, run_python: Callable[..., str]
) -> None:
    source = f"""
import sys
{fault}
from metricsmw.adapters.api.encoding import to_json
print(to_json({{"a": 1}}).decode(), sys.modules.get("orjson"))
"""
    assert run_python(source) == '{"a":1} None\n'
