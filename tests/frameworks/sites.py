"""What the table of frameworks is made of: one site for each framework and way of wrapping it.

A site is a function that takes `wrap` and returns what it made. Where its framework has them, it
answers GET /items/7; GET /login, which logs in the session's user "ada"; GET /stream, in two
chunks; and WebSockets at /ws, which it accepts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

Wrap = Callable[..., Any]


@dataclass(frozen=True)
class Site:
    """A row of the table.

    Attributes:
        framework: The first column.
        way: How it is wrapped, as one writes it.
        package: What to import, to know whether the framework is installed.
        make: Returns the measured application.
        is_asgi: How to ask it.
        item: The path that is asked for its template.
        has: What of "login", "stream" and "ws" it has.
        lifespan: Whether it has to be started first.
    """

    framework: str
    way: str
    package: str
    make: Callable[[Wrap], Any]
    is_asgi: bool
    item: str
    has: frozenset[str]
    lifespan: bool

    @property
    def name(self) -> str:
        return self.make.__name__


SITES: dict[str, Site] = {}


def site(
    framework: str,
    way: str,
    package: str,
    *has: str,
    asgi: bool,
    item: str = "/items/7",
    lifespan: bool = False,
) -> Callable[[Callable[[Wrap], Any]], Callable[[Wrap], Any]]:
    """Return a decorator that adds a site to `SITES`; arguments as for `Site`."""

    def add(make: Callable[[Wrap], Any]) -> Callable[[Wrap], Any]:
        SITES[make.__name__] = Site(
            framework, way, package, make, asgi, item, frozenset(has), lifespan
        )
        return make

    return add


def chunks() -> Iterator[bytes]:
    yield b"one"
    yield b"two"


async def async_chunks() -> AsyncIterator[bytes]:
    yield b"one"
    yield b"two"
