"""The notification recipes of docs/alerts.md, each sent to a local receiver over a real connection.

Only the way is bent: connections to a recipe's host go to a receiver on loopback instead.
"""

from __future__ import annotations

import re
import smtplib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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


def tell(alerter: Make, monitor: MetricsMonitor, url: str) -> None:
    """Fire. (Not recover: Apprise waits some seconds between two messages to most services.)"""
    one = alerter(rules=["error_rate_pct > 5 critical"], notify=url, link="https://h/m/")
    monitor.record_request(1.0, is_error=True)
    one.check()
    assert one.flush()


def test_there_are_recipes() -> None:
    assert len(MAIL) == 2
    assert len(WEB) >= 10


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
        (text,) = receiver.bodies
    assert set(hosts) == {HOSTS.get(name) or urlsplit(url).hostname}
    for part in ("ALERT: ERROR_RATE", "error_rate_pct is 100", "https://h/m/"):
        assert part in text


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
        (mail,) = mailbox.mails
    with_login = "login" in name
    assert asked == [(host, 587 if with_login else 25)]
    assert mailbox.logins == (["user"] if with_login else [])
    assert mailbox.encrypted == [with_login]
    assert "ops@example.com" in mail["To"]
    assert "app@example.com" in mail["From"]
    assert mail["Subject"].startswith("ALERT: ERROR_RATE (critical)")
    assert "error_rate_pct is 100" in text_of(mail)
