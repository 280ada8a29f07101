"""The name of the application that alerts come from: what was said, else what the server tells."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import PurePath

from metricsmw.engine.workers.processes import server_root
from metricsmw.engine.workers.surroundings import HERE
from metricsmw.formats import plain


def application_name(given: str = "") -> str:
    """Return the application's name.

    Args:
        given: The name as it was set; "" where it was not.

    Returns:
        That; or OTEL_SERVICE_NAME; or the app as the server's command line names it
        (``gunicorn shop.wsgi:app``), or the script (``manage.py``); or the working folder's name.
    """
    name = given or os.environ.get("OTEL_SERVICE_NAME", "").strip()
    name = name or _name_in(HERE.command(server_root().process.pid) or sys.argv) or _folder()
    return plain(name)  # names of files are any bytes


def _name_in(command: Sequence[str]) -> str:
    for word in command:
        word = word.strip("[]")  # as in a title, "gunicorn: worker [shop.wsgi:app]"
        module, colon, attribute = word.partition(":")
        # The app's module is loaded, as whoever asks is a part of it.
        if module in sys.modules and (attribute if colon else "." in module):
            return word
    script = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    name = PurePath(script).name
    return name if name.endswith(".py") and name != "__main__.py" else ""


def _folder() -> str:
    try:
        return PurePath(os.getcwd()).name
    except OSError:
        return ""
