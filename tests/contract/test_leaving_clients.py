"""Clients that leave, read slowly or speak through curl, over real sockets and a fake engine."""

from __future__ import annotations

import gc
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from qwen_service.engine import Event, Generation, Piece
from qwen_service.reply import Reply

from tests.fake_engine import FakeEngine
from tests.fake_service import DEADLINE_SECONDS, FakeService
from tests.service_app import HELLO, user

pytestmark = pytest.mark.contract

CHAT = "/v1/chat/completions"


class Held(FakeEngine):
    """Tells when it has so many requests and when it has none."""

    def __init__(self, **options: Any) -> None:
        super().__init__(room=10_000, holds=True, **options)
        self._changed = threading.Condition()

    def submit(self, generation: Any, deliver: Callable[[Event], None]) -> None:
        super().submit(generation, deliver)
        with self._changed:
            self._changed.notify_all()

    def cancel(self, generation_id: str) -> None:
        super().cancel(generation_id)
        with self._changed:
            self._changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, DEADLINE_SECONDS)


def request(*, whole: bool = True, **fields: Any) -> bytes:
    body = json.dumps({**HELLO, **fields}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    sent = head.encode() + b"content-type: application/json\r\n\r\n" + body
    return sent if whole else sent[:-5]


def open_replies() -> list[Reply]:
    gc.collect()
    # By type alone: some objects warn when they are looked at closely.
    return [it for it in gc.get_objects() if type(it) is Reply]


def test_a_thousand_clients_that_leave_hold_nothing() -> None:
    engine = Held()
    with FakeService(engine) as service:
        for number in range(1000):
            with socket.create_connection(("127.0.0.1", service.port)) as client:
                match number % 4:
                    case 0:
                        client.sendall(request(stream=True))
                        assert client.recv(12) == b"HTTP/1.1 200"
                    case 1:
                        client.sendall(request(n=2))
                        engine.wait(lambda: engine.stats().running == 2)
                    case 2:
                        client.sendall(request(stream=True))
                    case _:
                        client.sendall(request(whole=False))
            if number % 4 < 2:
                engine.wait(lambda: engine.stats().running == 0)
        # Whoever left before being heard may be heard still.
        with httpx.Client(base_url=service.url) as client:
            assert client.get("/health").status_code == 200
        engine.wait(lambda: engine.stats().running == 0)
        assert len(engine.cancelled) >= 750
        deadline = time.monotonic() + DEADLINE_SECONDS
        while replies := open_replies():
            assert time.monotonic() < deadline, replies
        assert engine.stats().running == 0


class Endless(FakeEngine):
    """Fills the pipe of whoever asks for much before it turns to the next."""

    def _pieces(self, generation: Generation) -> tuple[str, ...]:
        pieces = super()._pieces(generation)
        return ("x" * 1000,) * 20_000 if pieces[0] == "much" else tuple(pieces)


def test_a_slow_reader_stalls_nobody() -> None:
    with (
        FakeService(Endless()) as service,
        socket.create_connection(("127.0.0.1", service.port)) as slow,
        httpx.Client(base_url=service.url, timeout=DEADLINE_SECONDS) as client,
    ):
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(request(stream=True, messages=user("much")))
        assert slow.recv(12) == b"HTTP/1.1 200"
        for _ in range(10):
            answer = client.post(CHAT, json=dict(HELLO)).json()
            assert answer["choices"][0]["message"]["content"] == "one two"


class Stepwise(Held):
    """Says one word when told to, and not more."""

    def say(self, text: str) -> None:
        for _, deliver in self._held.values():
            deliver(Piece(text))


def test_every_word_is_sent_when_it_is_said() -> None:
    engine = Stepwise()
    with (
        FakeService(engine) as service,
        httpx.Client(base_url=service.url, timeout=DEADLINE_SECONDS) as client,
        client.stream("POST", CHAT, json={**HELLO, "stream": True}) as response,
    ):
        lines = response.iter_lines()
        assert '"role":"assistant"' in next(lines)
        for word in ("one", "two"):
            engine.say(word)
            assert next(lines) == ""
            assert f'"content":"{word}"' in next(lines)
        engine.release()
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_curl_streams_and_is_told_what_is_wrong() -> None:
    curl = shutil.which("curl")
    assert curl is not None
    with FakeService() as service:

        def post(path: str, body: str) -> tuple[str, str]:
            argv = [curl, "-sS", "-N", "-w", "\n%{http_code}", "--data-binary", "@-"]
            json_type = ("-H", "content-type: application/json")
            done = subprocess.run(
                [*argv, *json_type, service.url + path],
                input=body,
                check=True,
                capture_output=True,
                text=True,
            )
            text, _, status = done.stdout.rpartition("\n")
            return status, text

        status, text = post(CHAT, json.dumps({**HELLO, "stream": True}))
        assert status == "200"
        assert text.startswith('data: {"id":"chatcmpl-')
        assert text.endswith("data: [DONE]\n\n")
        status, text = post("/v1/completions", '{"model": "Qwen/tiny", "prompt": "你好"}')
        assert (status, json.loads(text)["choices"][0]["text"]) == ("200", "你好")
        status, text = post(CHAT, "{")
        assert (status, json.loads(text)["error"]["code"]) == ("400", "invalid_json")
        # curl asks first whether a large body is welcome.
        status, text = post("/tokenize", json.dumps({"prompt": "x" * 2_000_000}))
        assert (status, json.loads(text)["count"]) == ("200", 2_000_000)
        status, _ = post(CHAT, "x" * 9_000_000)
        assert status == "413"
