"""Exemplars: captured requests that name their trace, for the histograms that count them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from metricsmw.engine.storage.captures import NO_SPAN, Capture
from metricsmw.engine.storage.keys import AnswerName, Name
from metricsmw.exporters.model import Exemplar

MOST = 10
"""Exemplars of one series: the slowest."""


class Exemplars:
    """The captured requests of a reading that name their trace, by what counts them.

    Args:
        captures: Those of all workers.
    """

    def __init__(self, captures: Iterable[Capture]) -> None:
        self._all = sorted(captures, key=lambda one: -one.seconds)
        self._by_name: dict[Name, list[Capture]] = {}
        for one in self._all:
            self._by_name.setdefault(one.name, []).append(one)

    @property
    def of_server(self) -> list[Exemplar]:
        """Those of all requests."""
        return _exemplars(self._all)

    def of(self, name: Name, answers: Iterable[AnswerName]) -> dict[AnswerName, list[Exemplar]]:
        """Return those of a route, by the answers that have a series each.

        A request whose own answers have none is of those that share one.
        """
        captures = self._by_name.get(name)
        if not captures:
            return {}
        known = list(answers)
        found: dict[AnswerName, list[Capture]] = {}
        for one in captures:
            answer = _answer_of(one, known)
            if answer is not None:
                found.setdefault(answer, []).append(one)
        return {answer: _exemplars(all_) for answer, all_ in found.items()}


def _answer_of(one: Capture, known: Sequence[AnswerName]) -> AnswerName | None:
    """Return the answers that a request was counted among."""
    same = [answer for answer in known if answer.status in (0, one.status)]

    def fits(answer: AnswerName) -> tuple[bool, bool]:
        # The end of a long type is kept.
        return answer.status != 0, bool(one.error and answer.error.endswith(one.error))

    fitting = [a for a in same if not a.error or (one.error and a.error.endswith(one.error))]
    best = max(map(fits, fitting), default=None)
    found = [answer for answer in fitting if fits(answer) == best]
    return found[0] if len(found) == 1 else None  # of which scheme it was, is not known


def _exemplars(captures: Sequence[Capture]) -> list[Exemplar]:
    """Return the slowest of requests as exemplars, in the order of their times."""
    found = []
    for one in captures[:MOST]:
        attributes = {"trace_id": one.trace_id.hex()}
        if one.span_id != NO_SPAN:
            attributes["span_id"] = one.span_id.hex()
        found.append(Exemplar(one.seconds, attributes, one.time + one.seconds))
    return sorted(found, key=lambda exemplar: exemplar.time)
