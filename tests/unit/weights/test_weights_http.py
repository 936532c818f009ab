"""The HTTP source against a server that answers as told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from qwen_weights.errors import BadManifest, Changed, Missing, TokenRefused, WeightsError
from qwen_weights.sources import Interruption
from qwen_weights.sources.http import HttpSource

CONTENT = b"0123456789"
Answer = Callable[[BaseHTTPRequestHandler], None]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    answer: Answer
    asked: list[tuple[str, dict[str, str]]]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.asked.append((self.path, dict(self.headers)))
        self.server.answer(self)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def answering(status: int, content: bytes = b"", /, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(content)

    return answer


def hang_up(request: BaseHTTPRequestHandler) -> None:
    pass


def answering_in_time(status: int, ended: threading.Event, **headers: str) -> Answer:
    """Sends headers at most, and then nothing until `ended`."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        if status:
            answering(status, **headers)(request)
        ended.wait(10)

    return answer


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def source_of(server: Server, **options: Any) -> HttpSource:
    return HttpSource(f"http://127.0.0.1:{server.server_port}/base/", **options)


def read(server: Server, offset: int = 0) -> tuple[bytes, int | None]:
    content = b""
    with closing(source_of(server, token="t", stall_seconds=5).open("a b/ü%.x", offset)) as stream:
        while piece := stream.read(4):
            content += piece
        return content, stream.total


def test_a_file_is_asked_for_by_its_encoded_name_with_the_token(server: Server) -> None:
    server.answer = answering(200, CONTENT)
    assert read(server) == (CONTENT, 10)
    [(path, headers)] = server.asked
    assert path == "/base/a%20b/%C3%BC%25.x"
    assert headers["Authorization"] == "Bearer t"
    assert "Range" not in headers


def test_the_rest_is_asked_for_as_a_range(server: Server) -> None:
    server.answer = answering(206, CONTENT[4:], Content_Range="bytes 4-9/10")
    assert read(server, 4) == (CONTENT[4:], 10)
    assert server.asked[0][1]["Range"] == "bytes=4-"


def test_a_server_without_ranges_is_read_from_the_start(server: Server) -> None:
    server.answer = answering(200, CONTENT)
    assert read(server, 4) == (CONTENT[4:], 10)


def test_another_range_than_asked_is_not_taken(server: Server) -> None:
    server.answer = answering(206, CONTENT, Content_Range="bytes 0-9/10")
    with pytest.raises(Interruption, match="another range"):
        read(server, 4)


LASTING = [
    (401, TokenRefused, "refused the token"),
    (403, TokenRefused, "refused the token"),
    (404, Missing, "404 Not Found"),
    (410, Missing, "410 Gone"),
    (409, Changed, "no longer the file of the manifest"),
    (416, Changed, "no longer the file of the manifest"),
]


@pytest.mark.parametrize(("status", "kind", "reason"), LASTING)
def test_refusals_that_stay_end_the_transfer(
    server: Server, status: int, kind: type[WeightsError], reason: str
) -> None:
    server.answer = answering(status)
    with pytest.raises(kind, match=reason):
        read(server)


@pytest.mark.parametrize("status", [301, 302, 429, 500, 503])
def test_refusals_that_may_pass_are_retried(server: Server, status: int) -> None:
    server.answer = answering(status, Retry_After="7", Location="http://elsewhere/")
    with pytest.raises(Interruption, match=f"answered {status}") as interrupted:
        read(server)
    assert interrupted.value.retry_after == 7
    assert len(server.asked) == 1


def test_a_retry_after_that_is_a_date_is_left_alone(server: Server) -> None:
    server.answer = answering(503, Retry_After="Wed, 21 Oct 2026 07:28:00 GMT")
    with pytest.raises(Interruption) as interrupted:
        read(server)
    assert interrupted.value.retry_after is None


def test_a_server_that_hangs_up_may_come_back(server: Server) -> None:
    server.answer = hang_up
    with pytest.raises(Interruption):
        read(server)


def test_silence_is_an_interruption(server: Server) -> None:
    ended = threading.Event()
    server.answer = answering_in_time(0, ended)
    try:
        with pytest.raises(Interruption, match="sent nothing for too long"):
            source_of(server, stall_seconds=0.1).open("x", 0)
    finally:
        ended.set()


def test_closing_the_source_wakes_its_readers(server: Server) -> None:
    ended, is_open = threading.Event(), threading.Event()
    server.answer = answering_in_time(200, ended, Content_Length="10")
    source = source_of(server, stall_seconds=30)
    results: list[bytes | Interruption] = []

    def reader() -> None:
        with closing(source.open("x", 0)) as stream:
            is_open.set()
            try:
                results.append(stream.read(10))
            except Interruption as interruption:
                results.append(interruption)

    thread = threading.Thread(target=reader)
    thread.start()
    assert is_open.wait(10)
    source.close()
    thread.join(10)
    ended.set()
    assert results and not thread.is_alive()


def test_a_url_of_another_kind_is_refused() -> None:
    for url in ("ftp://x/", "file:///etc", "x", "http://"):
        with pytest.raises(BadManifest, match="not an http or https URL"):
            HttpSource(url)


def test_a_password_in_the_url_is_not_shown() -> None:
    assert HttpSource("http://user:secret@127.0.0.1:1/x").name == "http://127.0.0.1:1"
