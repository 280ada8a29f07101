"""The minutes of `/history`: which are taken, which are held to the maximum, which are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kits.handlers import (
    ask,
    assert_error,
    body_of,
)

from metricsmw import MetricsMonitor
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.auth import public


@pytest.fixture(scope="module")
def unchanged() -> Iterator[Handlers]:
    """For those that ask often and change nothing."""
    with MetricsMonitor() as monitor:
        yield Handlers(monitor, public())


class TestMinutes:
    """`?minutes=`: a whole number from 1, held to the monitor's maximum; anything else is 400."""

    @pytest.mark.parametrize(
        ("query", "minutes"),
        [
            ("", 60),
            ("other=5", 60),
            ("minutes=1", 1),
            ("minutes=59", 59),
            ("minutes=60", 60),
            ("minutes=61", 60),
            ("minutes=007", 7),
            ("minutes=" + "0" * 5000 + "7", 7),
            ("minutes=" + "9" * 100_000, 60),
            ("minutes=%35", 5),
            ("minutes=5&minutes=6", 6),
            ("minutes=junk&minutes=6", 6),
            ("a=1&minutes=5&b=2", 5),
        ],
    )
    def test_accepted(self, handlers: Handlers, query: str, minutes: int) -> None:
        response = ask(handlers, "/history", query=query)
        assert response.status == 200
        assert body_of(response)["minutes"] == minutes

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "0",
            "000",
            "-1",
            "+5",
            " 5",
            "5 ",
            "5\n",
            "5.0",
            "1e1",
            "0x10",
            "1_0",
            "five",
            "nan",
            "5;6",
            "\N{ARABIC-INDIC DIGIT THREE}",
            "\N{SUPERSCRIPT TWO}",
            "\N{FULLWIDTH DIGIT FIVE}",
            "5\0",
        ],
    )
    def test_refused(self, handlers: Handlers, text: str) -> None:
        response = ask(handlers, "/history", query=urlencode({"minutes": text}))
        assert_error(response, 400, f"minutes must be a whole number from 1 to 60, not {text!r}")

    @pytest.mark.parametrize(
        "query", ["minutes=+5", "minutes", "minutes=6&minutes=", "minutes=%ff"]
    )
    def test_refused_as_written(self, handlers: Handlers, query: str) -> None:
        assert ask(handlers, "/history", query=query).status == 400

    def test_refusal_shortens_what_it_names(self, handlers: Handlers) -> None:
        response = ask(handlers, "/history", query="minutes=" + "x" * 100_000)
        assert response.status == 400
        assert b"xxx" in response.body
        assert len(response.body) < 200

    @pytest.mark.parametrize(("maximum", "default"), [(10, 10), (120, 60)])
    def test_default_and_maximum_are_the_monitors(self, maximum: int, default: int) -> None:
        with MetricsMonitor(max_history_minutes=maximum) as monitor:
            handlers = Handlers(monitor, public())
            assert body_of(ask(handlers, "/history"))["minutes"] == default
            assert body_of(ask(handlers, "/history", query="minutes=999"))["minutes"] == maximum
            message = str(body_of(ask(handlers, "/history", query="minutes=0"))["error"])
        assert f"from 1 to {maximum}," in message

    def test_limits_the_rows(self, handlers: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
        # What the monitor does with the number is tested where it lives.
        monkeypatch.setattr(MetricsMonitor, "get_metrics_history", lambda self, n: [{}] * n)
        body = body_of(ask(handlers, "/history", query="minutes=3"))
        assert (body["count"], body["history"]) == (3, [{}, {}, {}])

    @given(text=st.text() | st.from_regex(r"[+-]?[0-9]{1,30}(\.0)?"))
    def test_any_text(self, unchanged: Handlers, text: str) -> None:
        response = ask(unchanged, "/history", query=urlencode({"minutes": text}))
        if re.fullmatch("0*[1-9][0-9]*", text):
            assert response.status == 200
            assert body_of(response)["minutes"] == min(int(text), 60)
        else:
            assert response.status == 400

    @given(query=st.text(st.characters(codec="latin-1")))
    def test_any_query(self, unchanged: Handlers, query: str) -> None:
        assert ask(unchanged, "/history", query=query).status in (200, 400)
