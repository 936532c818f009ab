"""A loopback server of one model folder, which a host reads through a reverse tunnel. Knows neither
SSH nor what the host does with the bytes."""

from __future__ import annotations

import hmac
import os
import re
import secrets
import socket
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from qwen_deploy.folder import FolderReport
from qwen_deploy.hashes import Stamp

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_SEND_BYTES = 256 << 10
_IDLE_SECONDS = 120
_POLL_SECONDS = 0.05


class FolderShare:
    """Serves while entered. The token is new each time, and goes to the host as a file."""

    def __init__(self, report: FolderReport) -> None:
        artifacts = report.manifest.artifacts
        self._files = {
            artifact.path: (report.folder / artifact.path, stamp)
            for artifact, stamp in zip(artifacts, report.stamps, strict=True)
        }
        self.token = secrets.token_urlsafe(32)
        self._served_bytes = 0
        self._lock = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL_SECONDS,), name="share", daemon=True
        )

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def served_bytes(self) -> int:
        with self._lock:
            return self._served_bytes

    def __enter__(self) -> FolderShare:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def find(self, path: str) -> tuple[Path, Stamp] | None:
        return self._files.get(path)

    def count(self, sent: int) -> None:
        with self._lock:
            self._served_bytes += sent


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, share: FolderShare) -> None:
        self.share = share
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        # The reader is the tunnel on this machine: more in between is lost when that ends.
        request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        with self._lock:
            for request in self._open:
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that hung up; it asks again if it wants more."""


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
        entry = share.find(unquote(urlsplit(self.path).path.removeprefix("/")))
        if entry is None:
            return self._refuse(404, "not a file of this model")
        try:
            file = open(entry[0], "rb", buffering=0)  # noqa: SIM115
        except OSError:
            return self._refuse(409, "it cannot be read any more")
        with file:
            self._send(file, entry[1])

    def log_message(self, format: str, *args: Any) -> None:
        """The transfer has its own progress."""

    def _send(self, file: Any, stamp: Stamp) -> None:
        if Stamp.of(os.fstat(file.fileno())) != stamp:
            return self._refuse(409, "it was changed after it was inspected")
        # Other kinds of ranges are answered with the whole file, as RFC 9110 allows.
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        first, end = 0, stamp.size
        if match:
            first, end = int(match[1]), min(int(match[2] or end) + bool(match[2]), end)
            if first >= end:
                return self._refuse(416, "there is no such range", f"bytes */{stamp.size}")
        self.send_response(206 if match else 200)
        if match:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{stamp.size}")
        self.send_header("Content-Length", str(end - first))
        self.send_header("Connection", "close")
        self.end_headers()
        self._copy(file, first, end)

    def _copy(self, file: BinaryIO, offset: int, end: int) -> None:
        while offset < end:
            sent = self.connection.sendfile(file, offset, min(_SEND_BYTES, end - offset))
            if not sent:
                return  # it became shorter; the reader asks again and is told
            self.server.share.count(sent)
            offset += sent

    def _refuse(self, status: int, reason: str, content_range: str | None = None) -> None:
        self.send_response(status, reason)
        if content_range:
            self.send_header("Content-Range", content_range)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()
