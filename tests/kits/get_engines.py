"""Get real metrics engines for tests: Prometheus and VictoriaMetrics as Debian packages them.

    python tests/kits/get_engines.py        into a folder of the user's cache, once

- Packages are downloaded and unpacked, never installed: the engines are static programs. Nothing
  of the system is touched. The mirror is the one that apt uses on this machine.
- The folder is $TEST_ENGINES, else `metricsmw-engines` in $XDG_CACHE_HOME or ~/.cache. In it each
  package lies under the name of its suite.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

SUITES = ("trixie", "forky")
PACKAGES = ("prometheus", "promtool", "victoria-metrics")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


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
        environ = os.environ | {"APT_CONFIG": str(_apt_config(work, suite, _mirror()))}
        (work / "debs").mkdir()
        subprocess.run(["apt-get", "-qq", "update"], env=environ, check=True)
        command = ["apt-get", "-qq", "download", *packages]
        subprocess.run(command, env=environ, cwd=work / "debs", check=True)
        for package in packages:
            (deb,) = (work / "debs").glob(f"{package}_*.deb")
            subprocess.run(["dpkg-deb", "--extract", deb, work / package], check=True)
            # As a whole, so that a folder which is there is complete.
            (work / package).rename(target / package)


def _mirror() -> str:
    """Return the address that this machine's apt gets Debian itself from.

    Raises:
        RuntimeError: apt has no source of Debian's.
    """
    form = ["--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"]
    found = subprocess.run(
        ["apt-get", "indextargets", *form], check=True, capture_output=True, text=True
    )
    pairs = [line.split(" ", 1) for line in found.stdout.splitlines()]
    # The label is known once the machine's own lists have been fetched.
    for label, address in pairs:
        if label == "Debian":
            return address
    for _, address in pairs:
        if address.rstrip("/").endswith("/debian"):
            return address
    raise RuntimeError("apt has no source of Debian packages to get the engines from")


def _apt_config(work: Path, suite: str, mirror: str) -> Path:
    """Write the configuration of an apt that knows one suite and none of the system's state."""
    for part in ("lists/partial", "cache/archives/partial", "none"):
        (work / part).mkdir(parents=True)
    (work / "status").touch()
    source = f"deb [signed-by={KEYRING}] {mirror} {suite} main\n"
    (work / "sources.list").write_text(source)
    config = work / "apt.conf"
    config.write_text(
        f'Dir::Etc::sourcelist "{work}/sources.list";\n'
        f'Dir::Etc::sourceparts "{work}/none";\n'
        f'Dir::Etc::preferencesparts "{work}/none";\n'
        f'Dir::State "{work}";\n'
        f'Dir::State::status "{work}/status";\n'
        f'Dir::Cache "{work}/cache";\n'
        f'APT::Sandbox::User "{_user()}";\n'
        'Acquire::Languages "none";\n'
        'Acquire::Check-Valid-Until "false";\n'  # a mirror's copy of an index may be weeks old
        'Acquire::Retries "3";\n'
    )
    return config


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


if __name__ == "__main__":
    get_all()
    print(folder())
