"""An ASGI app below a bridge to WSGI, and below one to a function of a cloud."""

from a2wsgi import ASGIMiddleware

from apps.starlette_app import app as inner

app = ASGIMiddleware(inner)  # type: ignore[arg-type]
