"""Another host that takes part in the same rollout: what it has, and ranges of it that follow its
files while they grow. Does not judge what it sends, nor whether it is quick."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from qwen_weights.errors import (
    BadManifest,
    Changed,
    Missing,
    TokenRefused,
    WeightsError,
    WrongPiece,
)
from qwen_weights.manifest import Artifact
from qwen_weights.sources import Interruption
from qwen_weights.sources.connect import reason, split

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})")
_MOST_ANSWER_BYTES = 16 << 20
# A peer whose host lost its power says nothing of it: tcp(7).
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


@dataclass(frozen=True)
class Standing:
    """What a peer says of itself."""

    phase: str = ""
    blobs: dict[str, int] = field(default_factory=dict)
    rate: float = 0.0


class PeerSource:
    is_wan = False

    def __init__(self, name: str, url: str, token: str, *, timeout_seconds: float = 5) -> None:
        parts, origin = split(url)
        if origin.scheme != "http" or parts.path.strip("/"):
            raise BadManifest(f"{name}: {url!r} is not the address of a peer")
        self.name = name
        self.url = str(origin)
        self._host, self._port = origin.host, origin.port
        self._headers = {"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"}
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._streams: set[PeerStream] = set()
        self._is_closed = False
        self._received_bytes = 0
        self._received_at = 0.0
        self._tags: dict[str, str] = {}  # of what was read of each content
        self.is_answering = False

    def __repr__(self) -> str:
        return f"PeerSource({self.name!r}, {self.url!r})"

    def offers(self, artifact: Artifact) -> bool:
        return True

    def open(self, artifact: Artifact, offset: int, end: int | None = None) -> PeerStream:
        last = "" if end is None else str(end - 1)
        headers = {**self._headers, "Range": f"bytes={offset}-{last}"}
        tag = self._tags.get(artifact.sha256)
        if tag and offset and end is None:
            headers["If-Match"] = tag
        connection = self._connection()
        with _typed(), _closing_on_error(connection):
            connection.connect()
            sock = connection.sock
            connection.request("GET", f"/blobs/{artifact.sha256}", headers=headers)
            response = connection.getresponse()
            self._tags.pop(artifact.sha256, None)
            self._check(response, artifact.path)
            self._tags[artifact.sha256] = response.getheader("ETag") or ""
            total = _total(response, artifact.path, offset)
            # From here on silence may mean that the peer waits too: relays.py judges that.
            sock.settimeout(None)
            _notice_death(sock)
            stream = PeerStream(self, artifact, offset, total=total, response=response, sock=sock)
            self._keep(stream)
        return stream

    def standing(self) -> Standing:
        try:
            answer = self._ask("/have")
        except (Interruption, WeightsError):
            self.is_answering = False
            raise
        self.is_answering = True
        try:
            blobs = {str(name): int(size) for name, size in answer["blobs"].items()}
            return Standing(str(answer["phase"]), blobs, float(answer["rate"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise Interruption(f"{self.name} answered something else than a relay") from error

    def pieces(self, sha256: str) -> tuple[int, tuple[str, ...]]:
        """The size of a piece, and the hashes of those that the peer has whole."""
        answer = self._ask(f"/pieces/{sha256}")
        try:
            return int(answer["piece_bytes"]), tuple(map(str, answer["pieces"]))
        except (KeyError, TypeError, ValueError) as error:
            raise Interruption(f"{self.name} answered something else than a relay") from error

    def streams(self) -> tuple[PeerStream, ...]:
        with self._lock:
            return tuple(self._streams)

    @property
    def received_bytes(self) -> int:
        """Of all streams, so far."""
        with self._lock:
            return self._received_bytes

    @property
    def received_at(self) -> float:
        """On the monotonic clock; 0 before the first byte."""
        with self._lock:
            return self._received_at

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
        for stream in self.streams():
            stream.abort()

    def _ask(self, target: str) -> dict[str, Any]:
        connection = self._connection()
        with _typed():
            try:
                connection.request("GET", target, headers=self._headers)
                response = connection.getresponse()
                self._check(response, target)
                answer = json.loads(response.read(_MOST_ANSWER_BYTES))
            finally:
                connection.close()
        return answer if isinstance(answer, dict) else {}

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_seconds)

    def _check(self, response: http.client.HTTPResponse, what: str) -> None:
        status = response.status
        if status in (401, 403):
            raise TokenRefused(f"{self.name} refused the token of this rollout: {status}")
        if status == 404:
            raise Missing(f"{self.name} has no {what}: it belongs to another order")
        if status == 412:
            sound = int(response.getheader("X-Sound-Bytes") or 0)
            raise WrongPiece(sound, f"{self.name} took back what it gave of {what}", blames=False)
        if status == 416:
            raise Changed(f"{self.name} has another {what} than that of the manifest")
        if status not in (200, 206):
            raise Interruption(f"{self.name} answered {status} {response.reason}")

    def _keep(self, stream: PeerStream) -> None:
        with self._lock:
            self._streams.add(stream)
            if self._is_closed:
                stream.abort()

    def _took(self, count: int) -> None:
        with self._lock:
            self._received_bytes += count
            self._received_at = time.monotonic()

    def _ended(self, stream: PeerStream) -> None:
        with self._lock:
            self._streams.discard(stream)


class PeerStream:
    """`position` and `moved_at` may be read by another thread, which may also abort it."""

    def __init__(
        self,
        source: PeerSource,
        artifact: Artifact,
        offset: int,
        *,
        total: int,
        response: http.client.HTTPResponse,
        sock: socket.socket,
    ) -> None:
        self.artifact = artifact
        self.offset = offset
        self.total = total
        self.position = offset
        self.moved_at = time.monotonic()
        self._source = source
        self._end = offset + (response.length or 0)
        self._response = response
        self._socket = sock

    def readinto(self, buffer: memoryview) -> int:
        wanted = buffer[: self._end - self.position]
        with _typed():
            # Past HTTPResponse's own method, which copies.
            count = self._response.fp.readinto1(wanted) if wanted else 0
        if count:
            self.position += count
            self.moved_at = time.monotonic()
            self._source._took(count)
        return count

    def limit_silence(self, seconds: float) -> None:
        self._socket.settimeout(seconds)

    def abort(self) -> None:
        """Its reader meets the end of the stream at once."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._source._ended(self)
        self._response.close()
        self._socket.close()


@contextmanager
def _typed() -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Interruption(reason(error)) from error


@contextmanager
def _closing_on_error(connection: http.client.HTTPConnection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise


def _total(response: http.client.HTTPResponse, path: str, offset: int) -> int:
    found = _CONTENT_RANGE.fullmatch(response.getheader("Content-Range") or "")
    if not found or int(found[1]) != offset:
        raise Interruption(f"{path}: asked for byte {offset}, was answered another range")
    return int(found[2])


def _notice_death(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
