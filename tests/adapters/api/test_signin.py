"""Signing in from a browser: a token for a cookie that ends.

The cookie cannot be made up, and is of no use to other sites.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from http.cookies import SimpleCookie

import pytest

from metricsmw import MetricsMonitor
from metricsmw.adapters.api import signin
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.api.messages import Request, Response
from metricsmw.adapters.auth import Policy, basic, public, session, token
from metricsmw.clock import ManualClock

WRONG = {"authorization": "Bearer wrong"}
RIGHT = {"authorization": "Bearer secret"}


@pytest.fixture
def monitor(clock: ManualClock) -> Iterator[MetricsMonitor]:
    with MetricsMonitor(clock=clock) as monitor:
        yield monitor


@pytest.fixture
def handlers(monitor: MetricsMonitor) -> Handlers:
    return Handlers(monitor, token("secret"))


@pytest.fixture(autouse=True)
def no_tries_yet() -> Iterator[None]:
    signin.LOGIN_RATE_LIMIT.clear()
    yield
    signin.LOGIN_RATE_LIMIT.clear()


def ask(handlers: Handlers, path: str, headers: dict[str, str], method: str = "GET") -> Response:
    return handlers.handle(Request(method, path, "", headers))


def sign_in(handlers: Handlers, headers: dict[str, str] = RIGHT) -> Response:
    return ask(handlers, "/signin", headers, "POST")


def set_cookie(response: Response) -> str:
    return dict(response.headers)["Set-Cookie"]


def cookie_of(response: Response) -> dict[str, str]:
    return {"cookie": set_cookie(response).partition(";")[0]}


def test_a_token_for_a_cookie(handlers: Handlers) -> None:
    response = sign_in(handlers)
    assert response.status == 200
    assert json.loads(response.body)["success"] is True
    cookie = SimpleCookie(set_cookie(response))
    (name,) = cookie
    assert re.fullmatch("metricsmw_[0-9a-f]{8}", name)
    assert cookie[name]["httponly"] is True
    assert cookie[name]["samesite"] == "Strict"
    assert cookie[name]["max-age"] == str(12 * 3600)
    assert not cookie[name]["path"]
    assert "secret" not in set_cookie(response)
    assert ask(handlers, "/current", cookie_of(response)).status == 200
    other = {"cookie": f"a=b; {cookie_of(response)['cookie']}; c=d"}
    assert ask(handlers, "/current", other).status == 200


def test_secure_where_the_browser_came_by_https(handlers: Handlers) -> None:
    host = {"host": "example.org"}
    by_https = sign_in(handlers, {**RIGHT, **host, "origin": "https://example.org"})
    by_http = sign_in(handlers, {**RIGHT, **host, "origin": "http://example.org"})
    assert set_cookie(by_https).endswith("; Secure")
    assert "Secure" not in set_cookie(by_http)


def test_by_the_environment(monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = Handlers(monitor)
    assert sign_in(handlers).status == 401
    monkeypatch.setenv("METRICSMW_TOKEN", "secret\n")
    response = sign_in(handlers)
    assert response.status == 200
    assert ask(handlers, "/current", cookie_of(response)).status == 200
    monkeypatch.setenv("METRICSMW_TOKEN", "another")
    assert ask(handlers, "/current", cookie_of(response)).status == 401


def test_a_token_of_any_text(monitor: MetricsMonitor) -> None:
    handlers = Handlers(monitor, token("pässwörd €"))
    sent = "pässwörd €".encode().decode("latin-1")
    response = sign_in(handlers, {"authorization": f"Bearer {sent}"})
    assert response.status == 200
    assert ask(handlers, "/current", cookie_of(response)).status == 200


@pytest.mark.parametrize("policy", [session(), public(), basic("ann", "secret"), bool])
def test_no_token_no_signing_in(monitor: MetricsMonitor, policy: Policy | None) -> None:
    handlers = Handlers(monitor, policy)
    assert sign_in(handlers).status == 404
    assert ask(handlers, "/signout", {}, "POST").status == 404


def test_what_does_not_sign_in(handlers: Handlers) -> None:
    for headers in (WRONG, {}, {"authorization": "Basic secret"}):
        response = sign_in(handlers, headers)
        assert response.status == 401
        assert "Set-Cookie" not in dict(response.headers)
    assert ask(handlers, "/signin", RIGHT).status == 405


def test_what_is_no_cookie_of_ours(handlers: Handlers, monitor: MetricsMonitor) -> None:
    good = cookie_of(sign_in(handlers))["cookie"]
    name, _, value = good.partition("=")
    other = cookie_of(sign_in(Handlers(monitor, token("other")), {"authorization": "Bearer other"}))
    forged = other["cookie"].partition("=")[2]
    bad = [name, f"{name}=", f"{name}=in", f"x={value}", f"{name}={value}x", f"{name}={forged}"]
    bad += [f"{name}={value.replace('in', 'on')}", f"{name}=é.é.é", f"{name}={'.' * 5000}"]
    for cookie in bad:
        assert ask(handlers, "/current", {"cookie": cookie}).status == 401, cookie


def test_it_ends(handlers: Handlers, monkeypatch: pytest.MonkeyPatch) -> None:
    cookie = cookie_of(sign_in(handlers))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + signin.LIFETIME_SECONDS - 60)
    assert ask(handlers, "/current", cookie).status == 200
    monkeypatch.setattr(time, "time", lambda: now + signin.LIFETIME_SECONDS + 60)
    assert ask(handlers, "/current", cookie).status == 401


def test_signing_out_takes_the_cookie(handlers: Handlers) -> None:
    cookie = cookie_of(sign_in(handlers))
    response = ask(handlers, "/signout", cookie, "POST")
    assert response.status == 200
    (morsel,) = SimpleCookie(set_cookie(response)).values()
    assert (morsel.key, morsel.value) == (cookie["cookie"].partition("=")[0], "")
    assert morsel["max-age"] == "0"


@pytest.mark.parametrize("headers", [{}, {"cookie": "metricsmw_00000000=x"}])
def test_who_is_not_signed_in_learns_nothing_from_signing_out(
    handlers: Handlers, headers: dict[str, str]
) -> None:
    response = ask(handlers, "/signout", headers, "POST")
    assert response.status == 200
    assert "Set-Cookie" not in dict(response.headers)


@pytest.mark.parametrize("path", ["/reset", "/signin", "/signout"])
def test_other_sites_cannot_use_it(handlers: Handlers, path: str) -> None:
    cookie = cookie_of(sign_in(handlers))
    assert ask(handlers, path, {**cookie, "sec-fetch-site": "cross-site"}, "POST").status == 403
    own = {**cookie, **(RIGHT if path == "/signin" else {}), "sec-fetch-site": "same-origin"}
    assert ask(handlers, path, own, "POST").status == 200
