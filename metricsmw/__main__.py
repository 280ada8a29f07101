"""`python -m metricsmw`: the `metricsmw` command."""

from __future__ import annotations

import sys

from metricsmw.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
