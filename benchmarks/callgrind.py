"""Counts the instructions of a loop with valgrind's callgrind, from both sides.

`run` starts a Python script under callgrind; there `Counter` counts. The script starts up, imports
and warms up without being counted: callgrind is switched on from inside, by valgrind's *client
requests*. Such a request is a sequence of machine instructions that does nothing on a processor and
that valgrind recognises. `Counter` writes the sequence into executable memory, so that neither a
compiler nor valgrind's headers are needed. It is known here for x86-64 only.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

# Client requests of valgrind's callgrind.h, which end up as ('C' << 24 | 'T' << 16) + number.
DUMP_STATS, ZERO_STATS, START_INSTRUMENTATION, STOP_INSTRUMENTATION = (
    (ord("C") << 24 | ord("T") << 16) + number for number in (0, 1, 4, 5)
)

# int64 request(int64 *arguments), in the calling convention of System V.
REQUEST_X86_64 = bytes.fromhex(
    "4889f8"  # mov rax, rdi: where valgrind looks for the arguments
    "31d2"  # xor edx, edx: the result without valgrind
    "48c1c703 48c1c70d 48c1c73d 48c1c733"  # rol rdi, 3; 13; 61; 51: 128 bits, so nothing changes
    "4887db"  # xchg rbx, rbx: with the above, the request
    "4889d0"  # mov rax, rdx
    "c3"  # ret
)

SHORT, LONG = 20, 120
"""How often the loop runs; the difference has nothing of what surrounds the loop."""


def why_not() -> str | None:
    """Return the reason why nothing can be counted on this machine, or None."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"needs Linux on x86_64, this is {platform.system()} on {platform.machine()}"
    if platform.python_implementation() != "CPython":
        return f"needs CPython, this is {platform.python_implementation()}"
    if shutil.which("valgrind") is None:
        return "valgrind is not installed (apt-get install valgrind)"
    return None


def run(script: Path, arguments: Sequence[str], profile: Path) -> str:
    """Run a Python script under callgrind, which counts once a `Counter` in it says so.

    Args:
        script: The script, for this interpreter.
        arguments: Its command line; `profile` is added at the end.
        profile: Where callgrind writes what it counted, with ".1", ".2" … added.

    Returns:
        What the script printed.

    Raises:
        RuntimeError: The script failed; with the end of what it wrote to stderr.
    """
    command = [
        "valgrind",
        "--tool=callgrind",
        "--instr-atstart=no",
        "--toggle-collect=find_name_in_mro*",
        "--collect-atstart=yes",
        f"--callgrind-out-file={profile}.%p",
        sys.executable,
        str(script),
        *arguments,
        str(profile),
    ]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("METRICSMW_")
    }
    environment |= {"PYTHONHASHSEED": "0", "METRICSMW_SHARED": "off"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{ended.stderr[-2000:]}")
    return ended.stdout


class Counter:
    """Counts instructions in a process that `run` has started.

    Args:
        profile: The path that `run` has added to the command line.
    """

    def __init__(self, profile: Path) -> None:
        self._profile = profile
        self._dumps = 0
        self._code = mmap.mmap(
            -1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        )
        self._code.write(REQUEST_X86_64)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        self._call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(address)

    def per_call(self, batch: Callable[[int], None]) -> float:
        """Return the instructions of one call, the loop around it included.

        Args:
            batch: Does its work the given number of times; has to be warm.

        Returns:
            The difference of a long and a short run, divided by that of their lengths.
        """
        self._request(START_INSTRUMENTATION)
        short, long = self._count(batch, SHORT), self._count(batch, LONG)
        self._request(STOP_INSTRUMENTATION)
        return (long - short) / (LONG - SHORT)

    def _count(self, batch: Callable[[int], None], times: int) -> int:
        self._request(ZERO_STATS)
        batch(times)
        self._request(DUMP_STATS)
        self._dumps += 1
        dump = Path(f"{self._profile}.{os.getpid()}.{self._dumps}").read_text(encoding="utf-8")
        (total,) = re.findall(r"^(?:totals|summary): (\d+)$", dump, re.MULTILINE)[-1:]
        return int(total)

    def _request(self, number: int) -> None:
        arguments = (ctypes.c_int64 * 6)(number)
        self._call(ctypes.addressof(arguments))
