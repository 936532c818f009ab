"""One streamed request, timed. Knows neither how many there are nor what comes of them.

http.client and not httpx: of the same 32 streams it takes a fraction of the processor, which on
one machine the server would lack.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from qwen_deploy.chat.client import AnswerFailed, events, pieces

SILENCE_SECONDS = 300.0
CONNECT_SECONDS = 10.0
CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Target:
    """`base_url` ends where `/chat/completions` begins; with a socket it is reached through it."""

    base_url: str
    model: str
    api_key: str = field(repr=False)
    socket_path: Path | None = None


@dataclass(slots=True)
class Sample:
    """What became of one request. `error` says in few words why there was no whole answer; `gaps`
    are the times between arrivals, each of which may bring several pieces."""

    asked_at: float
    first_at: float | None = None
    ended_at: float = 0.0
    gaps: list[float] = field(default_factory=list)
    pieces: int = 0
    tokens: int | None = None
    prompt_tokens: int | None = None
    error: str | None = None
    retry_after: float | None = None


class Connection:
    """A connection that is kept for the next request while the server keeps it."""

    def __init__(self, target: Target) -> None:
        parts = urlsplit(target.base_url)
        self._target = target
        self._path = f"{parts.path.rstrip('/')}/chat/completions"
        self._headers = {
            "Authorization": f"Bearer {target.api_key}",
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
        }
        self._http = _connection(target, parts.scheme, parts.hostname or "", parts.port)
        self._http.response_class = Response
        self._socket: socket.socket | None = None
        self._is_closed = False

    def ask(self, payload: Mapping[str, object]) -> Sample:
        sample = Sample(asked_at=time.monotonic())
        try:
            self._ask(payload, sample)
        except (OSError, http.client.HTTPException, AnswerFailed) as error:
            sample.error = _kind(error, sample)
        if sample.error:
            self._http.close()  # a pause follows, in which the server might do so
        sample.ended_at = time.monotonic()
        return sample

    def close(self) -> None:
        """For good, and from any thread: what another one waits for ends."""
        self._is_closed = True
        if self._socket:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _ask(self, payload: Mapping[str, object], sample: Sample) -> None:
        body = json.dumps(payload).encode()
        if self._http.sock is None:
            self._http.connect()
            # Our own, because http.client forgets the one whose answer it is still reading.
            self._socket = cast(socket.socket, self._http.sock)
            self._socket.settimeout(SILENCE_SECONDS)
        if self._is_closed:
            raise ConnectionAbortedError
        self._http.request("POST", self._path, body, self._headers)
        response = cast(Response, self._http.getresponse())
        if response.status != 200:
            response.read()
            sample.error = f"HTTP {response.status}"
            sample.retry_after = _seconds(response.getheader("Retry-After"))
            return
        take(response.chunks(), sample, response.arrived_at)
        response.read()  # the end of the body, so that the connection can serve the next


def take(chunks: Iterable[bytes], sample: Sample, arrived_at: Callable[[], float]) -> None:
    """Pieces have the time at which their bytes came: of those that came together nobody can tell
    how long one was behind the other."""
    last = 0.0
    for piece in pieces(events(chunks)):
        if piece.text or piece.reasoning:
            now = arrived_at()
            if sample.first_at is None:
                sample.first_at = now
            elif now > last:
                sample.gaps.append(now - last)
            last = now
            sample.pieces += 1
        if piece.tokens is not None:
            sample.tokens, sample.prompt_tokens = piece.tokens, piece.prompt_tokens


class Response(http.client.HTTPResponse):
    """Knows when bytes last came from the network. What reads it sees only a buffer, and of that
    one HTTP chunk at a time, even where many came at once."""

    def __init__(self, *known: Any, **named: Any) -> None:
        super().__init__(*known, **named)
        self._network = _Timed(self.fp.detach())
        self.fp = io.BufferedReader(self._network, CHUNK_BYTES)

    def arrived_at(self) -> float:
        return self._network.read_at

    def chunks(self) -> Iterator[bytes]:
        while chunk := self.read1(CHUNK_BYTES):
            yield chunk


class _Timed(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self.read_at = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count = self._raw.readinto(buffer)
        self.read_at = time.monotonic()
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def _kind(error: Exception, sample: Sample) -> str:
    if isinstance(error, AnswerFailed):
        return error.message
    if isinstance(error, TimeoutError):
        return "silent for too long"
    if isinstance(error, ConnectionRefusedError | FileNotFoundError | socket.gaierror):
        return "no connection"
    return "connection lost" if sample.pieces else "connection lost before the first word"


def _seconds(header: str | None) -> float | None:
    return float(header) if header and header.isascii() and header.isdecimal() else None


def _connection(
    target: Target, scheme: str, host: str, port: int | None
) -> http.client.HTTPConnection:
    if target.socket_path:
        return _UnixConnection(target.socket_path)
    if scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, port, timeout=CONNECT_SECONDS, context=context)
    return http.client.HTTPConnection(host, port, timeout=CONNECT_SECONDS)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=CONNECT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
