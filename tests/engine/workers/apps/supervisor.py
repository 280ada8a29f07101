"""Starts the command it is given twice, and waits for both."""

from __future__ import annotations

import subprocess
import sys

if __name__ == "__main__":
    for process in [subprocess.Popen(sys.argv[1:]) for _ in range(2)]:
        process.wait()
