"""The Django site by its other door."""

from __future__ import annotations

from .django_site import make_asgi, site

SITE = site(make_asgi, is_asgi=True)
