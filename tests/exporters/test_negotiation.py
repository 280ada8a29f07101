"""What scrapers ask for is what they get."""

from __future__ import annotations

import gzip

import pytest

from metricsmw.exporters.model import CounterFamily, Exposition, NumberPoint
from metricsmw.exporters.negotiation import (
    OPENMETRICS,
    OPENMETRICS_2,
    PROTOBUF,
    TEXT,
    Format,
    answer,
    choose,
    takes_gzip,
)

MESSAGE = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
)
OM = "application/openmetrics-text"
# As these scrapers send it.
OM_AND_TEXT = (
    f"{OM};version=1.0.0;q=0.4,{OM};version=0.0.1;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
PROMETHEUS_2_42 = (
    f"{OM};version=1.0.0,{OM};version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_2_NATIVE = f"{MESSAGE};q=0.5,{OM_AND_TEXT}"
PROMETHEUS_3 = (
    f"{OM};version=1.0.0;escaping=allow-utf-8;q=0.5,{OM};version=0.0.1;q=0.4,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
PROMETHEUS_3_NATIVE = f"{MESSAGE};q=0.6,{PROMETHEUS_3}"
PROMETHEUS_3_TEXT = "text/plain;version=0.0.4;q=0.6,*/*;q=0.5"
TELEGRAF = f"{MESSAGE};q=0.7,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
VICTORIA_METRICS = "text/plain;version=0.0.4;q=1,*/*;q=0.1"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        (BROWSER, TEXT),
        (VICTORIA_METRICS, TEXT),
        (OM_AND_TEXT, OPENMETRICS),
        (PROMETHEUS_2_42, OPENMETRICS),
        (PROMETHEUS_2_NATIVE, PROTOBUF),
        (PROMETHEUS_3, OPENMETRICS),
        (PROMETHEUS_3_NATIVE, PROTOBUF),
        (PROMETHEUS_3_TEXT, TEXT),
        (TELEGRAF, PROTOBUF),
        (f"{OM}; version=0.0.1; charset=utf-8", TEXT),
        (MESSAGE, PROTOBUF),
        (f"{MESSAGE};q=0", TEXT),
        (MESSAGE.replace("delimited", "text"), TEXT),
        (MESSAGE.replace("=delimited", '="delimited"').upper(), PROTOBUF),
        ("application/vnd.google.protobuf", TEXT),
        (OM, OPENMETRICS),
        (f"{OM};version=1.0.0", OPENMETRICS),
        (f"{OM}; version=2.0.0", OPENMETRICS_2),
        (f"{OM};version=2.0.0;q=0.5,{OM};version=1.0.0;q=0.6", OPENMETRICS),
        (f"{OM};version=1.0.0,{OM};version=2.0.0", OPENMETRICS_2),
        (f"{OM};version=3.0.0", TEXT),
        (f"text/plain;q=0.5,{OM};q=0.9", OPENMETRICS),
        (f"*/*;q=1,{OM};q=1", OPENMETRICS),
        (f"text/plain,{OM};q=bad", TEXT),
        (f"{OM};q=nan", TEXT),
        (f"{OM};q=2", TEXT),
        (";;,,=;q=1, ;", TEXT),
        ("application/json", TEXT),
    ],
)
def test_the_format_is_the_one_preferred(accept: str, form: Format) -> None:
    assert choose(accept)[0] is form


@pytest.mark.parametrize(
    ("accept", "escaping"),
    [
        ("", "underscores"),
        (PROMETHEUS_3, "allow-utf-8"),
        (PROMETHEUS_3_NATIVE, "underscores"),
        (PROMETHEUS_3.replace("allow-utf-8", "underscores"), "underscores"),
        (f"{OM};escaping=dots", "dots"),
        (f"{OM};escaping=values", "values"),
        (f"{OM};escaping=unheard-of", "underscores"),
    ],
)
def test_the_escaping_is_the_one_asked_for(accept: str, escaping: str) -> None:
    assert choose(accept)[1] == escaping


def test_the_answer_says_what_it_is() -> None:
    exposition = Exposition({}, [CounterFamily("orders", "", "Orders.", [NumberPoint({}, 3)])])
    told = answer(exposition, PROMETHEUS_2_NATIVE)
    assert told.content_type == (
        "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; "
        "encoding=delimited; escaping=underscores"
    )
    told = answer(exposition, f"{OM};version=2.0.0;escaping=dots")
    assert told.content_type == f"{OM}; version=2.0.0; charset=utf-8; escaping=dots"
    assert b"orders__total 3" in told.body
    assert answer(exposition).content_type == (
        "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"
    )


@pytest.mark.parametrize(
    ("accept_encoding", "taken"),
    [
        ("", False),
        ("gzip", True),
        ("deflate, gzip;q=0.5", True),
        ("gzip;q=0", False),
        ("*", True),
        ("*, gzip;q=0", False),
        ("identity", False),
        ("gzip;q=x", False),
    ],
)
def test_gzip_is_used_where_it_is_taken(accept_encoding: str, taken: bool) -> None:
    assert takes_gzip(accept_encoding) is taken
    points = [NumberPoint({"shop": str(number)}, number) for number in range(100)]
    exposition = Exposition({}, [CounterFamily("orders", "", "Orders.", points)])
    told = answer(exposition, None, accept_encoding)
    assert told.content_encoding == ("gzip" if taken else None)
    plain = answer(exposition).body
    assert (gzip.decompress(told.body) if taken else told.body) == plain
