"""A loopback server of artifacts, which a host reads through a reverse tunnel. Knows neither SSH,
nor where the bytes lie, nor what the host does with them."""

from __future__ import annotations

import hmac
import io
import re
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from qwen_deploy.content import Content, ContentChanged, Shareable
from qwen_deploy.loopback import LoopbackServer

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_SEND_BYTES = 256 << 10
_IDLE_SECONDS = 120
# Well below what a host takes for silence.
_NOTICE_SECONDS = 5.0
_NOTICE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Share:
    """Serves while entered. The token is new each time, and goes to the host as a file."""

    def __init__(self, shareable: Shareable, *, notice_seconds: float = _NOTICE_SECONDS) -> None:
        self._contents = shareable.contents()
        self.notice_seconds = notice_seconds
        self.token = secrets.token_urlsafe(32)
        self._served_bytes = 0
        self._lock = threading.Lock()
        self._server = _Server(self)

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def served_bytes(self) -> int:
        with self._lock:
            return self._served_bytes

    def __enter__(self) -> Share:
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.stop()

    def find(self, path: str) -> Content | None:
        return self._contents.get(path)

    def count(self, sent: int) -> None:
        with self._lock:
            self._served_bytes += sent


class _Server(LoopbackServer):
    def __init__(self, share: Share) -> None:
        self.share = share
        super().__init__(_Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        # The reader is the tunnel on this machine: more in between is lost when that ends.
        request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
        super().process_request(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    server: _Server

    def do_GET(self) -> None:
        self.close_connection = True
        share = self.server.share
        given = self.headers.get("Authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(given, f"Bearer {share.token}".encode()):
            return self._refuse(401, "this token is not the one of this transfer")
        content = share.find(unquote(urlsplit(self.path).path.removeprefix("/")))
        if content is None:
            return self._refuse(404, "not a file of this model")
        self._send(content)

    def log_message(self, format: str, *args: Any) -> None:
        """The transfer has its own progress."""

    def _send(self, content: Content) -> None:
        # Other kinds of ranges are answered with the whole file, as RFC 9110 allows.
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        first, end = 0, content.size
        if match:
            first, end = int(match[1]), min(int(match[2] or end) + bool(match[2]), end)
            if first >= end:
                return self._refuse(416, "there is no such range", f"bytes */{content.size}")
        try:
            with self._asking_to_wait():
                reader = content.open(first)
        except ContentChanged as error:
            return self._refuse(409, str(error))
        with reader:
            self.send_response(206 if match else 200)
            if match:
                self.send_header("Content-Range", f"bytes {first}-{end - 1}/{content.size}")
            self.send_header("Content-Length", str(end - first))
            self.send_header("Connection", "close")
            self.end_headers()
            self._copy(reader, end - first)

    @contextmanager
    def _asking_to_wait(self) -> Iterator[None]:
        """To begin far behind in a compressed archive takes minutes. Whoever hears nothing for so
        long hangs up and asks again, which only adds another pass."""
        is_found = threading.Event()
        thread = threading.Thread(target=self._ask_to_wait, args=(is_found,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_found.set()
            thread.join()

    def _ask_to_wait(self, is_found: threading.Event) -> None:
        with suppress(OSError):  # nobody waits any more
            while not is_found.wait(self.server.share.notice_seconds):
                self.connection.sendall(_NOTICE)

    def _copy(self, reader: BinaryIO, count: int) -> None:
        while count:
            sent = self._copy_some(reader, min(_SEND_BYTES, count))
            if not sent:
                return  # it became shorter; the reader asks again and is told
            self.server.share.count(sent)
            count -= sent

    def _copy_some(self, reader: BinaryIO, count: int) -> int:
        if isinstance(reader, io.FileIO):
            connection: socket.socket = self.connection
            return connection.sendfile(reader, reader.tell(), count)
        data = reader.read(count)
        self.connection.sendall(data)
        return len(data)

    def _refuse(self, status: int, reason: str, content_range: str | None = None) -> None:
        self.send_response(status, reason)
        if content_range:
            self.send_header("Content-Range", content_range)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()
