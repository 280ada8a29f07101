"""The page's files as they are served: the shell, and below a hash of all of them the rest.

Nothing here holds data: who may load the page learns only that it is there. The charts' library is
brought in when the package is built; without it the page shows numbers and tables.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files as resources
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from importlib.abc import Traversable

CHARTS = "uPlot.iife.min.js"
TYPES = {
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}


class File(NamedTuple):
    """A file as it is sent."""

    content_type: str
    body: bytes
    etag: str


@cache
def files() -> Mapping[str, File]:
    """Return the page's files by name, as far as they are installed."""
    return {
        name: File(TYPES[kind], body, f'"{hashlib.sha256(body).hexdigest()[:16]}"')
        for name, body in _bodies()
        if (kind := name.rpartition(".")[2]) in TYPES
    }


@cache
def version() -> str:
    """Return a hash of all files: a file's address has it, so that its content never changes."""
    every = sorted((name, file.etag) for name, file in files().items())
    return hashlib.sha256(repr(every).encode()).hexdigest()[:16]


def file_at(path: str) -> File | None:
    """Return the file at "hash/name"; None where there is none."""
    asked, _, name = path.partition("/")
    return files().get(name) if asked == version() else None


def page(
    base: str,
    *,
    streams: bool,
    session: bool,
    minutes: int,
    unmeasured: str = "",
    ways: Sequence[str] = (),
) -> bytes:
    """Return the page's HTML, without numbers.

    Args:
        base: The sub-app's address, relative to the page, with a slash at its end.
        streams: The host can stream.
        session: The host's own session may allow the reading.
        minutes: The length of the history.
        unmeasured: Why requests are not measured; "" where they are.
        ways: What lets in, one sentence each.
    """
    charts = CHARTS in files()
    vendored = (
        '<link rel="stylesheet" href="{static}uPlot.min.css">\n'
        '<script src="{static}uPlot.iife.min.js" defer></script>\n'
    )
    values = {
        "vendored": vendored if charts else "",
        "static": f"{base}static/{version()}/",
        "base": base,
        "charts": "yes" if charts else "no",
        "streams": "yes" if streams else "no",
        "session": "yes" if session else "no",
        "minutes": str(minutes),
        "is-measured": "" if unmeasured else " hidden",
        "unmeasured": unmeasured,
        "ways": "".join(f"<li>{escape(way)}</li>" for way in ways),
    }
    text = _shell()
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value if name in _MARKUP else escape(value))
    return text.encode()


_MARKUP = ("vendored", "ways")


@cache
def _shell() -> str:
    return resources(__name__).joinpath("index.html").read_text("utf-8")


def _bodies() -> Iterator[tuple[str, bytes]]:
    folder = resources(__name__)
    for entry in (*folder.iterdir(), *_inside(folder.joinpath("vendor"))):
        if entry.is_file():
            yield entry.name, entry.read_bytes()


def _inside(folder: Traversable) -> Iterator[Traversable]:
    if folder.is_dir():
        yield from folder.iterdir()
