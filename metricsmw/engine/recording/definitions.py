"""What an instrument of the app's own is: its name, unit and labels, checked where it is made.

Names and labels are those of OpenMetrics. A series is stored under its definition and its label
values, so that a worker which has not made the instrument can export it, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from metricsmw.engine.storage.keys import LENGTH_BYTES, pack_text, user_key
from metricsmw.engine.storage.layout import NAME_BYTES, Kind

Merge = Literal["sum", "max", "last"]
MERGES: Final = ("sum", "max", "last")

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,99}")
LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
UNIT = re.compile(r"(?!.{21})[a-z][a-z0-9]*(_[a-z0-9]+)*|")
# Units that have a word in exports.
WORDS: Final = {"s": "seconds", "ms": "milliseconds"}
# With these, a name fits into its row however long the values are.
MAX_LABELS, MAX_LABEL_CHARACTERS = 8, 100
# What the formats append to names, and labels that they add.
RESERVED_SUFFIXES = ("_bucket", "_count", "_created", "_info", "_sum", "_total")
RESERVED_LABELS = ("le", "quantile")
# What is exported beside the app's own numbers, and does not begin with "metricsmw".
RESERVED_NAMES = {
    "http_server_active_requests",
    "http_server_request_duration_seconds",
    "process_cpu_time_seconds",
    "process_memory_usage_bytes",
    "process_start_time_seconds",
    "target",
}
MAX_SERIES = 200


class Definition(NamedTuple):
    """What an instrument was made with."""

    kind: Kind
    name: str
    help: str
    unit: str
    labels: tuple[str, ...]
    merge: Merge

    @property
    def exported(self) -> str:
        """The name in exports, but for what a format appends: it ends in the unit."""
        stem = re.sub("_+", "_", self.name).strip("_")
        ends_in_it = not self.unit or f"_{stem}".endswith(f"_{self.unit}")
        return stem if ends_in_it else f"{stem}_{self.unit}"


def define(
    kind: Kind, name: str, help: str, unit: str, labels: Sequence[str], merge: Merge
) -> Definition:
    """Return a checked definition. `ValueError` or `TypeError` that says what is wrong."""
    for what, text in (("name", name), ("help", help), ("unit", unit)):
        if not isinstance(text, str):
            raise TypeError(f"{what} must be a str, got {text!r}")
    if not NAME.fullmatch(name) or name.startswith("metricsmw"):
        raise ValueError(
            "name must be letters, digits, underscores and colons, begin with no digit and not "
            f"with 'metricsmw', got {name!r}"
        )
    if name.endswith(RESERVED_SUFFIXES):
        raise ValueError(
            f"name must not end in {', '.join(RESERVED_SUFFIXES)}, which formats add; got {name!r}"
        )
    if not UNIT.fullmatch(unit):
        raise ValueError(f"unit must be a word in lower case such as 'seconds', got {unit!r}")
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise TypeError(f"labels must be a list of str, got {labels!r}")
    for label in labels:
        if not LABEL.fullmatch(label) or label in RESERVED_LABELS:
            raise ValueError(
                "a label must be letters, digits and underscores, begin with no digit and not with "
                f"'__', and be none of {', '.join(RESERVED_LABELS)}; got {label!r}"
            )
    characters = sum(map(len, labels))
    if not len(set(labels)) == len(labels) <= MAX_LABELS or characters > MAX_LABEL_CHARACTERS:
        raise ValueError(
            f"labels must be up to {MAX_LABELS} different names of together up to "
            f"{MAX_LABEL_CHARACTERS} characters, got {labels!r}"
        )
    if merge not in MERGES:
        raise ValueError(f"merge must be one of {', '.join(MERGES)}, got {merge!r}")
    definition = Definition(kind, name, help, WORDS.get(unit, unit), tuple(labels), merge)
    if not definition.exported:
        raise ValueError(f"name must have more than underscores, got {name!r}")
    if definition.exported in RESERVED_NAMES:
        raise ValueError(
            f"name must not be one that is exported already: {definition.exported!r}, by the server"
        )
    return definition


def finite(name: str, value: float) -> float:
    """Return the value; `ValueError` or `TypeError` where it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a finite number, got {value!r}")
    if not -1e300 <= value <= 1e300:
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return value


def pack_name(definition: Definition, values: Sequence[str]) -> bytes:
    """Return the stored name of a series: JSON of name, unit, merge and labels.

    Long values are shortened and kept apart by their hash.
    """
    import json  # here, as importing the package is to cost next to nothing

    kept = list(values)
    while True:
        labels = dict(zip(definition.labels, kept, strict=True))
        parts = [definition.name, definition.unit, definition.merge, labels]
        text = json.dumps(parts, separators=(",", ":"))  # in ASCII
        if len(text) <= NAME_BYTES - LENGTH_BYTES:
            return pack_text(text)
        longest = max(range(len(kept)), key=lambda place: len(json.dumps(kept[place])))
        hashed = f"…{user_key(values[longest]):016x}"
        bare = kept[longest].removesuffix(hashed)
        kept[longest] = bare[: min(len(bare) // 2, NAME_BYTES)] + hashed
