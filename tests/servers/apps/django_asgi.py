"""Django's ASGI door."""

from django.core.asgi import get_asgi_application
from metricsmw.adapters import wrap

from apps import django_site  # noqa: F401  (settings first)

app = get_asgi_application()
app = wrap(app)
