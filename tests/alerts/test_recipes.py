"""The notification recipes of docs/alerts.md, each sent to a local receiver over a real connection.

Only the way is bent: connections to a recipe's host go to a receiver on loopback instead.
"""

from __future__ import annotations

import html
import re
import smtplib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import apprise
import pytest
import requests
import trustme
from kits.receivers import http_receiver, mail_receiver, text_of

from metricsmw import MetricsMonitor
from metricsmw.alerts import MetricsAlerter

PAGE = (Path(__file__).parents[2] / "docs" / "alerts.md").read_text()
SECTION = PAGE.split("\n## Whom to tell\n")[1].split("\n## ")[0]
RECIPES = dict(re.findall(r"^\| ([^|`]+) \| `(\w+://[^`]+)` \|", SECTION, re.MULTILINE))
MAIL = {name: url for name, url in RECIPES.items() if url.startswith("mailto")}
WEB = {name: url for name, url in RECIPES.items() if name not in MAIL}
# The hosts of services that run on no host of one's own.
HOSTS = {
    "Slack": "hooks.slack.com",
    "Discord": "discord.com",
    "Telegram": "api.telegram.org",
    "Google Chat": "chat.googleapis.com",
    "Pushover": "api.pushover.net",
    "PagerDuty": "events.pagerduty.com",
}

Make = Callable[..., MetricsAlerter]


RULE = "error_rate_pct > 5 on GET /items/<int:id> at least 1 critical"


def tell(alerter: Make, monitor: MetricsMonitor, url: str) -> None:
    """Fire, and recover."""
    one = alerter(rules=[RULE], notify=url, link="https://h/m/?a=1&b=2")
    monitor.record_request(1.0, route="/items/<int:id>", method="GET", status=500)
    for expected in ("firing", "resolved"):
        assert [alert.state for alert in one.check()] == [expected]
        assert one.flush()
        monitor.reset_statistics()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apprise waits some seconds between two messages to most services."""
    monkeypatch.setattr(apprise.NotifyBase, "throttle", lambda *args, **kwargs: None)


def test_there_are_recipes() -> None:
    assert len(MAIL) == 2
    assert len(WEB) >= 10


def as_shown(body: str) -> str:
    """Without what a service's markup takes for an escape; line breaks as such."""
    text = html.unescape(re.sub(r"\\\\(?=[^a-zA-Z\d\s])", "", body))
    return text.replace(r"\r", "").replace(r"\n", "\n").replace("\r", "")


@pytest.mark.parametrize(("name", "url"), WEB.items(), ids=WEB)
def test_a_service(
    alerter: Make,
    monitor: MetricsMonitor,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    url: str,
) -> None:
    hosts = []
    straight = requests.adapters.HTTPAdapter.send

    with http_receiver() as receiver:

        def bent(self: Any, request: requests.PreparedRequest, **options: Any) -> Any:
            address = urlsplit(str(request.url))
            hosts.append(address.hostname)
            request.url = address._replace(scheme="http", netloc=receiver.address).geturl()
            return straight(self, request, **options)

        monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", bent)
        tell(alerter, monitor, url)
        bodies = receiver.bodies
    assert set(hosts) == {HOSTS.get(name) or urlsplit(url).hostname}
    if name == "Telegram":  # which takes it for a tag and refuses the message
        assert not any("<int:id>" in body for body in bodies)
    firing, resolved = texts = list(map(as_shown, bodies))
    for part in ("ALERT: ERROR_RATE", "error_rate_pct is 100"):
        assert part in firing
    for part in ("RESOLVED: ERROR_RATE", "error_rate_pct is without data"):
        assert part in resolved
    for text in texts:
        assert "\nRoute: GET /items/<int:id>\nSeverity: critical\n" in text
        assert "https://h/m/?a=1&b=2" in text


@pytest.mark.parametrize(("name", "url"), MAIL.items(), ids=MAIL)
def test_mail(
    alerter: Make,
    monitor: MetricsMonitor,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    url: str,
) -> None:
    host = str(urlsplit(url).hostname)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    asked = []
    with mail_receiver(authority.issue_cert(host), {"user": "password"}) as mailbox:

        def bent(self: smtplib.SMTP, to: str, port: int, timeout: float) -> socket.socket:
            asked.append((to, port))
            return socket.create_connection(("127.0.0.1", mailbox.port), timeout)

        monkeypatch.setattr(smtplib.SMTP, "_get_socket", bent)
        tell(alerter, monitor, url)
        firing, resolved = mailbox.mails
    with_login = "login" in name
    assert asked == [(host, 587 if with_login else 25)] * 2
    assert mailbox.logins == ["user"] * 2 * with_login
    assert mailbox.encrypted == [with_login] * 2
    for mail in (firing, resolved):
        assert "ops@example.com" in mail["To"]
        assert "app@example.com" in mail["From"]
        lines = text_of(mail).splitlines()
        assert "Route: GET /items/<int:id>" in lines
        assert "Dashboard: https://h/m/?a=1&b=2" in lines
    assert firing["Subject"].startswith("ALERT: ERROR_RATE (critical), GET /items/<int:id> of ")
    assert resolved["Subject"].startswith("RESOLVED: ERROR_RATE (critical)")
    assert "error_rate_pct is 100 %, threshold > 5 %." in text_of(firing)
