"""Receivers by Apprise URL. Only this file imports Apprise (extra ``metricsmw[alerts]``)."""

from __future__ import annotations

import hashlib
import re

from metricsmw.alerts.alert import Alert, Receiver
from metricsmw.extras import require


def apprise_receivers(urls: str) -> list[Receiver]:
    """Return one receiver for each service that Apprise finds in a text of URLs.

    Args:
        urls: Apprise URLs. Behind the scheme they are full of secrets, so no message shows more.

    Raises:
        ModuleNotFoundError: Apprise is not installed.
        ValueError: Apprise does not know a URL.
    """
    scheme = re.match(r"[A-Za-z][\w+.-]*(?=:)", urls)
    name = f"{scheme[0]}://…" if scheme else "the URL"
    require(f"notify={name!r}", "alerts")
    import apprise

    services = apprise.Apprise()
    if not services.add(urls):
        raise ValueError(f"Apprise cannot send to {name}: unknown service, or not its URL's form")
    kinds = {
        "info": apprise.NotifyType.INFO,
        "warning": apprise.NotifyType.WARNING,
        "critical": apprise.NotifyType.FAILURE,
    }

    def receiver(service: apprise.NotifyBase) -> Receiver:
        sender = apprise.Apprise()
        sender.add(service)

        def receive(alert: Alert) -> None:
            firing = alert.state == "firing"
            sent = sender.notify(
                body=str(alert),
                title=alert.title,
                notify_type=kinds[alert.severity] if firing else apprise.NotifyType.SUCCESS,
                # Else a service that wants HTML takes the `<id>` of a route for a tag.
                body_format=apprise.NotifyFormat.TEXT,
            )
            if not sent:
                raise ConnectionError("Apprise could not deliver it; its own log says why")

        return Receiver(name, receive, f"{name} {hashlib.sha256(urls.encode()).hexdigest()[:16]}")

    # One each, as those that took a message are not to get it again because another did not.
    return [receiver(service) for service in services]
