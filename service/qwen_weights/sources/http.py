"""Files below one URL, by HTTP ranges and a bearer token. Follows no redirect, so the token goes
nowhere else. Does not know what the bytes should be."""

from __future__ import annotations

import http.client
import re
import socket
import threading
from contextlib import suppress
from typing import NoReturn
from urllib.parse import quote, urlsplit

from ..errors import BadManifest, Changed, Missing, TokenRefused
from . import Interruption

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_SKIP_BYTES = 1 << 20
_TUNNEL_BUFFER_BYTES = 256 << 10


class HttpSource:
    def __init__(self, url: str, *, token: str | None = None, stall_seconds: float = 20) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadManifest(f"{url!r} is not an http or https URL")
        self.name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._connection_class = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._host, self._port, self._base = parts.hostname, parts.port, parts.path.rstrip("/")
        self._token = token
        self._stall_seconds = stall_seconds
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    def open(self, path: str, offset: int) -> _HttpStream:
        connection = self._connection_class(self._host, self._port, timeout=self._stall_seconds)
        try:
            connection.connect()
            _limit_buffer(connection.sock)
            stream = _HttpStream(self, connection)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Interruption(_reason(error)) from error
        try:
            stream.begin(f"{self._base}/{quote(path)}", self._headers(offset), path, offset)
        except BaseException:
            stream.close()
            raise
        return stream

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            for sock in self._sockets:
                _shut(sock)

    def _headers(self, offset: int) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def _opened(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.add(sock)
            if self._is_closed:
                _shut(sock)

    def _closed(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.discard(sock)


class _HttpStream:
    def __init__(self, source: HttpSource, connection: http.client.HTTPConnection) -> None:
        self._source = source
        self._connection = connection
        # http.client lets go of the socket once the response owns it; close() still needs it.
        self._socket: socket.socket = connection.sock
        self._response: http.client.HTTPResponse | None = None
        self.total: int | None = None
        source._opened(self._socket)

    def begin(self, target: str, headers: dict[str, str], path: str, offset: int) -> None:
        try:
            self._connection.request("GET", target, headers=headers)
            self._response = self._connection.getresponse()
            if self._response.status not in (200, 206):
                _refuse(self._response, self._source.name, path)
        except (OSError, http.client.HTTPException) as error:
            raise Interruption(_reason(error)) from error
        if self._response.status == 206:
            self.total = _total_of_range(self._response, path, offset)
        else:
            self.total = self._response.length
            self._skip(offset)

    def read(self, limit: int) -> bytes:
        assert self._response is not None
        try:
            return self._response.read1(limit)
        except (OSError, http.client.HTTPException) as error:
            raise Interruption(_reason(error)) from error

    def close(self) -> None:
        self._source._closed(self._socket)
        if self._response is not None:
            self._response.close()
        self._connection.close()

    def _skip(self, count: int) -> None:
        """A server without ranges sends the file from its start."""
        while count:
            skipped = len(self.read(min(count, _SKIP_BYTES)))
            if not skipped:
                raise Interruption("the connection was closed early")
            count -= skipped


def _total_of_range(response: http.client.HTTPResponse, path: str, offset: int) -> int | None:
    match = _CONTENT_RANGE.fullmatch(response.getheader("Content-Range", ""))
    if not match or int(match[1]) != offset:
        raise Interruption(f"{path}: asked for byte {offset}, was answered another range")
    return None if match[2] == "*" else int(match[2])


def _refuse(response: http.client.HTTPResponse, source: str, path: str) -> NoReturn:
    status, reason = response.status, response.reason or "without a reason"
    if status in (401, 403):
        raise TokenRefused(f"{source} refused the token for {path}: {status} {reason}")
    if status in (404, 410):
        raise Missing(f"{source} has no {path}: {status} {reason}")
    if status in (409, 416):
        raise Changed(f"{path} at {source} is no longer the file of the manifest: {reason}")
    wait = response.getheader("Retry-After", "")
    raise Interruption(
        f"answered {status} {reason}", retry_after=float(wait) if wait.isdecimal() else None
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, socket.timeout):
        return "it sent nothing for too long"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text[:1].lower() + text[1:]


def _limit_buffer(sock: socket.socket) -> None:
    """What the kernel has received but nobody has read is lost by a kill, and a tunnel's end on
    this host is always quick enough."""
    if sock.getpeername()[0] in ("127.0.0.1", "::1"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _TUNNEL_BUFFER_BYTES)


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):  # it may have ended by itself
        sock.shutdown(socket.SHUT_RDWR)
