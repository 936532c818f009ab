"""One request over HTTP and its answer: redirects, secrets that stay with their origin, and a
speed below which an answer is given up. Does not know what is asked for or what a status means."""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from urllib.parse import quote, urljoin

from qwen_weights.errors import BadManifest, Untrusted
from qwen_weights.sources import Patience, Stubborn, TooSlow
from qwen_weights.sources.connect import (
    Connector,
    Origin,
    basic,
    interruption,
    split,
    without_secrets,
)

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_TEXT_BYTES = 1 << 20
_RECORDS_BYTES = 256 << 10
_IN_A_URL = "%/:?#[]@!$&'()*+,;=~"


@dataclass(frozen=True)
class Request:
    """`private` headers go to the origin of the URL and nowhere else, `headers` everywhere."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    private: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | None = None


class Web:
    """The requests of one source, which can be ended together."""

    def __init__(
        self,
        *,
        proxy: str | None = None,
        ca: str | None = None,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._patience = patience or Patience()
        self._connector = Connector(
            proxy=proxy, ca=ca, timeout_seconds=self._patience.stall_seconds, clock=clock
        )

    def ask(self, request: Request) -> Answer:
        """The answer that is no redirect."""
        urls = [request.url]
        named = ""
        while True:
            answer = self._ask_once(request, urls[-1])
            named = answer.linked_etag or named
            if answer.status not in _REDIRECTS:
                answer.linked_etag = named
                return answer
            with closing(answer):
                urls.append(_next_url(urls, answer))

    def close(self) -> None:
        self._connector.close()

    def _ask_once(self, request: Request, url: str) -> Answer:
        parts, origin = split(url)
        is_home = origin == split(request.url)[1]
        headers = {"Host": parts.netloc.rpartition("@")[2], "Accept-Encoding": "identity"}
        headers.update(request.headers)
        if is_home:
            headers.update(request.private)
            credentials = basic(split(request.url)[0])
            if credentials:
                headers.setdefault("Authorization", credentials)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        sock = self._connector.connect(origin)
        connection = http.client.HTTPConnection(origin.host, origin.port)
        connection.sock = sock
        try:
            method = "GET" if request.body is None else "POST"
            connection.request(method, target, body=request.body, headers=headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._connector.release(sock)
            raise interruption(error) from error
        return Answer(self._connector, sock, response, origin, is_home, self._patience)


class Answer:
    def __init__(
        self,
        connector: Connector,
        sock: socket.socket,
        response: http.client.HTTPResponse,
        origin: Origin,
        is_home: bool,
        patience: Patience,
    ) -> None:
        self._response = response
        self.origin = origin
        self.is_home = is_home
        self.status = response.status
        self.reason = response.reason or "without a reason"
        self.length = response.length
        etag = self.header("X-Linked-Etag") if is_home else ""
        # What a hub calls the content while it sends the reader to its storage.
        self.linked_etag = etag.removeprefix("W/").strip('"')
        self._connector = connector
        self._socket = sock
        self._patience = patience
        self._received = 0
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._slow_count, self._waited_seconds = 0, 0.0

    def header(self, name: str) -> str:
        return self._response.getheader(name, "") or ""

    def readinto(self, buffer: memoryview) -> int:
        """Fills the start of the buffer as soon as there is anything; 0 at the end."""
        began = time.monotonic()
        try:
            count = self._take(buffer)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise interruption(error) from error
        self._judge_speed(count, time.monotonic() - began)
        return count

    def text(self) -> str:
        """The rest, as far as anyone would read it."""
        buffer, content = memoryview(bytearray(64 << 10)), b""
        while len(content) < _TEXT_BYTES and (count := self.readinto(buffer)):
            content += buffer[:count]
        return content.decode("utf-8", "replace")

    def close(self) -> None:
        self._response.close()
        self._connector.release(self._socket)

    def _take(self, buffer: memoryview) -> int:
        response = self._response
        if response.isclosed():
            return 0
        if response.chunked:
            piece = response.read1(len(buffer))
            buffer[: len(piece)] = piece
            return len(piece)
        # Past the buffer of http.client: a copy less, and no allocation.
        left = len(buffer) if self.length is None else self.length - self._received
        buffer = buffer[:left]
        count = response.fp.readinto1(buffer) if left else 0
        with suppress(OSError):  # the next read meets it again, and this one has something
            while 0 < count < min(len(buffer), _RECORDS_BYTES) and self._has_record():
                more = response.fp.readinto1(buffer[count:])
                if not more:
                    break
                count += more
        self._received += count
        return count

    def _has_record(self) -> bool:
        """TLS gives at most 16 KiB at a time, and what is done with each read costs more than
        that is worth."""
        return isinstance(self._socket, ssl.SSLSocket) and bool(self._poll.poll(0))

    def _judge_speed(self, count: int, seconds: float) -> None:
        """Only the time spent waiting counts: the reader may be slow on purpose."""
        self._slow_count += count
        self._waited_seconds += seconds
        if self._waited_seconds < self._patience.slow_seconds:
            return
        if self._slow_count < self._patience.slow_bytes * self._waited_seconds:
            raise TooSlow(f"it sent only {self._slow_count} bytes in {self._waited_seconds:.0f} s")
        self._slow_count, self._waited_seconds = 0, 0.0


def _next_url(urls: list[str], answer: Answer) -> str:
    """Raises where following would go round for ever, or tell the way in clear."""
    location = quote(answer.header("Location").encode("latin-1"), safe=_IN_A_URL)
    if not location:
        raise Stubborn(f"answered {answer.status} without saying where to go")
    try:
        following = urljoin(urls[-1], location)
        parts, _ = split(following)
    except (ValueError, BadManifest) as error:
        raise Stubborn(f"redirects to no such URL: {without_secrets(location)}") from error
    way = " -> ".join(without_secrets(url) for url in (*urls, following))
    if following in urls:
        raise Stubborn(f"redirects in a loop: {way}")
    if len(urls) > _MOST_REDIRECTS:
        raise Stubborn(f"redirects more than {_MOST_REDIRECTS} times: {way}")
    if answer.origin.scheme == "https" and parts.scheme == "http":
        raise Untrusted(f"{answer.origin} redirects from https to http: {way}")
    return following
