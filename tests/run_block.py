"""Run one code block of the documentation as a user's module, and ask the app that it makes.

`python run_block.py BLOCK.py` fails where the block does. An app of its making must answer /health
under the path it gave; a part of a Django project (MIDDLEWARE, urlpatterns) must work in one.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
import types
from pathlib import Path
from typing import Any

import httpx

Names = dict[str, Any]


def main(block: Path) -> None:
    source = block.read_text()
    if "django" in source:
        set_up_django()
    names: Names = {"__name__": "block"}
    exec(compile(source, str(block), "exec"), names)
    if "MIDDLEWARE" in names:
        from metricsmw import get_metrics_monitor

        assert get(django_app(names), "/").status_code == 404
        assert get_metrics_monitor().total_requests == 1
        return
    if "urlpatterns" in names:
        app = django_app(names)
    else:
        app = names.get("application", names.get("app"))
    if app is not None:
        mount = re.search(r'path="(/[^"]+)"', source)
        answer = get(app, (mount[1] if mount else "/api/metrics") + "/health")
        assert answer.status_code == 200, answer
        assert answer.json()["status"] == "healthy", answer.text


def set_up_django() -> None:
    """Make a Django project with neither URLs nor middleware; a part of it may come later."""
    import django
    from django.conf import settings

    settings.configure(
        ALLOWED_HOSTS=["*"],
        MIDDLEWARE=[],
        ROOT_URLCONF="urls",
        SECRET_KEY="for the test only",
        SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    )
    sys.modules["urls"] = types.ModuleType("urls")
    vars(sys.modules["urls"])["urlpatterns"] = []
    django.setup()


def django_app(names: Names) -> Any:
    """Return the project with the parts of it that are in `names`."""
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application

    settings.MIDDLEWARE = names.get("MIDDLEWARE", [])
    vars(sys.modules["urls"])["urlpatterns"] = names.get("urlpatterns", [])
    return get_wsgi_application()


def get(app: Any, path: str) -> httpx.Response:
    """Return what `app`, WSGI or ASGI, answers."""
    base = "http://host"
    if inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(type(app).__call__):

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url=base) as client:
                return await client.get(path)

        return asyncio.run(ask())
    with httpx.Client(transport=httpx.WSGITransport(app=app), base_url=base) as client:
        return client.get(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
