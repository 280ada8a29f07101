"""The same small app on each framework, for tests under real servers.

| route | answers |
|---|---|
| GET /hello | `hello` |
| GET /items/<id> | `{"id": 7}`, by a route with a parameter where the framework has a router |
| GET /slow?ms=50&block=1 | `{"pid": …}` after that time; `block` holds the whole worker that long |
| GET /fail | status 500 |
| GET /raise | an exception |
| GET /stream | three lines, one at a time |
| POST /upload | `{"bytes": n}`, the length of the body, once it has come |
| POST /login | a session of user `alice`, where the framework has sessions |
| WebSocket /ws | echoes, on Starlette, FastAPI and raw ASGI |

Each is wrapped by the one line a user writes.
"""

LINES = ("one\n", "two\n", "three\n")
"""What /stream sends."""

USER = "alice"
"""Who /login logs in."""

SECRET = "only for tests"
"""What the sessions are signed with."""
