"""An apt of its own for one suite of Debian's: gets packages and sources, installs nothing.

The mirror is the one that apt uses on this machine; nothing of the system is touched.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def apt(work: Path, suite: str, kind: str = "deb") -> dict[str, str]:
    """Return an environment in which apt-get knows one suite and none of the system's state.

    Args:
        work: An existing folder, for the lists and the packages of this apt.
        suite: A suite, such as "trixie".
        kind: "deb" for its packages, "deb-src" for their sources.
    """
    source = f"{kind} [signed-by={KEYRING}] {_mirror()} {suite} main\n"
    environ = os.environ | {"APT_CONFIG": str(_apt_config(work, source))}
    subprocess.run(["apt-get", "-qq", "update"], env=environ, check=True)
    return environ


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
    raise RuntimeError("apt has no source of Debian packages")


def _apt_config(work: Path, source: str) -> Path:
    """Write the configuration of an apt that knows one source and none of the system's state."""
    for part in ("lists/partial", "cache/archives/partial", "none"):
        (work / part).mkdir(parents=True)
    (work / "status").touch()
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
