"""Django's ASGI door."""

from django.core.asgi import get_asgi_application

from apps import django_site  # noqa: F401  (settings first)
from metricsmw.adapters import wrap

app = get_asgi_application()
app = wrap(app)
