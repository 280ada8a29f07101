"""Receivers of notifications on loopback: an HTTP server that can misbehave, a mail server."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote_plus

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from trustme import LeafCert

from kits.servers import free_port


class HTTPReceiver:
    """What was posted, and how it answers: `status`, or not at all while `hang` is set."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.port = server.server_port
        self.status = 200
        self.hang = threading.Event()
        self.go_on = threading.Event()
        self.asked = 0
        self.paths: list[str] = []
        self.posts: list[dict[str, Any]] = []
        self.bodies: list[str] = []  # as text, whatever their form

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextmanager
def http_receiver(port: int = 0) -> Iterator[HTTPReceiver]:
    """An HTTP server for the time of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.asked += 1
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if receiver.hang.is_set():
                receiver.go_on.wait(60)
            status = receiver.status
            if status < 400:
                receiver.paths.append(self.path)
                if self.headers.get_content_type() == "application/json":
                    receiver.posts.append(json.loads(body))
                    text = json.dumps(receiver.posts[-1], ensure_ascii=False)
                else:
                    text = unquote_plus(body.decode())
                receiver.bodies.append(text)
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    receiver = HTTPReceiver(server)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


class MailReceiver:
    """The mails that came in, whether encrypted, and who logged in to send them."""

    def __init__(self) -> None:
        self.port = free_port()
        self.mails: list[EmailMessage] = []
        self.encrypted: list[bool] = []
        self.logins: list[str] = []

    async def handle_DATA(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        content = envelope.content
        assert isinstance(content, bytes)
        mail = message_from_bytes(content, policy=policy.default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        self.encrypted.append(session.ssl is not None)
        return "250 taken"


@contextmanager
def mail_receiver(
    certificate: LeafCert | None = None, passwords: Mapping[str, str] | None = None
) -> Iterator[MailReceiver]:
    """An SMTP server for the time of the block; with a certificate it offers STARTTLS."""
    receiver = MailReceiver()

    def authenticate(
        server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: object
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        user = data.login.decode()
        known = (passwords or {}).get(user) == data.password.decode()
        if known:
            receiver.logins.append(user)
        return AuthResult(success=known)

    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
    controller = Controller(
        receiver,
        hostname="127.0.0.1",
        port=receiver.port,
        tls_context=context,
        authenticator=authenticate,
    )
    controller.start()
    try:
        yield receiver
    finally:
        controller.stop()


def text_of(mail: EmailMessage) -> str:
    """The text of a mail, whichever part has it."""
    body = mail.get_body(("plain", "html"))
    assert body is not None
    return str(body.get_content())
