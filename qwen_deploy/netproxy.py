"""An HTTP proxy on this machine's loopback whose connections begin elsewhere: on a host, by a
channel of its session, or here, for a host that has no network. Knows neither SSH nor hubs.

Only who has the password of its URL may use it: loopback belongs to every user of a machine.
"""

from __future__ import annotations

import base64
import hmac
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from qwen_deploy.loopback import LoopbackServer
from qwen_deploy.tunnel import join

Dial = Callable[[str, int], Any]
_USER = "qwen-deploy"
_READ_BYTES = 1 << 16
_HEAD_SECONDS = 30
# What is said between a client and its proxy, and goes no further (RFC 9110, 7.6.1).
_HOP_BY_HOP = {"connection", "keep-alive", "proxy-authorization", "proxy-connection", "te"}


@contextmanager
def serve(dial: Dial) -> Iterator[str]:
    """Yields the URL of the proxy, with its password. `dial` gives something with a socket's
    methods, or raises OSError."""
    proxy = _Proxy(dial)
    proxy.start()
    try:
        yield f"http://{_USER}:{proxy.password}@127.0.0.1:{proxy.port}"
    finally:
        proxy.stop()


class _Proxy(LoopbackServer):
    def __init__(self, dial: Dial) -> None:
        self.dial = dial
        self.password = secrets.token_urlsafe(32)
        super().__init__(_Handler)

    @property
    def credentials(self) -> bytes:
        return b"Basic " + base64.b64encode(f"{_USER}:{self.password}".encode())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _HEAD_SECONDS
    server: _Proxy

    def do_CONNECT(self) -> None:
        target = urlsplit(f"//{self.path}")
        if self._is_allowed() and (channel := self._dial(target.hostname, _port(target, None))):
            self._join(channel, b"", f"{self.protocol_version} 200 Connection established\r\n\r\n")

    def do_GET(self) -> None:
        target = urlsplit(self.path)
        if not self._is_allowed():
            return
        if target.scheme != "http":
            return self._refuse(400, "this is a proxy for http:// and CONNECT")
        if channel := self._dial(target.hostname, _port(target, 80)):
            path = target._replace(scheme="", netloc="").geturl() or "/"
            self._join(channel, self._head(path), "")

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Whoever uses it says what came of it."""

    def _is_allowed(self) -> bool:
        self.close_connection = True
        given = self.headers.get("Proxy-Authorization", "").encode("latin-1", "replace")
        if hmac.compare_digest(given, self.server.credentials):
            return True
        self._refuse(407, "this proxy is not for you", {"Proxy-Authenticate": "Basic"})
        return False

    def _dial(self, host: str | None, port: int | None) -> Any:
        if not host or not port:
            return self._refuse(400, "no host and port")
        try:
            channel = self.server.dial(host, port)
        except OSError as error:
            return self._refuse(502, error.strerror or str(error))
        channel.settimeout(None)  # whatever it took to connect, it may be silent now
        return channel

    def _head(self, path: str) -> bytes:
        """As the host itself wants it; the connection ends with the answer."""
        lines = [f"{self.command} {path} HTTP/1.1"]
        kept = (item for item in self.headers.items() if item[0].lower() not in _HOP_BY_HOP)
        lines += [f"{name}: {value}" for name, value in kept]
        return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")

    def _join(self, channel: Any, head: bytes, answer: str) -> None:
        self.connection.settimeout(None)
        client: Any = _Client(self.connection, self.rfile)
        if head:
            channel.sendall(head)
        if answer:
            client.sendall(answer.encode())
        join(channel, client)

    def _refuse(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        said = reason.encode("ascii", "replace").decode().replace("\n", " ")
        self.send_response(status, said)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()


class _Client:
    """The client's socket; what was read with the head of its request comes first."""

    def __init__(self, connection: socket.socket, reader: Any) -> None:
        self._reader = reader
        self.sendall = connection.sendall
        self.shutdown = connection.shutdown

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_: object) -> None:
        """The server closes it."""

    def recv(self, count: int) -> bytes:
        data: bytes = self._reader.read1(count)
        return data


def _port(target: Any, default: int | None) -> int | None:
    try:
        return target.port or default
    except ValueError:
        return None
