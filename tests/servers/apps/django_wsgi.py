"""Django's WSGI door."""

from django.core.wsgi import get_wsgi_application
from metricsmw.adapters import wrap

from apps import django_site  # noqa: F401  (settings first)

app = get_wsgi_application()
app = wrap(app)
