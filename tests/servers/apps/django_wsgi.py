"""Django's WSGI door."""

from django.core.wsgi import get_wsgi_application

from apps import django_site  # noqa: F401  (settings first)
from metricsmw.adapters import wrap

app = get_wsgi_application()
app = wrap(app)
