"""The policies, one by one: what lets in, what does not, and that no input makes them raise."""

from __future__ import annotations

import base64
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsmw.adapters.api.policies import as_policy
from metricsmw.adapters.auth import (
    Grant,
    Policy,
    Request,
    basic,
    public,
    session,
    token,
)

UMLAUT = "p\N{LATIN SMALL LETTER A WITH DIAERESIS}ss"
SNOWMAN = "p\N{SNOWMAN}ss"


def request(authorization: str | None = None, user: str | None = None) -> Request:
    headers = {} if authorization is None else {"authorization": authorization}
    return Request("GET", "/current", "", headers, lambda: user)


def received(text: str) -> str:
    """Return a header value as hosts hand it over when a client sent it as UTF-8."""
    return text.encode().decode("latin-1")


def encoded(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


class TestToken:
    @pytest.mark.parametrize(
        "authorization",
        ["Bearer secret", "bearer secret", "BEARER secret", "Bearer   secret", "Bearer secret\t"],
    )
    def test_right(self, authorization: str) -> None:
        assert token("secret")(request(authorization)) is Grant.EXPLICIT

    @pytest.mark.parametrize(
        "authorization",
        [
            None,
            "",
            "Bearer",
            "Bearer ",
            "Bearer secre",
            "Bearer secrets",
            "Bearer Secret",
            "Bearer secret secret",
            "Bearer secret, Bearer secret",
            "Bearersecret",
            "Bearer:secret",
            "secret",
            " Bearer secret",
            "Token secret",
            "Basic secret",
            "Basic " + encoded("", "secret"),
            "Bearer " + UMLAUT,
            "Bearer \udcff\ud800",
        ],
    )
    def test_wrong(self, authorization: str | None) -> None:
        assert token("secret")(request(authorization, user="ann")) is None

    @pytest.mark.parametrize("secret", [UMLAUT, SNOWMAN, "a b", "\N{NO-BREAK SPACE}\xe0"])
    def test_secret_beyond_ascii_comes_as_utf_8(self, secret: str) -> None:
        assert token(secret)(request("Bearer " + received(secret))) is Grant.EXPLICIT
        assert token(secret)(request("Bearer " + received(secret + "x"))) is None

    def test_secret_beyond_ascii_comes_as_latin_1(self) -> None:
        assert token(UMLAUT)(request("Bearer " + UMLAUT)) is Grant.EXPLICIT

    @pytest.mark.parametrize("secret", ["", None, b"secret", 7])
    def test_no_secret(self, secret: str) -> None:
        with pytest.raises(ValueError, match=r"^secret must be a non-empty string$"):
            token(secret)


class TestBasic:
    @pytest.mark.parametrize(
        ("user", "password"),
        [("ann", "secret"), ("ann", "se:cret"), (UMLAUT, SNOWMAN), ("a b", " c ")],
    )
    @pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC"])
    def test_right(self, scheme: str, user: str, password: str) -> None:
        asked = request(f"{scheme} {encoded(user, password)}")
        assert basic(user, password)(asked) is Grant.AMBIENT

    @pytest.mark.parametrize(
        "authorization",
        [
            None,
            "",
            "Basic",
            "Basic " + encoded("ann", ""),
            "Basic " + encoded("ann", "Secret"),
            "Basic " + encoded("ann", "secret "),
            "Basic " + encoded("bob", "secret"),
            "Basic " + encoded("annsecret", ""),
            "Basic " + encoded("a", "nn:secret"),
            "Basic " + encoded("ann", "secret").rstrip("="),
            "Basic " + encoded("ann", "secret") + "!",
            "Basic ann:secret",
            "Basic " + UMLAUT,
            "Basic \udcff\ud800",
            "Bearer " + encoded("ann", "secret"),
        ],
    )
    def test_wrong(self, authorization: str | None) -> None:
        assert basic("ann", "secret")(request(authorization, user="ann")) is None

    @pytest.mark.parametrize(
        ("user", "password", "message"),
        [
            ("", "secret", "user must be a non-empty string"),
            (None, "secret", "user must be a non-empty string"),
            ("ann", "", "password must be a non-empty string"),
            ("ann", None, "password must be a non-empty string"),
            ("a:nn", "secret", "user must not contain a colon"),
        ],
    )
    def test_settings(self, user: str, password: str, message: str) -> None:
        with pytest.raises(ValueError, match=f"^{message}$"):
            basic(user, password)


class TestSession:
    @pytest.mark.parametrize(
        ("user", "grant"), [("ann", Grant.AMBIENT), ("0", Grant.AMBIENT), (None, None), ("", None)]
    )
    def test_table(self, user: str | None, grant: Grant | None) -> None:
        assert session()(request("Bearer secret", user)) is grant


class TestPublic:
    def test_everybody(self) -> None:
        assert public()(request()) is Grant.AMBIENT


class TestDefault:
    """`auth=None`: the session, or the token of METRICSMW_TOKEN as it is at the time."""

    @pytest.mark.parametrize(
        ("variable", "authorization", "user", "grant"),
        [
            (None, None, None, None),
            (None, "Bearer secret", None, None),
            (None, "Bearer ", None, None),
            (None, None, "ann", Grant.AMBIENT),
            ("", None, None, None),
            ("", "Bearer ", None, None),
            ("", "Bearer", "ann", None),
            (" \n", "Bearer  \n", None, None),
            ("secret", None, None, None),
            ("secret", "Bearer secret", None, Grant.EXPLICIT),
            ("secret", "bearer secret", "ann", Grant.EXPLICIT),
            ("secret", "Bearer wrong", None, None),
            ("secret", "Bearer wrong", "ann", None),
            ("secret", "Token secret", "ann", None),
            # A browser's answer to a proxy in front of the app.
            ("secret", "Basic YW5uOnNlY3JldA==", "ann", Grant.AMBIENT),
            ("secret\n", "Bearer secret", None, Grant.EXPLICIT),
            (SNOWMAN, "Bearer " + received(SNOWMAN), None, Grant.EXPLICIT),
        ],
    )
    def test_table(
        self,
        monkeypatch: pytest.MonkeyPatch,
        variable: str | None,
        authorization: str | None,
        user: str | None,
        grant: Grant | None,
    ) -> None:
        monkeypatch.delenv("METRICSMW_TOKEN", raising=False)
        policy = as_policy(None)
        if variable is not None:
            monkeypatch.setenv("METRICSMW_TOKEN", variable)
        assert policy(request(authorization, user)) is grant

    def test_variable_is_read_each_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        policy = as_policy(None)
        monkeypatch.setenv("METRICSMW_TOKEN", "old")
        assert policy(request("Bearer old")) is Grant.EXPLICIT
        monkeypatch.setenv("METRICSMW_TOKEN", "new")
        assert policy(request("Bearer old")) is None
        assert policy(request("Bearer new")) is Grant.EXPLICIT
        monkeypatch.delenv("METRICSMW_TOKEN")
        assert policy(request("Bearer new")) is None


class TestAnswers:
    """What the answers of a policy of one's own mean."""

    @pytest.mark.parametrize(
        ("verdict", "grant"),
        [
            (True, Grant.AMBIENT),
            ("ann", Grant.AMBIENT),
            (1, Grant.AMBIENT),
            (object(), Grant.AMBIENT),
            (Grant.AMBIENT, Grant.AMBIENT),
            (Grant.EXPLICIT, Grant.EXPLICIT),
            (False, None),
            (None, None),
            ("", None),
            (0, None),
            ([], None),
        ],
    )
    def test_table(self, verdict: object, grant: Grant | None) -> None:
        assert Grant.of(verdict) is grant

    @pytest.mark.parametrize("verdict", [iter([True]), filter(None, [True]), (x for x in "y")])
    def test_what_is_no_answer_yet(self, verdict: object) -> None:
        with pytest.raises(TypeError, match=f"not {type(verdict).__name__}$"):
            Grant.of(verdict)

    def test_a_policy_of_ones_own_is_taken_as_it_is(self) -> None:
        def own(request: Request) -> bool:
            return True

        assert as_policy(own) is own


POLICIES = [token("secret"), basic("ann", "secret"), session(), public(), as_policy(None)]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
@given(text=st.text(st.characters()), scheme=st.sampled_from(["Bearer ", "Basic ", ""]))
def test_no_input_makes_a_policy_raise(policy: Policy, text: str, scheme: str) -> None:
    # Whoever guesses the secret has earned it.
    assert policy(request(scheme + text)) in (None, Grant.AMBIENT, Grant.EXPLICIT)


@given(secret=st.text(min_size=1), other=st.text())
def test_a_token_lets_in_itself_and_nothing_else(secret: str, other: str) -> None:
    secret, other = secret.strip() or "x", other.strip()
    assert token(secret)(request("Bearer " + received(secret))) is Grant.EXPLICIT
    if other not in (secret, received(secret)):
        assert token(secret)(request("Bearer " + other)) is None


@pytest.mark.parametrize(
    ("policy", "authorization"),
    [
        (token("secret"), "Bearer wrong"),
        (basic("ann", "secret"), "Basic " + encoded("ann", "wrong")),
        (as_policy(None), "Bearer wrong"),
    ],
)
def test_secrets_are_compared_in_constant_time(
    monkeypatch: pytest.MonkeyPatch, policy: Policy, authorization: str
) -> None:
    monkeypatch.setenv("METRICSMW_TOKEN", "secret")
    compared: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, wanted: bytes) -> bool:
        compared.append((given, wanted))
        return True

    # Whatever this says decides: nothing else looks at the secret.
    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert isinstance(policy(request(authorization)), Grant)
    assert all(b"wrong" in given and b"secret" in wanted for given, wanted in compared)
    assert compared


@pytest.mark.parametrize("policy", [token("secret"), basic("ann", "secret")])
def test_a_policy_does_not_show_its_secret(policy: Policy) -> None:
    assert "secret" not in repr(policy)
