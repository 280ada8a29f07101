"""Get real metrics engines for tests: Prometheus and VictoriaMetrics as Debian packages them.

    python tests/kits/get_engines.py        into a folder of the user's cache, once

- Packages are downloaded and unpacked, never installed: the engines are static programs.
- The folder is $TEST_ENGINES, else `metricsmw-engines` in $XDG_CACHE_HOME or ~/.cache. In it each
  package lies under the name of its suite.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kits.debian import apt

SUITES = ("trixie", "forky")
PACKAGES = ("prometheus", "promtool", "victoria-metrics")


def folder() -> Path:
    """Return the folder in which the unpacked packages lie."""
    if chosen := os.environ.get("TEST_ENGINES"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metricsmw-engines"


def get_all() -> None:
    """Download and unpack each package of each suite that is not there yet."""
    for suite in SUITES:
        if wanted := [p for p in PACKAGES if not (folder() / suite / p).is_dir()]:
            _get(suite, wanted)


def _get(suite: str, packages: Sequence[str]) -> None:
    """Download packages of a Debian suite and unpack each into `folder() / suite / package`."""
    target = folder() / suite
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as name:
        work = Path(name)
        environ = apt(work, suite)
        (work / "debs").mkdir()
        command = ["apt-get", "-qq", "download", *packages]
        subprocess.run(command, env=environ, cwd=work / "debs", check=True)
        for package in packages:
            (deb,) = (work / "debs").glob(f"{package}_*.deb")
            subprocess.run(["dpkg-deb", "--extract", deb, work / package], check=True)
            # As a whole, so that a folder which is there is complete.
            (work / package).rename(target / package)


if __name__ == "__main__":
    get_all()
    print(folder())
