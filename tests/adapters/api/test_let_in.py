"""Who is let in, and from where: policies, identities, other sites."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kits.handlers import (
    GUARDED,
    ROUTES,
    STATUS,
    UNKNOWN,
    ask,
    assert_error,
    assert_refused,
    headers_of,
)

from metricsmw import MetricsMonitor
from metricsmw.adapters.api.admission import CROSS_SITE_REFUSED
from metricsmw.adapters.api.handlers import Handlers
from metricsmw.adapters.api.messages import Request, Response
from metricsmw.adapters.auth import Policy, basic, public, session, token


class TestLetIn:
    """All that holds data needs it but `/health`, and nobody else learns what exists."""

    @pytest.mark.parametrize(
        ("policy", "challenge"),
        [
            (None, 'Bearer realm="metrics"'),
            (session(), None),
            (token("secret"), 'Bearer realm="metrics"'),
            (basic("ann", "secret"), 'Basic realm="metrics", charset="UTF-8"'),
            (lambda request: False, None),
            (lambda request: None, None),
            (lambda request: "", None),
        ],
    )
    @pytest.mark.parametrize("path", [*GUARDED, *UNKNOWN])
    def test_refused_everywhere_alike(
        self,
        monitor: MetricsMonitor,
        monkeypatch: pytest.MonkeyPatch,
        policy: Policy | None,
        challenge: str | None,
        path: str,
    ) -> None:
        monkeypatch.delenv("METRICSMW_TOKEN", raising=False)
        handlers = Handlers(monitor, policy)
        monitor.record_request(1.0)
        for method in ("GET", "POST", "DELETE"):
            response = ask(handlers, path, method, sec_fetch_site="cross-site")
            assert_refused(response)
            assert headers_of(response).get("www-authenticate") == challenge
        assert monitor.total_requests == 1

    @pytest.mark.parametrize("path", ["", "/"])
    def test_a_browser_is_refused_with_the_page_to_sign_in(
        self, handlers: Handlers, monitor: MetricsMonitor, path: str
    ) -> None:
        browser = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
        let_in = ask(handlers, path, **browser)
        refused = ask(Handlers(monitor, basic("ann", "secret")), path, **browser)
        assert (let_in.status, refused.status) == (200, 401)
        headers = headers_of(refused)
        assert headers.pop("www-authenticate") == 'Basic realm="metrics", charset="UTF-8"'
        assert headers.keys() == headers_of(let_in).keys()
        assert headers["content-type"] == "text/html; charset=utf-8"
        assert b"<main" in refused.body
        head = ask(Handlers(monitor, token("secret")), path, "HEAD", **browser)
        assert (head.status, head.body) == (401, b"")
        assert_refused(ask(Handlers(monitor, token("secret")), path, "POST", **browser))

    @pytest.mark.parametrize("policy", [None, token("secret"), lambda request: 1 / 0])
    def test_health_is_open(self, monitor: MetricsMonitor, policy: Policy | None) -> None:
        handlers = Handlers(monitor, policy)
        assert ask(handlers, "/health").status == 200
        assert ask(handlers, "/health", "HEAD").status == 200
        assert ask(handlers, "/health", "POST").status == 405
        assert ask(handlers, "/health/").status != 200

    @pytest.mark.parametrize("path", GUARDED)
    def test_let_in(self, monitor: MetricsMonitor, path: str) -> None:
        handlers = Handlers(monitor, token("secret"))
        response = ask(handlers, path, ROUTES[path], authorization="Bearer secret")
        assert response.status == STATUS.get(path, 200)
        assert "www-authenticate" not in headers_of(response)

    def test_default_takes_session_or_token(
        self, monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("METRICSMW_TOKEN", "secret")
        handlers = Handlers(monitor)
        assert ask(handlers, "/current").status == 401
        assert "www-authenticate" in headers_of(ask(handlers, "/current"))
        assert ask(handlers, "/current", authorization="Bearer secret").status == 200
        assert ask(handlers, "/current", identity=lambda: "ann").status == 200

    @pytest.mark.parametrize(
        ("policy", "path", "asked"),
        [
            (session(), "/current", 1),
            (session(), "/nope", 1),
            (None, "/current", 1),
            (lambda request: request.identity() == request.identity(), "/current", 1),
            (token("secret"), "/current", 0),
            (basic("ann", "secret"), "/current", 0),
            (public(), "/current", 0),
            (lambda request: True, "/current", 0),
            (session(), "/health", 1),
        ],
    )
    def test_identity_is_asked_only_when_needed(
        self, monitor: MetricsMonitor, policy: Policy | None, path: str, asked: int
    ) -> None:
        asks: list[bool] = []
        ask(Handlers(monitor, policy), path, identity=lambda: asks.append(True))
        assert len(asks) == asked

    @pytest.mark.parametrize(
        ("auth", "got"), [("secret", "str"), (7, "int"), (True, "bool"), ({}, "dict")]
    )
    def test_what_is_no_policy(self, monitor: MetricsMonitor, auth: Policy, got: str) -> None:
        with pytest.raises(TypeError, match=f"got {got}$") as caught:
            Handlers(monitor, auth)
        assert "secret" not in str(caught.value).replace("token(secret)", "")

    @pytest.mark.parametrize("factory", [session, token, basic, public])
    def test_a_policy_that_was_not_made(self, monitor: MetricsMonitor, factory: Policy) -> None:
        with pytest.raises(TypeError, match="make one when they are called"):
            Handlers(monitor, factory)


BY_BROWSER: dict[str, Callable[[], Policy]] = {
    "session": session,
    "public": lambda: public(hosts=["APP.example"]),
    "basic": lambda: basic("ann", "secret"),
    "callable": lambda: lambda request: True,
}
CROSS_SITE = [
    {"sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "same-site"},
    {"sec_fetch_site": ""},
    {"sec_fetch_site": "cross-site", "origin": "https://app.example"},
    {"sec_fetch_site": "same-origin", "origin": "null"},
    {"sec_fetch_site": "none", "origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "https://evil.example"},
    {"origin": "https://app.example.evil.example"},
    {"origin": "https://sub.app.example"},
    {"origin": "https://app.example:8443"},
    {"origin": "http://app.example:443"},
    {"origin": "https://app.example, https://evil.example"},
    {"origin": "app.example"},
    {"origin": "ftp://app.example"},
    {"origin": "https://[app.example"},
    {"origin": "https://app.example:x"},
    {"origin": "https://app.example", "host": ""},
    {"origin": "https://app.example", "host": "app.example:8443"},
    {"origin": "https://none", "host": ""},
    {"origin": "https://", "host": ""},
]
OWN_PAGE = [
    {},
    {"sec_fetch_site": "same-origin"},
    {"sec_fetch_site": "none"},
    {"origin": "https://app.example"},
    {"origin": "http://app.example"},
    {"origin": "https://app.example:443"},
    {"origin": "https://APP.example"},
    {"origin": "https://app.example", "host": "app.example:443"},
    {"origin": "http://app.example", "host": "APP.EXAMPLE:80"},
    {"origin": "http://app.example:8050", "host": "app.example:8050"},
    {"origin": "http://[::1]:8050", "host": "[::1]:8050"},
    {"origin": "https://app.example", "sec_fetch_site": "same-origin"},
    # Behind a proxy that asks by an address of its own.
    {"origin": "https://app.example", "sec_fetch_site": "same-origin", "host": "10.0.0.7:8000"},
]


class TestCrossSite:
    @staticmethod
    def reset(monitor: MetricsMonitor, policy: Policy | None, headers: dict[str, str]) -> Response:
        monitor.record_request(1.0)
        sent = {"host": "app.example", "authorization": "Basic YW5uOnNlY3JldA=="} | headers
        named = {name.replace("_", "-"): value for name, value in sent.items()}
        return Handlers(monitor, policy).handle(Request("POST", "/reset", "", named, lambda: "ann"))

    @pytest.mark.parametrize("policy", BY_BROWSER)
    @pytest.mark.parametrize("headers", CROSS_SITE, ids=str)
    def test_refused(self, monitor: MetricsMonitor, policy: str, headers: dict[str, str]) -> None:
        response = self.reset(monitor, BY_BROWSER[policy](), headers)
        assert_error(response, 403, CROSS_SITE_REFUSED)
        assert monitor.total_requests == 1

    @pytest.mark.parametrize("policy", BY_BROWSER)
    @pytest.mark.parametrize("headers", OWN_PAGE, ids=str)
    def test_own_page(self, monitor: MetricsMonitor, policy: str, headers: dict[str, str]) -> None:
        assert self.reset(monitor, BY_BROWSER[policy](), headers).status == 200
        assert monitor.total_requests == 0

    @pytest.mark.parametrize("headers", CROSS_SITE, ids=str)
    @pytest.mark.parametrize("policy", [token("secret"), None])
    def test_a_token_is_exempt(
        self,
        monitor: MetricsMonitor,
        monkeypatch: pytest.MonkeyPatch,
        policy: Policy | None,
        headers: dict[str, str],
    ) -> None:
        monkeypatch.setenv("METRICSMW_TOKEN", "secret")
        headers = headers | {"authorization": "Bearer secret"}
        assert self.reset(monitor, policy, headers).status == 200
        assert monitor.total_requests == 0

    def test_a_wrong_token_beside_a_session_is_not(
        self, monitor: MetricsMonitor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("METRICSMW_TOKEN", "secret")
        headers = {"authorization": "Bearer wrong", "origin": "null"}
        assert self.reset(monitor, None, headers).status == 401

    @pytest.mark.parametrize("headers", CROSS_SITE, ids=str)
    def test_reading_is_not_refused(self, handlers: Handlers, headers: dict[str, str]) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        assert handlers.handle(Request("GET", "/current", "", named)).status == 200
