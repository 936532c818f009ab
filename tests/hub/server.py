"""One origin of the hub: HTTP, ranges, TLS, and the faults of a file's bytes. Does not know what
is asked for."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, get_args

from tests.hub.certificates import Certificate
from tests.hub.messages import Answer, Origin, Request, Served
from tests.hub.rules import OfBytes, Rule

if TYPE_CHECKING:
    from tests.hub.hub import Hub

_PIECE_BYTES = 256 << 10
# What lies in this machine's own buffer when a client dies was never on the wire.
_BUFFER_BYTES = 128 << 10
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Pace:
    def __init__(self, rate: int | None) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, count: int, released: threading.Event) -> None:
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + count / self._rate
            left = self._free_at - now
        released.wait(left)


class Server(ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(
        self, hub: Hub, origin: Origin, address: tuple[str, int], tls: Certificate | None
    ) -> None:
        super().__init__(address, _Handler)
        self.hub = hub
        self.origin = origin
        self.is_tls = tls is not None
        self._connections: set[Any] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        if tls is not None:
            self.socket = tls.context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
        host, port = self.server_address[:2]
        self.url = f"{'https' if self.is_tls else 'http'}://{host!s}:{port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        for connection in tuple(self._connections):
            _shut(connection)
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no fault of the hub."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = Request(self.server.origin, self.command, self.path, self.headers, body)
        answer = self.server.hub.answer(asked)
        if isinstance(answer.body, Served):
            self._send_file(answer, answer.body)
        else:
            self._send_head(answer.status, answer.headers, len(answer.body))
            if self.command != "HEAD":
                self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = _serve

    def _send_head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_file(self, answer: Answer, served: Served) -> None:
        is_get = self.command == "GET"
        path, kinds = served.file.path, get_args(OfBytes)
        faults = self.server.hub.rules.take(path, served.hub, kinds) if is_get else {}
        size = faults["short"].after if "short" in faults else served.file.size
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        if "no-ranges" in faults or not asked:
            start, end, status, headers = 0, size, 200, answer.headers
        else:
            start, end = int(asked[1]), min(int(asked[2] or size - 1) + 1, size)
            if start >= size:
                self._send_head(416, {"Content-Range": f"bytes */{size}"}, 0)
                return
            status = 206
            headers = answer.headers | {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
        self._send_head(status, headers | {"Accept-Ranges": "bytes"}, end - start)
        if is_get:
            self._send_bytes(served, start, end, faults)

    def _send_bytes(self, served: Served, start: int, end: int, faults: dict[str, Rule]) -> None:
        hub = self.server.hub
        slow = faults.get("slow")
        pace = Pace(slow.rate) if slow else hub.pace
        # The answer's first byte at which something happens, and what.
        breaks = {start + faults[kind].after: kind for kind in ("drop", "stall") if kind in faults}
        with served.file.place.open("rb") as file:
            at = start
            while at < end:
                if kind := breaks.pop(at, None):
                    faults[kind].met.set()
                    if kind == "stall":
                        hub.released.wait()
                    if kind == "drop" or hub.is_closed:
                        break
                count = min([_PIECE_BYTES, end - at, *(one - at for one in breaks)])
                count = min(count, slow.rate // 8 + 1) if slow else count
                pace.take(count, hub.released)
                sent = self._copy(file.fileno(), at, count, faults.get("flip"))
                hub.sent(served, sent)
                at += sent
        if at < end:
            self.close_connection = True
            _shut(self.connection)

    def _copy(self, descriptor: int, at: int, count: int, flip: Rule | None) -> int:
        if flip is None and not self.server.is_tls:
            return os.sendfile(self.connection.fileno(), descriptor, at, count)
        piece = bytearray(os.pread(descriptor, count, at))
        if flip is not None and 0 <= flip.after - at < count:
            piece[flip.after - at] ^= 1
            flip.met.set()
        return int(self.connection.send(piece))


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
