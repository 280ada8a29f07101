"""The text of alert rules: `parse` reads it.

``[NAME:] FIELD > NUMBER``, and then, as needed and in any order: ``on [METHOD] ROUTE``, ``over
DURATION``, ``at least NUMBER requests``, ``for DURATION``, ``clear NUMBER``, a severity, ``repeat
every DURATION``. A field is one of a snapshot, a short name of one (`rules.SHORT_NAMES`), ``new
errors``, a burn rate, or a number of the app's own: ``NAME{label="value"} rate``, or another of
`rules.TAKEN`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Final, TypeVar, cast

from metricsmw.alerts.rules import (
    LEAST_BURN_REQUESTS,
    SEVERITIES,
    SHORT_NAMES,
    TAKEN,
    AnyRule,
    BurnRate,
    Comparison,
    CustomRule,
    Rule,
    Severity,
    Taken,
)

T = TypeVar("T")

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
DURATION = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?[smhd]?"
UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
LABEL_PAIR = r'\s*([A-Za-z_]\w*)\s*=\s*("(?:[^"\\]|\\.)*")\s*'
HEAD = re.compile(
    rf"""\s* (?: (?P<name>[A-Za-z_][\w-]*) \s* : \s* )?
    (?: (?P<server>server_)? burn_rate \s* \( \s* (?P<objective>{NUMBER}) \s* , \s*
        (?P<long>{DURATION}) \s* , \s* (?P<short>{DURATION}) \s* \)
      | (?P<metric>[A-Za-z_:][\w:]*) \s* (?: \{{ (?P<labels>(?:[^"}}]|"(?:[^"\\]|\\.)*")*) \}} )?
        \s* \b (?P<taken>{"|".join(TAKEN)})
      | (?P<field>new\s+errors|[A-Za-z_]\w*) )
    \s* (?P<comparison>>=|<=|>|<) \s* (?P<threshold>{NUMBER}) (?=\s|$)""",
    re.VERBOSE | re.DOTALL,
)
PARTS = re.compile(
    rf"""\s+ (?: on \s+ (?: (?P<method>[A-Z_]+) \s+ )? (?P<route>\S+)
      | over \s+ (?P<over>{DURATION})
      | at \s+ least \s+ (?P<least>\d+) (?: \s+ requests? )?
      | for \s+ (?P<for>{DURATION})
      | clear \s+ (?P<clear>{NUMBER})
      | (?P<severity>{"|".join(SEVERITIES)})
      | repeat \s+ (?: every \s+ )? (?P<repeat>{DURATION})
    ) (?=\s|$)""",
    re.VERBOSE,
)
FORM: Final = (
    "write FIELD > NUMBER, then, as needed: on [METHOD] ROUTE, over DURATION, at least NUMBER "
    "requests, for DURATION, clear NUMBER, info|warning|critical, repeat every DURATION; "
    'FIELD of a number of the app\'s own is NAME{label="value"} and one of ' + ", ".join(TAKEN)
)


def parse(text: str) -> AnyRule:
    """Return the rule that a text says; see the module's head.

    Raises:
        ValueError: The text is no rule, or its numbers make none.
    """
    head = HEAD.match(text)
    if head is None:
        raise ValueError(f"not a rule: {text!r}; {FORM}")
    parts = _parts(text, head.end())
    said = head.groupdict()
    threshold = float(said["threshold"])
    comparison = cast("Comparison", said["comparison"])
    for_seconds = seconds(parts.get("for", "0"))
    clear = _if_given(parts, "clear", float)
    repeat = _if_given(parts, "repeat", seconds)
    at_least = _if_given(parts, "least", int)
    if said["field"] is not None:
        field = "_".join(said["field"].split())
        return Rule(
            SHORT_NAMES.get(field, field),
            threshold,
            comparison,
            for_seconds,
            clear,
            cast("Severity", parts.get("severity", "warning")),
            parts.get("route"),
            parts.get("method"),
            said["name"] or "",
            _if_given(parts, "over", seconds),
            at_least,
            repeat,
        )
    if said["metric"] is not None:
        return _custom(text, said, parts)
    if "route" in parts:
        raise ValueError(f"a burn rate is of the whole server, not of a route: {text!r}")
    if "over" in parts:
        raise ValueError(f'a burn rate has its windows in brackets, and no "over": {text!r}')
    return BurnRate(
        float(said["objective"]),
        threshold,
        _minutes(said["long"]),
        _minutes(said["short"]),
        cast("Severity", parts.get("severity", "critical")),
        for_seconds,
        clear,
        said["name"] or "BURN_RATE",
        comparison,
        LEAST_BURN_REQUESTS if at_least is None else at_least,
        repeat,
        said["server"] is not None,
    )


def _custom(text: str, said: Mapping[str, str], parts: Mapping[str, str]) -> CustomRule:
    """Return a rule on a number of the app's own."""
    for part, name in (("route", "on ROUTE"), ("least", "at least NUMBER requests")):
        if part in parts:
            raise ValueError(
                f'a number of the app\'s own is not about requests, and has no "{name}": {text!r}'
            )
    return CustomRule(
        said["metric"],
        cast("Taken", said["taken"]),
        float(said["threshold"]),
        _labels(text, said["labels"] or ""),
        cast("Comparison", said["comparison"]),
        seconds(parts.get("for", "0")),
        _if_given(parts, "clear", float),
        cast("Severity", parts.get("severity", "warning")),
        said["name"] or "",
        _if_given(parts, "over", seconds),
        _if_given(parts, "repeat", seconds),
    )


def _labels(text: str, written: str) -> tuple[tuple[str, str], ...]:
    """Return the pairs of ``label="value",…``, whose values are quoted as in JSON."""
    if re.fullmatch(rf"(?:{LABEL_PAIR},)*(?:{LABEL_PAIR})?|\s*", written, re.DOTALL) is None:
        raise ValueError(f'labels must be like {{shop="north",kind="card"}}, got {text!r}')
    try:
        return tuple(
            (label, json.loads(value, strict=False))
            for label, value in re.findall(LABEL_PAIR, written, re.DOTALL)
        )
    except ValueError:
        raise ValueError(f"the value of a label must be quoted as in JSON, got {text!r}") from None


def _parts(text: str, start: int) -> Mapping[str, str]:
    """Return what follows the threshold, by name; each part may be there once."""
    found: dict[str, str] = {}
    end = len(text.rstrip())
    while start < end:
        match = PARTS.match(text, start)
        if match is None:
            raise ValueError(f"not a rule: {text!r}, at {text[start:].strip()!r}; {FORM}")
        for name, value in match.groupdict().items():
            if value is None:
                continue
            if name in found:
                raise ValueError(f"not a rule: {text!r} says {name} twice")
            found[name] = value
        start = match.end()
    return found


def _if_given(parts: Mapping[str, str], name: str, read: Callable[[str], T]) -> T | None:
    return read(parts[name]) if name in parts else None


def seconds(duration: str) -> float:
    """Return the seconds of a duration such as "90s", "5m", "4h" or "2d"; a number is seconds.

    Raises:
        ValueError: It is none.
    """
    if re.fullmatch(DURATION, duration) is None:
        raise ValueError(f'a duration must be like "90s", "5m", "4h" or "2d", got {duration!r}')
    unit = UNITS.get(duration[-1])
    return float(duration) if unit is None else float(duration[:-1]) * unit


def _minutes(duration: str) -> int:
    length = seconds(duration if duration[-1] in UNITS else f"{duration}m")
    if length % 60:
        raise ValueError(f"a burn rate's window must be whole minutes, got {duration!r}")
    return int(length // 60)
