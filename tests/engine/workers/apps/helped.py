"""An app that starts a helper process while it is imported."""

from __future__ import annotations

import multiprocessing
import time

from apps.raw_wsgi import app as app

multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True).start()
