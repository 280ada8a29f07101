"""A WSGI app for tests under real servers: files, streams and uploads of any size.

| route | answers |
|---|---|
| GET /hello | `hello` |
| GET /file | the file named by FILE, by `wsgi.file_wrapper` where the server has one |
| GET /stream?mb=3 | that many chunks of a megabyte, made one at a time |
| GET /generated?mb=3 | the same from a generator |
| POST /upload | how many bytes came, read a megabyte at a time |
| GET /raise?when=x | an exception "before" or "after" the headers, in the "middle", in "close" |
| GET /leave | an exception that is no `Exception`, before the headers |
| GET /nothing | no response: `start_response` is not called |
| GET /late | a long body, begun when FILE.release is there; it makes FILE.asked first |
| GET /closes | how often the bodies of /stream and /late have been closed |
| GET /sendfiles | how often this process has called `os.sendfile` |
| GET /peak | the most memory this process has had, in MB |
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from metricsmw.adapters import wrap

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

MEGABYTE = 1 << 20
sendfiles = 0
sendfile = os.sendfile


def counting_sendfile(*args: Any) -> int:
    global sendfiles
    sendfiles += 1
    return sendfile(*args)


os.sendfile = counting_sendfile  # type: ignore[assignment]


class Failing:
    """A response that fails at some point."""

    def __init__(self, when: str, start_response: StartResponse) -> None:
        self.when = when
        if when == "before":
            raise LookupError(when)
        start_response("202 Accepted", [("Content-Type", "text/plain")])
        if when == "after":
            raise LookupError(when)

    def __iter__(self) -> Iterator[bytes]:
        yield b"some"
        if self.when == "middle":
            raise LookupError(self.when)

    def close(self) -> None:
        if self.when == "close":
            raise LookupError(self.when)


class Leaving(BaseException):
    """No `Exception`, as what ends a thread or a process is none."""


closes = 0


class Chunks:
    """A megabyte at a time, by an iterator that is no generator."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __iter__(self) -> Chunks:
        return self

    def __next__(self) -> bytes:
        if not self.left:
            raise StopIteration
        self.left -= 1
        return bytes(MEGABYTE)

    def close(self) -> None:
        global closes
        closes += 1


def generated(number: int) -> Iterator[bytes]:
    for _ in range(number):
        yield bytes(MEGABYTE)


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    query = parse_qs(environ["QUERY_STRING"])
    if path == "/file":
        name = os.environ["FILE"]
        size = str(os.path.getsize(name))
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", size)])
        file = open(name, "rb")  # noqa: SIM115
        wrapper = environ.get("wsgi.file_wrapper")
        return wrapper(file, 65536) if wrapper is not None else iter(lambda: file.read(65536), b"")
    if path in ("/stream", "/generated"):
        number = int(query["mb"][0])
        length = str(number * MEGABYTE)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", length)])
        return Chunks(number) if path == "/stream" else generated(number)
    if path == "/leave":
        raise Leaving
    if path == "/nothing":
        return []
    if path == "/late":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return late()
    if path == "/raise":
        return Failing(query["when"][0], start_response)
    answers = {"/hello": "hello", "/sendfiles": str(sendfiles), "/peak": str(peak_mb())}
    answers["/closes"] = str(closes)
    if path == "/upload":
        answers[path] = str(read_all(environ))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answers[path].encode()]


def late() -> Iterator[bytes]:
    global closes
    try:
        file = Path(os.environ["FILE"])
        file.with_suffix(".asked").touch()
        while not file.with_suffix(".release").exists():
            time.sleep(0.01)
        yield from generated(50)  # more than a server keeps: it notices that nobody is there
    finally:
        closes += 1


def read_all(environ: WSGIEnvironment) -> int:
    left = int(environ["CONTENT_LENGTH"])
    length = 0
    while left and (chunk := environ["wsgi.input"].read(min(left, MEGABYTE))):
        length += len(chunk)
        left -= len(chunk)
    return length


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


app = wrap(app)
