"""JSON as the sub-app answers it: by orjson, which is quick, else by the standard library.

Builds that can run without a GIL do without orjson: it has no wheel for them, and one that was
built from its source turns the GIL on.
"""

from __future__ import annotations

import json

from metricsmw.engine.builds import FREE_THREADED

has_orjson = not FREE_THREADED
if has_orjson:
    try:
        import orjson
    except ImportError:
        has_orjson = False


def to_json(document: object) -> bytes:
    """Return a document of finite numbers as JSON without white space."""
    if has_orjson:
        return orjson.dumps(document)
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def to_indented_json(document: object) -> bytes:
    """Return a document of finite numbers as JSON with two spaces a level."""
    if has_orjson:
        return orjson.dumps(document, option=orjson.OPT_INDENT_2)
    return json.dumps(document, ensure_ascii=False, indent=2).encode()
