"""Gives what this host holds to its peers, by HTTP ranges that follow a file while it grows. Asks
for the order's token, serves the order's contents only, and knows nothing of who brings them."""

from __future__ import annotations

import hmac
import json
import os
import re
import resource
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from qwen_weights.relay.shelf import CutOff, Reader, Shelf

MOST_CONNECTIONS = 512
_SEND_BYTES = 1 << 20
_HEADER_SECONDS = 15.0
# A peer that takes nothing for so long has stopped, or is behind a link that is gone.
_STUCK_SECONDS = 60
_LOOK_SECONDS = 1.0
# What waits unsent in the kernel cannot be given to a peer that is quicker.
_UNSENT_BYTES = 256 << 10
_BLOB = re.compile(r"/blobs/([0-9a-f]{64})")
_PIECES = re.compile(r"/pieces/([0-9a-f]{64})")
_TAG = re.compile(r'"([0-9a-f]+)\.(\d{1,9})"')
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{1,18})?")


@dataclass(frozen=True)
class Share:
    """Where and to whom this host gives what it has; port 0 is any that is free."""

    address: str
    port: int
    token: str = field(repr=False)
    idle_seconds: float = 120


class Account(Protocol):
    """What a relay says of its own transfer."""

    def phase(self) -> str: ...

    def rate(self) -> float: ...

    def pieces(self, sha256: str) -> tuple[int, Sequence[str]]:
        """The size of a piece, and the hashes of those that are complete."""
        ...


class RelayServer:
    """Binds its one address when made (OSError), and serves while entered."""

    def __init__(
        self,
        share: Share,
        shelf: Shelf,
        account: Account,
        *,
        most_connections: int = MOST_CONNECTIONS,
    ) -> None:
        self.share = share
        self.shelf = shelf
        self.account = account
        self.run = secrets.token_hex(8)  # after a restart nothing is known of what was read before
        self._lock = threading.Lock()
        self._served_bytes = 0
        self._readers = 0
        self._asked_at = time.monotonic()
        self._server = _Server(self, most_connections)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="share", daemon=True
        )

    def __enter__(self) -> RelayServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.end_connections()

    @property
    def address(self) -> str:
        return self.share.address

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def served_bytes(self) -> int:
        with self._lock:
            return self._served_bytes

    def served(self, count: int) -> None:
        with self._lock:
            self._served_bytes += count

    def asked(self, readers: int = 0) -> None:
        with self._lock:
            self._readers += readers
            self._asked_at = time.monotonic()

    def wait_until_idle(self, stop: threading.Event) -> None:
        """Until no peer has asked for anything for long enough, or it is stopped."""
        while (left := self._idle_seconds_left()) > 0 and not stop.wait(left):
            pass

    def _idle_seconds_left(self) -> float:
        with self._lock:
            since = self._asked_at if not self._readers else time.monotonic()
        return since + self.share.idle_seconds - time.monotonic()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, relay: RelayServer, most_connections: int) -> None:
        self.relay = relay
        self._places = threading.BoundedSemaphore(most_connections)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        if ":" in relay.share.address:
            self.address_family = socket.AF_INET6
        _allow_files(4 * most_connections)
        super().__init__((relay.share.address, relay.share.port), _Request)

    def server_bind(self) -> None:
        # HTTPServer would ask the resolver for this host's name, which may take long.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.relay.share.address, self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        with self._lock:
            self._open.add(request)
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._leave(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._leave(request)

    def _leave(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        self._places.release()

    def end_connections(self) -> None:
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that hangs up is no news."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "qwen-deploy", ""
    timeout = _HEADER_SECONDS
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        relay = self.server.relay
        if not self._has_token(relay.share.token):
            self.close_connection = True
            self._refuse(HTTPStatus.UNAUTHORIZED)
            return
        relay.asked()
        if self.path == "/have":
            self._answer(_standing(relay))
        elif found := _BLOB.fullmatch(self.path):
            self._give(relay, found[1])
        elif found := _PIECES.fullmatch(self.path):
            self._tell_pieces(relay, found[1])
        else:
            self._refuse(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _has_token(self, token: str) -> bool:
        given = self.headers.get("Authorization", "")
        return hmac.compare_digest(given.encode("latin-1", "replace"), f"Bearer {token}".encode())

    def _refuse(self, status: HTTPStatus, **headers: str) -> None:
        self._answer({"error": status.phrase}, status, **headers)

    def _answer(
        self, document: dict[str, Any], status: HTTPStatus = HTTPStatus.OK, **headers: str
    ) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def _tell_pieces(self, relay: RelayServer, sha256: str) -> None:
        if sha256 not in relay.shelf.have():
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        piece_bytes, pieces = relay.account.pieces(sha256)
        self._answer({"piece_bytes": piece_bytes, "pieces": list(pieces)})

    def _give(self, relay: RelayServer, sha256: str) -> None:
        with relay.shelf.reader(sha256) as reader:
            if reader is None:
                self._refuse(HTTPStatus.NOT_FOUND)
                return
            wanted = _range(self.headers.get("Range"), reader.total)
            if wanted is None:
                outside = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
                self._refuse(outside, Content_Range=f"bytes */{reader.total}")
                return
            sound = reader.sound_bytes(_edition(self.headers.get("If-Match"), relay.run))
            if sound < wanted[0]:
                self._refuse(HTTPStatus.PRECONDITION_FAILED, X_Sound_Bytes=str(sound))
                return
            self._begin(wanted, reader.total, f'"{relay.run}.{reader.edition}"')
            relay.asked(readers=1)
            try:
                self._send(reader, *wanted)
            except (CutOff, OSError):
                self.close_connection = True
            finally:
                relay.asked(readers=-1)

    def _begin(self, wanted: tuple[int, int], total: int, tag: str) -> None:
        first, end = wanted
        is_part = "Range" in self.headers
        self.send_response(HTTPStatus.PARTIAL_CONTENT if is_part else HTTPStatus.OK)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(end - first))
        self.send_header("ETag", tag)
        if is_part:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{total}")
        self.end_headers()

    def _send(self, reader: Reader, first: int, end: int) -> None:
        _block_in_kernel(self.connection)
        position = first
        while position < end:
            ready = min(reader.await_more(position, _LOOK_SECONDS), end)
            if ready == position:
                _require_peer(self.connection)
                continue
            count = min(ready - position, _SEND_BYTES)
            sent = os.sendfile(self.connection.fileno(), reader.descriptor, position, count)
            if not sent:  # somebody cut the file
                raise CutOff
            self.server.relay.served(sent)
            position += sent
        self.connection.settimeout(_HEADER_SECONDS)


def _standing(relay: RelayServer) -> dict[str, Any]:
    account = relay.account
    return {
        "phase": account.phase(),
        "blobs": relay.shelf.have(),
        "rate": round(account.rate()),
    }


def _range(header: str | None, total: int) -> tuple[int, int] | None:
    """First byte and end; None where the range has nothing of the content."""
    if header is None:
        return 0, total
    found = _RANGE.fullmatch(header)
    if not found:
        return None
    first, end = int(found[1]), int(found[2]) + 1 if found[2] else total
    return (first, min(end, total)) if first < min(end, total) else None


def _edition(header: str | None, run: str) -> int:
    """That of the bytes a reader has; a large one where it has none from this run of the relay."""
    found = _TAG.fullmatch(header or "")
    return int(found[2]) if found and found[1] == run else sys.maxsize


def _allow_files(count: int) -> None:
    """systemd starts units with 1024 and lets them have more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


def _block_in_kernel(connection: socket.socket) -> None:
    """sendfile(2) then waits by itself, and gives up on a peer that takes nothing."""
    connection.settimeout(None)
    timeval = struct.pack("ll", _STUCK_SECONDS, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
    with suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)


def _require_peer(connection: socket.socket) -> None:
    """Whoever waits for growth would else never notice that nobody reads any more."""
    with suppress(BlockingIOError):
        if not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            raise ConnectionResetError
