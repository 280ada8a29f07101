"""Get Pythons that few machines have yet: for CI, and for tests that look for them.

    python tests/kits/get_pythons.py newest           3.14 and 3.15: seconds, and 100 MB
    python tests/kits/get_pythons.py free-threaded    3.13 without a GIL: minutes, and 400 MB

- Nothing of the system is touched: each kind lies in a folder of its own in $TEST_PYTHONS, else in
  `metricsmw-pythons` in $XDG_CACHE_HOME or ~/.cache. They run where they lie, and nowhere else.
- The newest are Debian's packages of its next release, unpacked; they bring their C library.
  Needs patchelf.
- Debian packages no free-threaded Python, so it is built from the source package of the stable one.
  Needs build-essential, libffi-dev, libsqlite3-dev, libssl-dev and zlib1g-dev.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kits.debian import apt

NEWEST = ("3.14", "3.15")
NEWEST_SUITE = "forky"
FREE_THREADED = "3.13"
FREE_THREADED_SUITE = "trixie"


def folder() -> Path:
    """Return the folder in which the interpreters lie."""
    if chosen := os.environ.get("TEST_PYTHONS"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metricsmw-pythons"


def newest(version: str) -> Path:
    """Return where the interpreter of a version of `NEWEST` is, or would be."""
    return folder() / "newest" / "usr" / "bin" / f"python{version}"


def free_threaded() -> Path:
    """Return where the free-threaded interpreter is, or would be."""
    return folder() / "free-threaded" / "bin" / f"python{FREE_THREADED}t"


def get_newest() -> None:
    """Download Debian's packages of the newest Pythons and make them run in their folder."""
    if all(newest(version).is_file() for version in NEWEST):
        return
    root = folder() / "newest"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=folder()) as name:
        work = Path(name)
        packages = [f"python{version}-venv" for version in NEWEST]
        command = ["apt-get", "-qq", "install", "--yes", "--no-install-recommends"]
        subprocess.run(
            [*command, "--download-only", *packages],
            env=apt(work, NEWEST_SUITE), check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        for deb in (work / "cache" / "archives").glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", deb, root], check=True)
    for version in NEWEST:
        _run_in_place(root, version)


def _run_in_place(root: Path, version: str) -> None:
    """Make an unpacked Python use the C library and the wheels that were unpacked with it."""
    # Until all is done the interpreter has another name: what is found is complete.
    program = root / "usr" / "bin" / f"python{version}"
    draft = program.rename(program.with_name(f"{program.name}.draft"))
    loader = _output("patchelf", "--print-interpreter", str(draft))
    (libraries,) = (root / "usr" / "lib").glob("*-linux-gnu*")
    # In this program, also in venvs, and in nothing else that it starts.
    subprocess.run(
        ["patchelf", "--set-interpreter", libraries / Path(loader).name, "--force-rpath",
         "--set-rpath", libraries, draft],
        check=True,
    )  # fmt: skip
    wheels = "/usr/share/python-wheels/"
    for data in (root / "usr" / "lib" / f"python{version}").glob("_sysconfigdata_*.py"):
        data.write_text(data.read_text().replace(f"'{wheels}'", f"'{root}{wheels}'"))
    subprocess.run([draft, "-c", "import ctypes, ensurepip, mmap, sqlite3, ssl, venv"], check=True)
    draft.rename(program)


def get_free_threaded() -> None:
    """Build a Python without a GIL from Debian's source package, at low priority."""
    if free_threaded().is_file():
        return
    folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder()) as name:
        work = Path(name)
        package = f"python{FREE_THREADED}/{FREE_THREADED_SUITE}"
        subprocess.run(
            ["apt-get", "-qq", "source", "--download-only", package],
            env=apt(work, FREE_THREADED_SUITE, "deb-src"), cwd=work, check=True,
        )  # fmt: skip
        (source,) = work.glob("*.orig.tar.xz")
        (work / "source").mkdir()
        subprocess.run(
            ["tar", "--extract", "--file", source, "--directory", work / "source",
             "--strip-components=1"],
            check=True,
        )  # fmt: skip
        configure = ["./configure", "-q", "--disable-gil", "--disable-test-modules"]
        for command in (
            [*configure, f"--prefix={folder() / 'free-threaded'}"],
            ["nice", "make", "-s", f"-j{os.environ.get('JOBS', '1')}"],
            ["nice", "make", "-s", "install"],
        ):
            subprocess.run(command, cwd=work / "source", check=True, stdout=subprocess.DEVNULL)
    pip = [free_threaded(), "-m", "pip", "install", "--quiet", "--root-user-action=ignore"]
    subprocess.run([*pip, "psutil"], check=True)
    code = "import psutil, sys; print(sys._is_gil_enabled())"
    assert _output(str(free_threaded()), "-c", code) == "False"


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    kinds = {"newest": get_newest, "free-threaded": get_free_threaded}
    if len(sys.argv) != 2 or sys.argv[1] not in kinds:
        sys.exit(f"usage: get_pythons.py {{{','.join(kinds)}}}")
    kinds[sys.argv[1]]()
    print(folder() / sys.argv[1])
