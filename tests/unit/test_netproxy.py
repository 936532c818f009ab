from __future__ import annotations

import base64
import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

import httpx
import pytest
import requests

from qwen_deploy import netproxy
from qwen_deploy.loopback import LoopbackServer


class Echo(BaseHTTPRequestHandler):
    """Says what it was asked, and by whom."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        told = f"{self.command} {self.path} {self.headers['Host']} ".encode()
        told += self.rfile.read(length)
        assert "Proxy-Authorization" not in self.headers
        self.send_response(200)
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


class Dialed:
    """Opens connections to one port, whatever was asked for."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.asked: list[tuple[str, int]] = []

    def __call__(self, host: str, port: int) -> socket.socket:
        self.asked.append((host, port))
        if host == "down.example":
            raise ConnectionRefusedError(111, "Connection refused")
        return socket.create_connection(("127.0.0.1", self._port))


@pytest.fixture
def dialed() -> Iterator[Dialed]:
    server = LoopbackServer(Echo)
    server.start()
    yield Dialed(server.port)
    server.stop()


def with_httpx(proxy: str, url: str, content: bytes = b"") -> tuple[int, str]:
    with httpx.Client(proxy=proxy, trust_env=False, verify=False) as client:
        answer = client.request("POST" if content else "GET", url, content=content or None)
        return answer.status_code, answer.text


def with_requests(proxy: str, url: str, content: bytes = b"") -> tuple[int, str]:
    with requests.Session() as session:
        session.trust_env = False
        proxies = {"http": proxy, "https": proxy}
        method = "POST" if content else "GET"
        answer = session.request(method, url, data=content, proxies=proxies)
        return answer.status_code, answer.text


def credentials(proxy: str) -> str:
    user_and_password = urlsplit(proxy).netloc.rpartition("@")[0]
    return "Basic " + base64.b64encode(user_and_password.encode()).decode()


Ask = Callable[..., tuple[int, str]]
CLIENTS = pytest.mark.parametrize("ask", [with_httpx, with_requests])


@CLIENTS
def test_connections_begin_where_they_are_dialed(ask: Ask, dialed: Dialed) -> None:
    with netproxy.serve(dialed) as proxy:
        assert ask(proxy, "http://hub.example/a%20b?c=d") == (200, "GET /a%20b?c=d hub.example ")
        sent = ask(proxy, "http://hub.example:8080/x", b"content")
        assert sent == (200, "POST /x hub.example:8080 content")
    assert dialed.asked == [("hub.example", 80), ("hub.example", 8080)]


def test_one_client_asks_several_times(dialed: Dialed) -> None:
    with (
        netproxy.serve(dialed) as proxy,
        httpx.Client(proxy=proxy, trust_env=False, verify=False) as client,
    ):
        for name in ("a", "b"):
            assert client.get(f"http://{name}.example/").text == f"GET / {name}.example "


def test_nobody_else_may_use_it(dialed: Dialed) -> None:
    with netproxy.serve(dialed) as proxy:
        port = urlsplit(proxy).port
        for stranger in (f"http://127.0.0.1:{port}", f"http://qwen-deploy:guess@127.0.0.1:{port}"):
            assert with_httpx(stranger, "http://hub.example/")[0] == 407
            with pytest.raises(httpx.ProxyError, match="407"):
                with_httpx(stranger, "https://hub.example/")
    assert dialed.asked == []


def test_each_proxy_has_a_password_of_its_own(dialed: Dialed) -> None:
    with netproxy.serve(dialed) as one, netproxy.serve(dialed) as other:
        passwords = {urlsplit(url).password for url in (one, other)}
    assert len(passwords) == 2
    assert all(password and len(password) > 40 for password in passwords)


@CLIENTS
def test_a_failed_connection_is_told(ask: Ask, dialed: Dialed) -> None:
    with netproxy.serve(dialed) as proxy:
        assert ask(proxy, "http://down.example/")[0] == 502
        with pytest.raises((httpx.ProxyError, requests.exceptions.ProxyError), match="502"):
            ask(proxy, "https://down.example/")


@pytest.mark.parametrize(
    "line", ["GET /path HTTP/1.1", "GET https://a.example/ HTTP/1.1", "CONNECT nowhere HTTP/1.1"]
)
def test_what_is_no_request_to_a_proxy_is_refused(line: str, dialed: Dialed) -> None:
    with netproxy.serve(dialed) as proxy:
        parts, token = urlsplit(proxy), credentials(proxy)
        with socket.create_connection(("127.0.0.1", parts.port or 0)) as client:
            head = f"{line}\r\nHost: a\r\nProxy-Authorization: {token}\r\n\r\n"
            client.sendall(head.encode())
            answer = client.makefile("rb").readline()
    assert answer.startswith(b"HTTP/1.1 400")
    assert dialed.asked == []


def test_the_end_of_the_proxy_ends_its_connections(dialed: Dialed) -> None:
    with netproxy.serve(dialed) as proxy:
        parts, token = urlsplit(proxy), credentials(proxy)
        client = socket.create_connection(("127.0.0.1", parts.port or 0))
        head = f"CONNECT a:1 HTTP/1.1\r\nProxy-Authorization: {token}\r\n\r\n"
        client.sendall(head.encode())
        assert b" 200 " in client.recv(1000)
    with client:
        assert client.recv(1) == b""
