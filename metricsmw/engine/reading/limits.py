"""How much memory and CPU there is for this process: of its container's limit, or the machine's.

Control groups form a tree, and each group may have a limit: the least one on the way up holds.
Version 1 has a tree for each controller, version 2 one for all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

LimitSource = Literal["cgroup v1", "cgroup v2", "machine", "none", "unknown"]

VERSIONS: dict[int, LimitSource] = {1: "cgroup v1", 2: "cgroup v2"}


class LimitFields(TypedDict):
    """The limits as `/statistics` shows them."""

    memory_limit_mb: float | None
    memory_limit: str
    cpu_limit_cores: float | None
    cpu_limit: str


class Limits(NamedTuple):
    """What percentages are of.

    Attributes:
        memory_bytes: Memory; 0 where it is not known.
        memory_source: Whose limit that is.
        cpu_cores: CPU in cores; 0.0 where nothing limits it: percentages are then of one core.
        cpu_source: Whose limit that is.
    """

    memory_bytes: int
    memory_source: LimitSource
    cpu_cores: float
    cpu_source: LimitSource

    def describe(self) -> LimitFields:
        """Return them as `/statistics` shows them; None for what is not limited or not known."""
        return {
            "memory_limit_mb": round(self.memory_bytes / 2**20, 2) or None,
            "memory_limit": self.memory_source,
            "cpu_limit_cores": round(self.cpu_cores, 3) or None,
            "cpu_limit": self.cpu_source,
        }


class _ControlGroup(NamedTuple):
    """A control group of this process, or one above it."""

    version: int
    folder: Path


def read_limits(machine_memory: int, root: str = "/") -> Limits:
    """Return the limits of this process.

    Args:
        machine_memory: Bytes that the machine has; 0 where that is not known.
        root: Where /proc and /sys/fs/cgroup are found.
    """
    memory, cores = machine_memory, 0.0
    source: LimitSource = "machine" if machine_memory else "unknown"
    cpu_source: LimitSource = "none"
    for version, folder in _groups(Path(root), "memory"):
        name = "memory.max" if version == 2 else "memory.limit_in_bytes"
        limit = _number(folder / name)
        if limit and (not memory or limit < memory):
            memory, source = limit, VERSIONS[version]
    for version, folder in _groups(Path(root), "cpu"):
        share = _cores(version, folder)
        if share and share < (cores or usable_cores()):
            cores, cpu_source = share, VERSIONS[version]
    return Limits(memory, source, cores, cpu_source)


def usable_cores() -> int:
    """Return how many cores this process may run on: those of its set of CPUs, or the machine's."""
    try:
        return len(os.sched_getaffinity(0)) or 1
    except (AttributeError, OSError):  # not on this system
        return os.cpu_count() or 1


def _cores(version: int, folder: Path) -> float:
    """Return the limit of a group, in cores; 0.0 where it has none."""
    if version == 2:
        words = [*_words(folder / "cpu.max"), "", ""]  # "max 100000" or "50000 100000"
    else:
        words = [str(_number(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period")]
    quota, period = (int(word) if word.isdecimal() else 0 for word in words[:2])
    return quota / period if quota and period else 0.0


def _groups(root: Path, controller: str) -> Iterator[_ControlGroup]:
    """Return the groups that limit this process, from its own up."""
    paths: dict[str, str] = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for name in controllers.split(","):
            paths[name] = path
    for line in _lines(root / "proc/self/mountinfo"):
        fields = line.split(" ")
        try:
            kind, options = (fields[fields.index("-") + k] for k in (1, 3))
        except (ValueError, IndexError):  # not as the kernel writes it
            continue
        if kind == "cgroup2":
            version, name = 2, ""
        elif kind == "cgroup" and controller in options.split(","):
            version, name = 1, controller
        else:
            continue
        if name not in paths:
            continue
        path = paths[name]
        top, mounted = fields[3], root / fields[4].lstrip("/")
        # What is mounted may be a group further down, as it is in a container.
        inside = path.removeprefix(top) if top != "/" and path.startswith(top) else path
        folder = mounted / inside.strip("/")
        while True:
            yield _ControlGroup(version, folder)
            if folder == mounted or mounted not in folder.parents:
                break
            folder = folder.parent


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    lines = _lines(path)
    return lines[0].split() if lines else []


def _number(path: Path) -> int:
    """Return the number in a file; 0 where there is none, or no limit."""
    words = _words(path)
    return int(words[0]) if words and words[0].lstrip("-").isdecimal() else 0
