"""HTTP/2 on cleartext: many streams on one connection, each a request of its own."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, ResponseReceived, StreamEnded, TrailersReceived
from kits.routes_kit import TOKEN, Api
from kits.servers import Server, serve

from .test_servers import ASGI, SERVED

HOSTS = {"hypercorn": [], "granian": ["--interface", "asgi"]}


@pytest.fixture(scope="module", params=HOSTS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    env = {"METRICSMW_TOKEN": TOKEN, "PYTHONPATH": str(SERVED)}
    with serve(request.param, ASGI, args=HOSTS[request.param], env=env) as server:
        yield server


class Client:
    """One connection; the answers of the streams on it, by their number."""

    def __init__(self, server: Server) -> None:
        self.authority = f"{server.host}:{server.port}"
        self.socket = socket.create_connection((server.host, server.port), timeout=20)
        self.h2 = H2Connection(H2Configuration(client_side=True))
        self.bodies: dict[int, bytes] = {}
        self.statuses: dict[int, int] = {}
        self.headers: dict[int, list[tuple[str, str]]] = {}
        self.ended: set[int] = set()
        self.trailers: set[int] = set()
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def ask(
        self,
        path: str,
        method: str = "GET",
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> int:
        stream: int = self.h2.get_next_available_stream_id()
        sent = {":method": method, ":path": path, ":scheme": "http"}
        sent |= {":authority": self.authority, "te": "trailers", **(headers or {})}
        self.h2.send_headers(stream, list(sent.items()), end_stream=not body)
        if body:
            self.h2.send_data(stream, body, end_stream=True)
        self.flush()
        return stream

    def read(self) -> None:
        """Take in what has come."""
        received = self.socket.recv(1 << 16)
        if not received:
            raise ConnectionAbortedError("the server has closed the connection")
        for event in self.h2.receive_data(received):
            if isinstance(event, ResponseReceived):
                headers = [(name.decode(), value.decode()) for name, value in event.headers]
                self.statuses[event.stream_id] = int(dict(headers)[":status"])
                self.headers[event.stream_id] = headers
            elif isinstance(event, DataReceived):
                self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, TrailersReceived):
                self.trailers.add(event.stream_id)
            elif isinstance(event, StreamEnded):
                self.ended.add(event.stream_id)
        self.flush()

    def read_all(self, streams: set[int]) -> None:
        while not streams <= self.ended:
            self.read()


@pytest.fixture
def api(server: Server) -> Iterator[Api]:
    """The numbers, at zero; whatever a test asks, no fault may be counted."""
    api = Api(server)
    assert api.post("/reset").status == 200
    api.settled(0)
    yield api
    assert api.get("/health").json()["faults"] == 0


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    client = Client(server)
    with client.socket:
        yield client


def test_streams_side_by_side(server: Server, client: Client, api: Api) -> None:
    hellos = {client.ask("/hello") for _ in range(20)}
    upload = client.ask("/upload", "POST", b"x" * 10_000)
    none = client.ask("/none")
    client.read_all({*hellos, upload, none})
    assert {client.bodies[stream] for stream in hellos} == {b"hello"}
    assert client.bodies[upload] == b"10000"
    assert client.statuses[none] == 404
    assert api.settled(22)["total_errors"] == 1
    counts = {f"{row['method']} {row['route']}": row["requests"] for row in api.routes()}
    assert counts == {"GET /hello": 20, "POST /upload": 1, "GET <unmatched>": 1}
    if server.name == "hypercorn":  # granian sends a body there, which this client refuses
        head = client.ask("/hello", "HEAD")
        client.read_all({head})
        assert client.bodies.get(head, b"") == b""
        assert api.settled(23)["total_errors"] == 1


def test_trailers(server: Server, client: Client, api: Api) -> None:
    """They end a request, where the server has them."""
    stream = client.ask("/trailers")
    client.read_all({stream})
    assert client.bodies[stream] == b"hello"
    assert (stream in client.trailers) is (server.name == "hypercorn")
    assert api.settled(1)["total_errors"] == 0
    assert [row["statuses"] for row in api.routes()] == [{"2xx": 1}]


def test_an_answer_while_another_streams(client: Client, api: Api) -> None:
    """And the stream that is reset is a client that has gone; its connection goes on."""
    events = client.ask("/events")
    while events not in client.bodies:
        client.read()
    hello = client.ask("/hello")
    client.read_all({hello})
    api.until(lambda: api.current()["total_requests"] == 1, "the other request")
    assert api.current()["requests_in_flight"] == 1
    client.h2.reset_stream(events, ErrorCodes.CANCEL)
    client.flush()
    metrics = api.settled(2)
    assert metrics["total_errors"] == 0
    statuses = {row["route"]: row["statuses"] for row in api.routes()}
    assert statuses == {"/hello": {"2xx": 1}, "/events": {}}
    again = client.ask("/hello")
    client.read_all({again})
    api.settled(3)
