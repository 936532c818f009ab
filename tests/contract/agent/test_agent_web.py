"""Requests over HTTP against loopback servers: redirects, secrets, TLS, proxies, slow answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from qwen_weights.errors import BadManifest, TokenRefused, Untrusted
from qwen_weights.sources import Interruption, Patience
from qwen_weights.sources.web import Request, Web

from tests.contract.agent.loopback import (
    Proxy,
    Server,
    answering,
    chunked,
    dripping,
    holding,
    in_turn,
    serving,
    silent,
)
from tests.hub import Certificate

pytestmark = pytest.mark.contract

QUICK = Patience(stall_seconds=5)
SECRET = {"Authorization": "Bearer secret"}


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(answering(200, b"content")) as server:
        yield server


@pytest.fixture
def other() -> Iterator[Server]:
    with serving(answering(200, b"from the storage")) as server:
        yield server


@pytest.fixture(scope="module")
def certificate() -> Certificate:
    return Certificate()


def text(web: Web, url: str) -> str:
    with closing(web.ask(Request(url, private=SECRET))) as answer:
        return answer.text()


def test_a_secret_stays_with_its_origin(server: Server, other: Server) -> None:
    server.answer = answering(302, Location=f"{other.url}/blob?signature=x")
    assert text(Web(patience=QUICK), f"{server.url}/file") == "from the storage"
    assert server.asked[0][1]["Authorization"] == "Bearer secret"
    ((target, headers),) = other.asked
    assert target == "/blob?signature=x" and "Authorization" not in headers


def test_a_redirect_at_home_keeps_the_secret(server: Server) -> None:
    server.answer = in_turn(answering(307, Location="/b/%E2%82%AC c"), answering(200, b"moved"))
    assert text(Web(patience=QUICK), f"{server.url}/a") == "moved"
    assert [target for target, _ in server.asked] == ["/a", "/b/%E2%82%AC%20c"]
    assert server.asked[1][1]["Authorization"] == "Bearer secret"


def test_the_password_of_a_url_is_sent_and_not_shown(server: Server) -> None:
    url = server.url.replace("://", "://user:pass%2Fword@")
    with closing(Web(patience=QUICK).ask(Request(url))):
        pass
    assert server.asked[0][1]["Authorization"] == "Basic dXNlcjpwYXNzL3dvcmQ="
    with pytest.raises(Interruption) as interrupted:
        server.answer = answering(302, Location=f"{url}/")
        Web(patience=QUICK).ask(Request(url + "/"))
    assert "pass" not in str(interrupted.value)


def test_a_loop_of_redirects_is_named(server: Server) -> None:
    server.answer = lambda request: request.answer(
        302, Location="/b?x" if request.path == "/a" else "/a"
    )
    way = " -> ".join(f"{server.url}{path}" for path in ("/a", "/b", "/a"))
    with pytest.raises(Interruption, match=f"redirects in a loop: {way}"):
        Web(patience=QUICK).ask(Request(f"{server.url}/a"))
    assert len(server.asked) == 2


def test_redirects_end_somewhere(server: Server) -> None:
    server.answer = lambda request: request.answer(302, Location=request.path + "x")
    with pytest.raises(Interruption, match="more than 5 times"):
        Web(patience=QUICK).ask(Request(f"{server.url}/"))
    assert len(server.asked) == 6


@pytest.mark.parametrize("location", ["", "ftp://127.0.0.1/x", "http://[x"])
def test_a_redirect_to_nowhere_is_said(server: Server, location: str) -> None:
    server.answer = answering(302, Location=location)
    with pytest.raises(Interruption, match=r"without saying where|no such URL"):
        Web(patience=QUICK).ask(Request(server.url))


def test_tls_is_trusted_by_its_own_ca(certificate: Certificate) -> None:
    with serving(answering(200, b"content"), certificate.context) as server:
        assert text(Web(ca=certificate.pem, patience=QUICK), server.url) == "content"
        with pytest.raises(Untrusted) as refused:
            Web(patience=QUICK).ask(Request(server.url))
        assert f"certificate of {server.url} is not vouched for by the CAs of" in str(refused.value)
        with pytest.raises(Untrusted, match="by the private CA it was given"):
            Web(ca=Certificate().pem, patience=QUICK).ask(Request(server.url))


def test_much_comes_through_tls_as_it_was_sent(certificate: Certificate) -> None:
    content = bytes(range(256)) * 8000
    with serving(answering(200, content), certificate.context) as server:
        web = Web(ca=certificate.pem, patience=QUICK)
        received, buffer = b"", memoryview(bytearray(1 << 20))
        with closing(web.ask(Request(server.url))) as answer:
            while count := answer.readinto(buffer):
                received += buffer[:count]
    assert received == content


def test_a_certificate_for_another_name_is_refused() -> None:
    certificate = Certificate("127.0.0.2")
    with (
        serving(answering(200), certificate.context) as server,
        pytest.raises(Untrusted, match=r"is for another name: .*127\.0\.0\.1"),
    ):
        Web(ca=certificate.pem, patience=QUICK).ask(Request(server.url))


@pytest.mark.parametrize(
    ("begins_in_days", "words"),
    [(2, "is not yet valid by this host's clock"), (-90, "has expired, if this host's clock")],
)
def test_a_wrong_clock_is_named_with_its_time(begins_in_days: int, words: str) -> None:
    certificate = Certificate(begins_in_days=begins_in_days)
    with serving(answering(200), certificate.context) as server:
        web = Web(ca=certificate.pem, patience=QUICK, clock=lambda: 1_000_000_000)
        with pytest.raises(Untrusted) as refused:
            web.ask(Request(server.url))
    assert words in str(refused.value) and "2001-09-09 01:46:40 UTC" in str(refused.value)


def test_https_is_not_left_for_http(certificate: Certificate, server: Server) -> None:
    to_http = answering(302, Location=server.url)
    with (
        serving(to_http, certificate.context) as secure,
        pytest.raises(Untrusted, match="redirects from https to http"),
    ):
        Web(ca=certificate.pem, patience=QUICK).ask(Request(secure.url))
    assert not server.asked


def test_who_asks_plain_http_for_tls_is_told_the_url_to_use(server: Server) -> None:
    secure = server.url.replace("http", "https")
    with pytest.raises(Interruption) as told:
        Web(patience=QUICK).ask(Request(secure))
    assert str(told.value) == (
        f"no TLS with {secure}: the server answered plain HTTP: use {server.url}"
    )


def test_a_ca_that_is_none_is_refused() -> None:
    with pytest.raises(BadManifest, match="no certificate in PEM"):
        Web(ca="nonsense")


def test_a_proxy_connects_to_both_kinds(certificate: Certificate, server: Server) -> None:
    with Proxy() as proxy, serving(answering(200, b"tls"), certificate.context) as secure:
        web = Web(proxy=proxy.url("u:p@"), ca=certificate.pem, patience=QUICK)
        assert text(web, server.url) == "content"
        assert text(web, secure.url) == "tls"
    for asked, target in zip(proxy.asked, (server, secure), strict=True):
        assert asked.startswith(f"CONNECT 127.0.0.1:{target.server_port} HTTP/1.1\r\n")
        assert "Proxy-Authorization: Basic dTpw\r\n" in asked and "secret" not in asked
    assert "Proxy-Authorization" not in server.asked[0][1]


@pytest.mark.parametrize(
    ("user", "answer", "error", "words"),
    [
        ("u:p@", "407 Authenticate", TokenRefused, "refused its user and password"),
        ("", "407 Authenticate", TokenRefused, "wants a user and password"),
        ("", "403 Forbidden", Interruption, "does not reach 127.0.0.1:9: 403 Forbidden"),
    ],
)
def test_a_proxy_that_refuses_is_named(
    user: str, answer: str, error: type[Exception], words: str
) -> None:
    with Proxy(answer=answer) as proxy, pytest.raises(error, match=words) as refused:
        Web(proxy=proxy.url(user), patience=QUICK).ask(Request("http://127.0.0.1:9/"))
    assert proxy.url().removeprefix("http://") in str(refused.value)
    assert "u:p" not in str(refused.value)


def test_a_proxy_that_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Interruption, match=f"the proxy http://127.0.0.1:{port}: connection refu"):
        Web(proxy=f"http://127.0.0.1:{port}", patience=QUICK).ask(Request("http://127.0.0.1:9/"))
    with pytest.raises(BadManifest, match="should be reached by http"):
        Web(proxy="https://127.0.0.1:1")


def test_an_answer_slower_than_is_of_use_is_given_up(server: Server) -> None:
    server.answer = dripping
    patience = Patience(stall_seconds=5, slow_bytes=10_000, slow_seconds=0.1)
    with (
        closing(Web(patience=patience).ask(Request(server.url))) as answer,
        pytest.raises(Interruption, match=r"it sent only \d+ bytes in"),
    ):
        answer.text()


def test_silence_is_an_interruption(server: Server) -> None:
    server.answer = silent
    with pytest.raises(Interruption, match="sent nothing for too long"):
        Web(patience=Patience(stall_seconds=0.1)).ask(Request(server.url))


def test_a_chunked_answer_is_read(server: Server) -> None:
    server.answer = chunked(b"abc", b"defg")
    assert text(Web(patience=QUICK), server.url) == "abcdefg"


def test_closing_wakes_readers_and_refuses_new_ones(server: Server) -> None:
    server.answer = holding(b"x", 10)
    web = Web(patience=Patience(stall_seconds=30))
    results: list[str | Interruption] = []
    is_reading = threading.Event()

    def read() -> None:
        with closing(web.ask(Request(server.url))) as answer:
            buffer = memoryview(bytearray(1))
            assert answer.readinto(buffer) == 1
            is_reading.set()
            try:
                results.append(answer.text())
            except Interruption as interruption:
                results.append(interruption)

    thread = threading.Thread(target=read)
    thread.start()
    assert is_reading.wait(10)
    web.close()
    thread.join(10)
    assert results and not thread.is_alive()
    with pytest.raises(Interruption):
        web.ask(Request(server.url))
