"""Which build of Python this is, as far as counting depends on it."""

from __future__ import annotations

import sys

FREE_THREADED = "free-threading build" in sys.version
"""Whether this build can run without a GIL.

It is asked of the build, as a GIL that is on may be off a moment later: an extension that is being
imported turns it on, for good or for as long as that takes.
"""
NEEDS_LOCK = FREE_THREADED or sys.implementation.name != "cpython"
"""Whether additions to lanes have to take a lock."""
