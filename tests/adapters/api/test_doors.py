"""The doors of the sub-app: each slows guesses, and lets in the right token whatever others do."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kits.handlers import GUARDED, ROUTES, ask, assert_refused, body_of, headers_of

from metricsmw import MetricsMonitor
from metricsmw.adapters.api import admission, policies, signin
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.api.messages import Request, Response
from metricsmw.adapters.api.tokens import own_token
from metricsmw.adapters.auth import HostUser, Policy, basic, public, session, staff, token
from metricsmw.clock import ManualClock

SECRET = "a token of the tests"
RIGHT = {"authorization": f"Bearer {SECRET}"}


@pytest.fixture
def monitor(clock: ManualClock) -> Iterator[MetricsMonitor]:
    with MetricsMonitor(clock=clock) as monitor:
        yield monitor


@pytest.fixture(autouse=True)
def no_guesses_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("METRICSMW_TOKEN", raising=False)
    signin.LOGIN_RATE_LIMIT.clear()
    yield
    signin.LOGIN_RATE_LIMIT.clear()


def signed_in(handlers: Handlers) -> dict[str, str]:
    response = ask(handlers, "/signin", "POST", **RIGHT)
    return {"cookie": headers_of(response)["set-cookie"].partition(";")[0]}


# --- guesses ------------------------------------------------------------------------------------


def by_bearer(handlers: Handlers, guess: str, path: str, method: str) -> Response:
    return ask(handlers, path, method, authorization=f"Bearer {guess}")


def by_cookie(handlers: Handlers, guess: str, path: str, method: str) -> Response:
    # As somebody makes it who tries a token: name and signature are right for what was guessed.
    cookie = signin.cookie(guess, {}).partition(";")[0]
    return ask(handlers, path, method, cookie=cookie)


def by_cookie_behind_basic(handlers: Handlers, guess: str, path: str, method: str) -> Response:
    cookie = signin.cookie(guess, {}).partition(";")[0]
    return ask(handlers, path, method, cookie=cookie, authorization="Basic YW5uOng=")


DOORS: dict[str, tuple[Callable[[Handlers, str, str, str], Response], str, str]] = {
    f"{by.__name__}-{path or 'page'}": (by, path, method)
    for by in (by_bearer, by_cookie, by_cookie_behind_basic)
    for path, method in [
        *((path, ROUTES[path]) for path in GUARDED),
        ("/stream", "GET"),
        ("/health", "GET"),
        ("/nope", "GET"),
        ("/signin", "POST"),
        ("/signout", "POST"),
    ]
}


@pytest.mark.parametrize("door", DOORS)
def test_guesses_are_slowed_at_every_door_and_the_right_token_never(
    monitor: MetricsMonitor, clock: ManualClock, door: str
) -> None:
    by, path, method = DOORS[door]
    handlers = Handlers(monitor, token(SECRET))
    cookie = signed_in(handlers)
    for number in range(signin.TRIES):
        assert by(handlers, f"guess {number}", path, method).status in (200, 401)
        clock.advance(1.0)
    for number in range(30):
        slowed = by(handlers, f"further guess {number}", path, method)
        assert slowed.status == 429
        assert 1 <= int(headers_of(slowed)["retry-after"]) <= 60
    for headers in (RIGHT, cookie):
        assert ask(handlers, "/current", **headers).status == 200
    assert ask(handlers, "/signin", "POST", **RIGHT).status == 200
    # The other doors know of them, too.
    assert by_bearer(handlers, "again", "/current", "GET").status == 429
    assert by_cookie(handlers, "again", "/current", "GET").status == 429
    clock.advance(60.0)
    assert by(handlers, "later", path, method).status in (200, 401)


def test_who_sends_nothing_uses_up_no_guess(monitor: MetricsMonitor) -> None:
    handlers = Handlers(monitor, token(SECRET))
    for _ in range(50):
        assert ask(handlers, "/signin", "POST").status == 401
        assert_refused(ask(handlers, "/current"))
    assert ask(handlers, "/signin", "POST", **RIGHT).status == 200
    assert signin.LOGIN_RATE_LIMIT.guesses == 0


def test_an_old_token_that_comes_again_is_one_guess(
    monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = Handlers(monitor, token(SECRET))
    cookie = signed_in(handlers)
    for _ in range(50):
        assert by_bearer(handlers, "the old token", "/current", "GET").status == 401
    monkeypatch.setattr(signin, "LIFETIME_SECONDS", -1)  # its time is over
    for _ in range(50):
        assert ask(handlers, "/current", **cookie).status == 401
    assert signin.LOGIN_RATE_LIMIT.guesses == 1


def test_passwords_are_slowed_likewise(monitor: MetricsMonitor) -> None:
    handlers = Handlers(monitor, basic("ann", "a long password"))
    statuses = [
        ask(handlers, "/current", authorization=f"Basic {guess:04}").status for guess in range(30)
    ]
    assert statuses == [401] * signin.TRIES + [429] * 20
    right = "Basic YW5uOmEgbG9uZyBwYXNzd29yZA=="
    assert ask(handlers, "/current", authorization=right).status == 200


def test_sessions_are_no_guesses(monitor: MetricsMonitor) -> None:
    handlers = Handlers(monitor, session())
    for guess in range(30):
        assert by_bearer(handlers, f"{guess}", "/current", "GET").status == 401


def test_under_asgi_one_guess_too_many_waits_and_holds_up_nobody(monitor: MetricsMonitor) -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        assert (await handlers.handle_async(asked(RIGHT))).status == 200
        await asyncio.sleep(0)

    handlers = Handlers(monitor, token(SECRET), pause=pause)

    def asked(headers: dict[str, str]) -> Request:
        return Request("GET", "/current", "", headers)

    async def attack() -> list[int]:
        guesses = [{"authorization": f"Bearer {number}"} for number in range(100)]
        answers = [handlers.handle_async(asked(guess)) for guess in guesses]
        return [answer.status for answer in await asyncio.gather(*answers)]

    assert asyncio.run(attack()).count(429) == 100 - signin.TRIES
    assert pauses == [admission.SLOW_SECONDS] * admission.MAX_SLOWED
    assert admission.Admission.slowed == 0


# --- tokens -------------------------------------------------------------------------------------


@pytest.mark.parametrize("around", [" {}", "{}\n", "\t{}\r\n"])
def test_white_space_is_no_part_of_a_token(monitor: MetricsMonitor, around: str) -> None:
    handlers = Handlers(monitor, token(around.format(SECRET)))
    assert ask(handlers, "/current", **RIGHT).status == 200


@pytest.mark.parametrize("secret", ["", " ", "\n"])
def test_nothing_but_white_space_is_no_token(secret: str) -> None:
    with pytest.raises(ValueError, match="secret must be a non-empty string"):
        token(secret)


@pytest.mark.parametrize(
    ("secret", "warnings"),
    [("fifteen letters", 1), ("sixteen letters.", 0), (" fifteen letters ", 1)],
)
@pytest.mark.parametrize("by", ["policy", "variable"])
def test_a_short_token_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    monitor: MetricsMonitor,
    by: str,
    secret: str,
    warnings: int,
) -> None:
    monkeypatch.setattr(policies, "WARNED_OF", set())
    for _ in range(3):
        if by == "policy":
            token(secret)
        else:
            monkeypatch.setenv("METRICSMW_TOKEN", secret)
            ask(Handlers(monitor), "/current", **RIGHT)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == warnings
    assert all("16 characters" in each and "letters" not in each for each in said)


def test_where_none_is_set_the_server_has_one_of_its_own(monitor: MetricsMonitor) -> None:
    handlers = Handlers(monitor)
    own = own_token(monitor)
    assert len(own) >= 32
    assert own == own_token(monitor)
    assert ask(handlers, "/current", authorization=f"Bearer {own}").status == 200
    signed = ask(handlers, "/signin", "POST", authorization=f"Bearer {own}")
    cookie = headers_of(signed)["set-cookie"].partition(";")[0]
    assert ask(handlers, "/current", cookie=cookie).status == 200


def test_it_does_not_count_beside_one_that_is_set(
    monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = own_token(monitor)
    monkeypatch.setenv("METRICSMW_TOKEN", SECRET)
    assert ask(Handlers(monitor), "/current", authorization=f"Bearer {own}").status == 401
    for policy in (token(SECRET), session(), basic("ann", "x")):
        handlers = Handlers(monitor, policy)
        assert ask(handlers, "/current", authorization=f"Bearer {own}").status == 401


@pytest.mark.parametrize("path", GUARDED)
@pytest.mark.parametrize("policy", [None, token(SECRET)], ids=["default", "token"])
@pytest.mark.parametrize(
    "wrong", ["Bearer wrong", "bearer", "Token x", "Bearer", f"Bearer:{SECRET}", "Digestx y"]
)
def test_wrong_credentials_are_not_made_good_by_a_cookie(
    monitor: MetricsMonitor,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    policy: Policy | None,
    wrong: str,
) -> None:
    monkeypatch.setenv("METRICSMW_TOKEN", SECRET)
    handlers = Handlers(monitor, policy)
    cookie = signed_in(handlers)
    asked = ask(handlers, path, ROUTES[path], "", lambda: "ann", authorization=wrong, **cookie)
    assert_refused(asked)


# --- what strangers are told --------------------------------------------------------------------

TOLD = ["success", "status", "version", "components", "current_rpm", "timestamp"]


@pytest.mark.parametrize(
    ("policy", "headers", "user", "full"),
    [
        (None, {}, None, False),
        (None, {"authorization": "Bearer wrong"}, None, False),
        (None, {}, "ann", True),
        (token(SECRET), {}, "ann", False),
        (token(SECRET), RIGHT, None, True),
        (session(lambda user: 1 / 0), {}, "ann", False),
        (public(), {}, None, True),
    ],
)
def test_health_tells_strangers_what_is_described(
    monitor: MetricsMonitor,
    policy: Policy | None,
    headers: dict[str, str],
    user: str | None,
    full: bool,
) -> None:
    monitor.set_health_thresholds({"error_rate_pct": 5.0})
    asked = Request("GET", "/health", "", headers, lambda: user, unmeasured="of a reason")
    response = Handlers(monitor, policy).handle(asked)
    body = body_of(response)
    assert response.status == 503
    assert ("of a reason" in json.dumps(body)) is full
    assert (list(body) == TOLD) is not full
    assert ("workers" in body, "checks" in body, "mode_reason" in body) == (full, full, full)
    assert body["components"]["request_tracking"] != "operational"


# --- the ways in --------------------------------------------------------------------------------


def ways(handlers: Handlers, **settings: Any) -> str:
    response = handlers.handle(Request("GET", "/current", "", {}, **settings))
    assert_refused(response)
    return " ".join(body_of(response)["ways_in"])


def test_a_refusal_names_the_ways_in_that_there_are(
    monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    login: dict[str, Any] = {"identity": lambda: None}
    default = ways(Handlers(monitor), **login)
    assert "Log in to the application." in default
    assert "METRICSMW_TOKEN" in default
    assert "prints" in default
    assert "Log in" not in ways(Handlers(monitor))  # an app without a login
    assert "staff" in ways(Handlers(monitor), staff_only=True, **login)
    monkeypatch.setenv("METRICSMW_TOKEN", SECRET)
    assert ways(Handlers(monitor)).endswith("with the token in METRICSMW_TOKEN.")
    assert "METRICSMW_TOKEN" not in ways(Handlers(monitor, token(SECRET)))
    assert "Basic" in ways(Handlers(monitor, basic("ann", "x")))
    assert ways(Handlers(monitor, session()), **login) == "Log in to the application."
    assert "staff" in ways(Handlers(monitor, staff()), **login)
    assert "none that is known" in ways(Handlers(monitor, session()))
    assert "own policy" in ways(Handlers(monitor, lambda request: False))


# --- whose verdict ------------------------------------------------------------------------------


class Account:
    def __init__(self, **says: object) -> None:
        vars(self).update(says)


MEMBER, BOSS = Account(name="ann"), Account(name="bob", is_staff=True)


def allowed(policy: Policy | None, account: object, *, staff_only: bool = False) -> int:
    user = HostUser("ann", account)
    asked = Request("GET", "/current", "", {}, lambda: user, staff_only=staff_only)
    with MetricsMonitor() as monitor:
        return Handlers(monitor, policy).handle(asked).status


async def is_bob(user: Any) -> bool:
    return bool(user.name == "bob")


@pytest.mark.parametrize(
    ("policy", "staff_only", "member", "boss"),
    [
        (None, False, 200, 200),
        (None, True, 401, 200),
        (staff(), False, 401, 200),
        (session(), True, 200, 200),
        (session(lambda user: user.name == "bob"), False, 401, 200),
        (session(is_bob), False, 401, 200),
        (session(allow=lambda user: iter([True])), False, 500, 500),
        (session(allow=lambda user: 1 / 0), False, 500, 500),
    ],
)
def test_who_of_the_logged_in_may(
    policy: Policy | None, staff_only: bool, member: int, boss: int
) -> None:
    assert allowed(policy, MEMBER, staff_only=staff_only) == member
    assert allowed(policy, BOSS, staff_only=staff_only) == boss


def test_allow_is_given_what_the_session_names(monitor: MetricsMonitor) -> None:
    handlers = Handlers(monitor, session(lambda name: name == "ann"))
    assert ask(handlers, "/current", identity=lambda: "ann").status == 200
    assert ask(handlers, "/current", identity=lambda: "eve").status == 401
    assert ask(handlers, "/current").status == 401


# --- resetting ----------------------------------------------------------------------------------

POLICIES: dict[str, tuple[Callable[[], Policy | None], dict[str, str]]] = {
    "default": (lambda: None, {}),
    "session": (session, {}),
    "public": (public, {}),
    "basic": (lambda: basic("ann", "x"), {"authorization": "Basic YW5uOng="}),
    "own": (lambda: lambda request: True, {}),
    "token": (lambda: token(SECRET), RIGHT),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("rule", [True, "token", False])
def test_reset_is_a_permission_of_its_own(
    monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch, name: str, rule: Any
) -> None:
    monkeypatch.setenv("METRICSMW_TOKEN", SECRET)
    make, headers = POLICIES[name]
    handlers = Handlers(monitor, make(), reset=rule)
    ann: Any = lambda: "ann"  # noqa: E731
    monitor.record_request(1.0)
    assert ask(handlers, "/current", "GET", "", ann, **headers).status == 200
    answer = ask(handlers, "/reset", "POST", "", ann, **headers)
    may = rule is True or (rule == "token" and name == "token")
    assert answer.status == (200 if may else 403)
    assert monitor.total_requests == (0 if may else 1)
    # The token itself, whatever the policy takes.
    answer = ask(handlers, "/reset", "POST", "", ann, **RIGHT)
    takes = name in ("default", "token") or (rule == "token")
    if rule is False:
        assert answer.status in (401, 403)
    elif takes:
        assert answer.status == 200
        assert monitor.total_requests == 0
    if rule == "token":
        by_cookie = signed_in(handlers)
        own_page = {**by_cookie, "sec_fetch_site": "same-origin"}
        assert ask(handlers, "/reset", "POST", "", ann, **own_page).status == 200
        other = {**by_cookie, "sec_fetch_site": "cross-site"}
        assert ask(handlers, "/reset", "POST", "", ann, **other).status == 403


@pytest.mark.parametrize("rule", [None, "Token", "never", 1, 0, []])
def test_what_is_no_rule_for_resets(monitor: MetricsMonitor, rule: Any) -> None:
    with pytest.raises(ValueError, match=r'^reset must be True, "token" or False, got '):
        Handlers(monitor, reset=rule)


@pytest.mark.parametrize(
    ("policy", "headers", "user", "said"),
    [
        (None, {}, "ann", "by user 'ann'"),
        (session(), {}, "ann\nmetricsmw: all is well", r"by user 'ann\nmetricsmw: all is well'"),
        (token(SECRET), RIGHT, None, "by whoever has the token"),
        (basic("ann", "x"), {"authorization": "Basic YW5uOng="}, None, "by user 'ann'"),
        (public(), {}, "ann", "by somebody, as all are let in"),
        (lambda request: True, {}, None, "by whom the application's policy let in"),
        (lambda request: request.identity(), {}, "ann", "by user 'ann'"),
    ],
)
def test_a_reset_says_who_did_it(
    monitor: MetricsMonitor,
    caplog: pytest.LogCaptureFixture,
    policy: Policy | None,
    headers: dict[str, str],
    user: str | None,
    said: str,
) -> None:
    caplog.set_level(logging.INFO, "metricsmw")
    handlers = Handlers(monitor, policy)
    assert ask(handlers, "/reset", "POST", "", lambda: user, **headers).status == 200
    (record,) = [each for each in caplog.records if "reset" in each.getMessage()]
    assert record.getMessage() == f"metricsmw: counts were reset {said}"


# --- rebound names ------------------------------------------------------------------------------

OWN = [
    *("localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "10.1.2.3", "web", "web:80"),
    *("metrics.svc.cluster.local", "app.localhost:8050", "testserver", "metrics.internal"),
    *("app.example", "APP.example:8050", "app.example.", "app.example:8050"),
]
FOREIGN = [
    *("evil.example", "evil.example:8000", "sub.app.example", "app.example.evil.example", ""),
    *(
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "[::1",
        "app.example@evil.example",
        ":80",
    ),
    *("evil.example#localhost", "x.local.evil.example", "localhost, evil.example"),
]


@pytest.mark.parametrize(
    ("host", "status"), [*((host, 200) for host in OWN), *((host, 403) for host in FOREIGN)]
)
@pytest.mark.parametrize("site", [{}, {"sec_fetch_site": "same-origin"}])
def test_what_is_open_to_all_is_not_reset_by_a_rebound_name(
    monitor: MetricsMonitor, host: str, status: int, site: dict[str, str]
) -> None:
    monitor.record_request(1.0)
    handlers = Handlers(monitor, public(hosts=["app.example"]))
    assert ask(handlers, "/current", host=host).status == 200
    answer = ask(handlers, "/reset", "POST", host=host, **site)
    assert answer.status == status
    assert monitor.total_requests == (0 if status == 200 else 1)


def test_no_door_answers_a_stranger_in_any_other_way(monitor: MetricsMonitor) -> None:
    """All policies, all routes, all methods: who proves nothing is refused alike."""
    made = [make() for make, _ in POLICIES.values()]
    for policy, path, method in itertools.product(
        [each for each in made if not hasattr(each, "hosts")][:3], GUARDED, ("GET", "POST", "PUT")
    ):
        assert_refused(ask(Handlers(monitor, policy), path, method))
