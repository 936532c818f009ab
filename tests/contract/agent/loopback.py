"""A server on loopback that answers as a test tells it, and a proxy that only connects. Knows no
hub's protocol."""

from __future__ import annotations

import re
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[["Request"], None]
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Server(ThreadingHTTPServer):
    """`asked` holds the target and the headers of every request."""

    daemon_threads = True

    def __init__(self, answer: Answer, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.answer = answer
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.bodies: list[bytes] = []
        self.released = threading.Event()  # ends the answers that hold on
        self.scheme = "https" if context else "http"
        if context:
            self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that hangs up, or that does not trust the certificate."""


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.asked.append((self.path, dict(self.headers)))
        self.server.answer(self)

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    @property
    def range(self) -> tuple[int, int | None] | None:
        found = _RANGE.fullmatch(self.headers.get("Range", ""))
        return (int(found[1]), int(found[2]) + 1 if found[2] else None) if found else None

    def answer(self, status: int, content: bytes = b"", /, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving(answer: Answer, context: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(answer, context)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


def answering(status: int, content: bytes = b"", /, **headers: str) -> Answer:
    return lambda request: request.answer(status, content, **headers)


def holding(content: bytes, length: int) -> Answer:
    """Promises more than it sends before the server is released."""

    def answer(request: Request) -> None:
        request.answer(200, content, Content_Length=str(length))
        request.wfile.flush()
        request.server.released.wait(20)

    return answer


def silent(request: Request) -> None:
    request.server.released.wait(20)


def dripping(request: Request) -> None:
    request.answer(200, Content_Length="1000000")
    while not request.server.released.wait(0.01):
        request.wfile.write(b"x")


def chunked(*pieces: bytes) -> Answer:
    def answer(request: Request) -> None:
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for piece in (*pieces, b""):
            request.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    return answer


def in_turn(*answers: Answer) -> Answer:
    """The last one also from then on."""
    left = list(answers)
    lock = threading.Lock()

    def answer(request: Request) -> None:
        with lock:
            chosen = left.pop(0) if len(left) > 1 else left[0]
        chosen(request)

    return answer


def files(contents: dict[str, bytes], *, stop_at: int | None = None, holds: bool = False) -> Answer:
    """Files by their path, with ranges. An answer ends at byte `stop_at` of the file, at once or,
    if it `holds`, when the server is released."""

    def answer(request: Request) -> None:
        content = contents.get(request.path.removeprefix("/").partition("?")[0])
        if content is None:
            request.answer(404)
            return
        first, end = request.range or (0, None)
        part = content[first:end]
        told = {"Content_Length": str(len(part))}
        if request.range:
            told["Content_Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        cut = part if stop_at is None else part[: max(0, stop_at - first)]
        request.answer(206 if request.range else 200, cut, **told)
        if holds and len(cut) < len(part):
            request.wfile.flush()
            request.server.released.wait(20)

    return answer


class Proxy:
    """Knows CONNECT and nothing else; `asked` holds each request's first line and headers."""

    def __init__(self, *, answer: str = "200 Connection established") -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]
        self._answer = answer
        self.asked: list[str] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def url(self, user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self._port}"

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with near, suppress(OSError):
            words = b""
            while b"\r\n\r\n" not in words:
                words += near.recv(4096)
            self.asked.append(words.decode())
            near.sendall(f"HTTP/1.1 {self._answer}\r\n\r\n".encode())
            if not self._answer.startswith("200"):
                return
            host, port = words.split()[1].decode().rsplit(":", 1)
            with socket.create_connection((host.strip("[]"), int(port))) as far:
                _join(near, far)


def _join(one: socket.socket, other: socket.socket) -> None:
    while True:
        for ready in select.select([one, other], [], [])[0]:
            content = ready.recv(65536)
            if not content:
                return
            (other if ready is one else one).sendall(content)
