"""The score: every case holds for this package on every host, and the published table says so."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from .peers import ASGI_PEERS, WSGI_PEERS, Make, Measured, Peer, Reading
from .scoring import CASES, DOCUMENT, Case, missed, score

RUNS = [
    (case, peers[0], host)
    for peers, is_wsgi in ((WSGI_PEERS, True), (ASGI_PEERS, False))
    for case in CASES
    if (case.wsgi if is_wsgi else case.asgi)
    for host in peers[0].hosts
    if case.is_for(host)
]


@pytest.mark.parametrize(
    ("case", "peer", "host"), RUNS, ids=[f"{host}-{case.title}" for case, _, host in RUNS]
)
def test_it_holds_here(case: Case, peer: Peer, host: str) -> None:
    assert missed(case, peer, host) is None


def test_a_case_can_be_missed() -> None:
    """By one that measures nothing."""

    def bare(make: Make, times: int) -> Measured:
        return Measured(make(), Reading)

    peer = Peer("nobody", (), {"raw_wsgi": bare}, nullcontext)
    by_title = {case.title: score(case, peer) for case in CASES if case.wsgi}
    assert by_title["A list stays a list"] == "yes"
    assert by_title["Each request is counted once, whatever its status"] == "no: 0 of 5"
    assert by_title["Routes are templates with all prefixes, mounted apps' too"] == "\N{EN DASH}"


def test_the_published_table_has_these_cases_and_all_of_them_hold() -> None:
    wsgi, asgi = DOCUMENT.read_text().split("## ASGI")
    for text, cases in (
        (wsgi, [case.title for case in CASES if case.wsgi]),
        (asgi, [case.title for case in CASES if case.asgi]),
    ):
        rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
        table = {row[0].removeprefix("| "): row[2] for row in rows[1:-1]}
        assert table == dict.fromkeys(cases, "yes")
