"""Which format a scraper's ``Accept`` asks for, and the answer in it, compressed where asked.

| asked for | answered |
|---|---|
| ``application/vnd.google.protobuf``, that message, ``encoding=delimited`` | protobuf |
| ``application/openmetrics-text``, version 2.0.0 | OpenMetrics 2.0 |
| the same, version 1.0.0 or none | OpenMetrics 1.0 |
| ``text/plain``, version 0.0.4, 1.0.0 or none; anything else | text 0.0.4 |

Of several the one with the highest ``q`` is taken, of equal ones the first of this table that is
named as it stands there; wildcards mean text. Nothing that can be answered is asked for: text, as
every Prometheus client does. ``escaping=`` says how names are to be written (see `names`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from metricsmw.exporters import openmetrics, protobuf, text
from metricsmw.exporters.model import Exposition
from metricsmw.exporters.names import ESCAPINGS, Escaping

# Below it compression saves nothing.
GZIP_BYTES = 256
GZIP_LEVEL = 4


class Format(NamedTuple):
    """A format that can be asked for: its media type, the versions of it, its writer."""

    media_type: str
    parameters: Mapping[str, str]
    versions: frozenset[str | None]
    content_type: str
    write: Callable[[Exposition, Escaping, bool], bytes]

    def matches(self, asked: Accepted) -> bool:
        """Whether a media type of an ``Accept`` header means this format."""
        return (
            asked.media_type == self.media_type
            and asked.parameters.get("version") in self.versions
            and all(asked.parameters.get(k) == value for k, value in self.parameters.items())
        )


class Accepted(NamedTuple):
    """One element of an ``Accept`` header."""

    media_type: str
    parameters: Mapping[str, str]
    quality: float


class Answer(NamedTuple):
    """A body in the format that was asked for, and the headers that say which."""

    content_type: str
    content_encoding: str | None
    body: bytes


_MESSAGE: Final = {"proto": "io.prometheus.client.metricfamily", "encoding": "delimited"}
PROTOBUF: Final = Format(
    "application/vnd.google.protobuf",
    _MESSAGE,
    frozenset({None}),
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
    protobuf.write,
)
OPENMETRICS_2: Final = Format(
    "application/openmetrics-text",
    {},
    frozenset({"2.0.0"}),
    "application/openmetrics-text; version=2.0.0; charset=utf-8",
    openmetrics.write_2,
)
OPENMETRICS: Final = Format(
    "application/openmetrics-text",
    {},
    frozenset({None, "1.0.0"}),
    "application/openmetrics-text; version=1.0.0; charset=utf-8",
    lambda exposition, escaping, classic: openmetrics.write(exposition, escaping),
)
TEXT: Final = Format(
    "text/plain",
    {},
    frozenset({None, "0.0.4", "1.0.0"}),
    "text/plain; version=0.0.4; charset=utf-8",
    lambda exposition, escaping, classic: text.write(exposition, escaping),
)
FORMATS: Final = (PROTOBUF, OPENMETRICS_2, OPENMETRICS, TEXT)
_WILDCARDS: Final = ("*/*", "text/*")


def answer(
    exposition: Exposition,
    accept: str | None = None,
    accept_encoding: str | None = None,
    classic: bool = False,
) -> Answer:
    """Return the families in the format that the scraper prefers.

    Args:
        exposition: What is written.
        accept: The request's ``Accept`` header.
        accept_encoding: The request's ``Accept-Encoding`` header.
        classic: True adds classic buckets where a format has native ones.
    """
    form, escaping = choose(accept or "")
    body = form.write(exposition, escaping, classic)
    content_type = f"{form.content_type}; escaping={escaping}"
    if len(body) < GZIP_BYTES or not takes_gzip(accept_encoding or ""):
        return Answer(content_type, None, body)
    return Answer(content_type, "gzip", _gzip(body))


@lru_cache(maxsize=64)
def choose(accept: str) -> tuple[Format, Escaping]:
    """Return the format and the escaping that an ``Accept`` header prefers."""
    best: tuple[float, int, Format, Escaping] | None = None
    for asked in _elements(accept):
        for rank, form in enumerate(FORMATS):
            named = form.matches(asked)
            if not named and not (form is TEXT and asked.media_type in _WILDCARDS):
                continue
            # A wildcard names no format: those that are named go before it.
            place = rank if named else len(FORMATS)
            better = best is None or (-asked.quality, place) < (-best[0], best[1])
            if asked.quality > 0 and better:
                best = asked.quality, place, form, _escaping(asked)
    return (TEXT, "underscores") if best is None else (best[2], best[3])


def _escaping(asked: Accepted) -> Escaping:
    wanted = asked.parameters.get("escaping")
    return next((escaping for escaping in ESCAPINGS if escaping == wanted), "underscores")


def takes_gzip(accept_encoding: str) -> bool:
    """Whether an ``Accept-Encoding`` header allows gzip."""
    qualities = {each.media_type: each.quality for each in _elements(accept_encoding)}
    return qualities.get("gzip", qualities.get("*", 0.0)) > 0


def _elements(header: str) -> Iterator[Accepted]:
    for element in header.split(","):
        name, *rest = (part.strip() for part in element.lower().split(";"))
        parameters = {}
        for parameter in rest:
            key, _, value = parameter.partition("=")
            parameters[key.strip()] = value.strip().strip('"')
        if name:
            yield Accepted(name, parameters, _quality(parameters.get("q", "1")))


def _quality(text: str) -> float:
    """Return a quality from 0 to 1; 0 for what is none."""
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0.0 <= quality <= 1.0 else 0.0


def _gzip(body: bytes) -> bytes:
    compressor = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return compressor.compress(body) + compressor.flush()
