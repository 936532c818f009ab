"""Clients that are slow, greedy or rude, against a real process; one that behaves is served on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.fixture_model import fixture_model
from tests.fixture_model.dialogues import answer_to
from tests.running_service import DEADLINE_SECONDS, MODEL, RunningService

pytestmark = pytest.mark.contract

CHAT = "/v1/chat/completions"
KEY = "sk-anna"
MOST = 12
HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """Impatient, small, and asked to write down what is said."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"anna {hashlib.sha256(KEY.encode()).hexdigest()} rpm=1000\n")
    settings = {
        "QWEN_AUTH": "keys",
        "QWEN_KEYS_FILE": str(keys),
        "QWEN_HEAD_SECONDS": "4",
        "QWEN_BODY_SECONDS": "4",
        "QWEN_MAX_CONNECTIONS": str(MOST),
        "QWEN_LOG_PROMPTS": "on",
        "QWEN_METRICS": "key",
    }
    with RunningService(fixture_model(), settings) as running:
        yield running.wait_ready()


@contextlib.contextmanager
def connection(service: RunningService) -> Iterator[socket.socket]:
    address = ("127.0.0.1", httpx.URL(service.url).port)
    with socket.create_connection(address, DEADLINE_SECONDS) as opened:
        yield opened


def rest(opened: socket.socket) -> bytes:
    """All that still comes, until the service closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := opened.recv(65536):
            received += part
    return received


def status_and_code(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def ask(service: RunningService) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "你好"}], "temperature": 0}
    with service.client(headers=HEADERS) as client:
        answer = client.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == answer_to("你好")


POST = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n".encode()


def test_bodies_that_do_not_arrive_are_timeouts(strict: RunningService) -> None:
    with connection(strict) as nothing, connection(strict) as half:
        head = b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        nothing.sendall(POST + head)
        half.sendall(POST + head + b'{"model": ')
        for opened in (nothing, half):
            assert status_and_code(rest(opened)) == (408, "request_timeout")
    ask(strict)


def test_heads_that_do_not_arrive_end_the_connection(strict: RunningService) -> None:
    first = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    heads = {b"": b"", b"GET /hea": b"", POST: b"", first + b"GET /hea": b'{"status":"ok"}'}
    with contextlib.ExitStack() as stack:
        opened = [(stack.enter_context(connection(strict)), head) for head in heads]
        for one, head in opened:
            one.sendall(head)
        for one, head in opened:
            answer = rest(one)
            assert answer.endswith(heads[head])
            assert bool(answer) == bool(heads[head])
    ask(strict)


def header_flood(count: int, size: int) -> bytes:
    lines = (b"x-%d: " % number + b"a" * size + b"\r\n" for number in range(count))
    return POST + b"".join(lines)


@pytest.mark.parametrize(
    ("flood", "code"),
    [
        (header_flood(200, 1) + b"\r\n", "too_many_headers"),
        (header_flood(10_000, 1), "headers_too_long"),
        (header_flood(1, 1024 * 1024), "headers_too_long"),
    ],
    ids=["200 headers", "10,000 headers", "one of a megabyte"],
)
def test_a_flood_of_headers_is_refused(strict: RunningService, flood: bytes, code: str) -> None:
    with connection(strict) as opened:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            opened.sendall(flood)
        opened.settimeout(DEADLINE_SECONDS)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while b"}}" not in answer and (part := opened.recv(65536)):
                answer += part
    # What a client still sends after the refusal can cost it the answer, never the service.
    assert not answer or status_and_code(answer) == (431, code)
    ask(strict)


def test_headers_without_an_end_take_no_memory(strict: RunningService) -> None:
    process = psutil.Process(strict.process.pid)
    before = process.memory_info().rss
    for _ in range(200):
        with connection(strict) as opened, contextlib.suppress(OSError):
            opened.sendall(header_flood(1, 1024 * 1024))
            rest(opened)
    assert process.memory_info().rss - before < 50 * 1024 * 1024


@pytest.mark.parametrize("said", [b"\x16\x03\x01\x02\x00\x01\x00", b"hello\r\n\r\n"])
def test_what_is_no_http_is_told_so(strict: RunningService, said: bytes) -> None:
    with connection(strict) as opened:
        opened.sendall(said + b"\r\n\r\n")
        assert status_and_code(rest(opened)) == (400, "bad_http")


def test_idle_connections_make_room_for_new_ones(strict: RunningService) -> None:
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(connection(strict)) for _ in range(3 * MOST)]
        ask(strict)
        # The first were closed for the last.
        assert rest(opened[0]) == b""


def begin(opened: socket.socket) -> bytes:
    """Sends a head; what is heard before the body is read."""
    opened.sendall(POST + b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n")
    return opened.recv(65536)


def test_connections_that_work_leave_room_to_look_at_the_service(strict: RunningService) -> None:
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(connection(strict)) for _ in range(MOST)]
        assert all(begin(one).startswith(b"HTTP/1.1 100 ") for one in opened)
        with connection(strict) as one_more:
            assert status_and_code(begin(one_more) + rest(one_more)) == (
                503,
                "too_many_connections",
            )
        with strict.client() as client:
            for path in ("/health", "/ready"):
                looked = client.get(path)
                assert (looked.status_code, looked.headers["connection"]) == (200, "close")
    ask(strict)


def test_metrics_are_for_those_with_a_key(strict: RunningService) -> None:
    ask(strict)
    with strict.client() as client:
        assert client.get("/metrics").status_code == 401
        text = client.get("/metrics", headers=HEADERS).text
    labels = f'key="anna",route="{CHAT}"'
    assert f"qwen_prompt_tokens_total{{{labels}}}" in text
    assert f'qwen_requests_total{{code="200",{labels}}}' in text
    assert f'qwen_inter_token_seconds_count{{route="{CHAT}"}}' in text


def test_what_was_said_is_in_the_log_and_no_key_is(strict: RunningService, tmp_path: Path) -> None:
    ask(strict)

    def transcript() -> Any:
        return re.search(r"^transcript=\S+ id=(\S+) end=stop .*你好.* answer=.*$", strict.log, re.M)

    found = strict.eventually(transcript)
    assert answer_to("你好") in found[0]
    assert f"id={found[1]} key=anna prompt_tokens=" in strict.log
    assert KEY not in strict.log
    assert "self-test" not in strict.log
