"""An HTTP server that speaks the wire of our service, and does what the question says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "Qwen/Qwen-Tiny"
HELLO = ("你好！", "我是\u2028通义", "千问。")
KEY = "sk-secret"
PRETTY = ("# Head", "ing\n\n- **bo", "ld**\n- `co", "de`\n\n```python\nx =", " 1\n```\n床前\n明月")
JSON = "application/json"
REFUSALS: dict[str, tuple[int, dict[str, str], object]] = {
    "400": (400, {}, {"error": {"message": "top_k is not for you", "param": "top_k"}}),
    "long": (400, {}, {"error": {"message": "too long", "code": "context_length_exceeded"}}),
    "401": (401, {}, {"error": {"message": "unknown key", "type": "invalid_request_error"}}),
    "404": (404, {}, {"error": {"message": "no such model"}}),
    "429": (429, {"Retry-After": "3"}, {"error": {"message": "queue is full"}}),
    "500": (500, {}, "<h1>\nOops\n</h1>"),
    "503": (503, {"Retry-After": "7"}, {"error": {"message": "loading weights"}}),
    "ours": (503, {}, {"error": {"message": "the service is not ready: stopping"}}),
}


def chunk(text: str = "", reason: str | None = None) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}


def thought(text: str) -> dict[str, object]:
    return {"choices": [{"index": 0, "delta": {"reasoning_content": text}}]}


class Handler(BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        status, kind, body = self.server.pages.get(self.path, (404, "application/json", "{}"))
        content = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        self.server.keys.append(self.headers.get("Authorization"))
        question = request["messages"][-1]["content"]
        if question in REFUSALS:
            status, headers, body = REFUSALS[question]
            if self.server.retry_after and headers:
                headers = {"Retry-After": self.server.retry_after}
            return self._refuse(status, headers, body)
        if len(self.server.requests) > self.server.holds_after:
            question = "silent"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        if question == "reset":
            self.send_header("Content-Length", "1000000")
        self.end_headers()
        self._answer(question)

    def _refuse(self, status: int, headers: dict[str, str], body: object) -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _answer(self, question: str) -> None:
        match question:
            case "silent":
                self._wait_until_left()
            case "slow":
                self._send(chunk("一二三"))
                self._wait_until_left()
            case "held":
                self._send(chunk("一二三"))
                self.server.released.wait(10)
                self._send(chunk(reason="stop"), "[DONE]")
            case "cut" | "reset":
                self._send(chunk("half"))
            case "event":
                self._send(chunk("half"), {"error": {"message": "out of memory"}})
            case "limit":
                self._send(chunk("much"), chunk(reason="length"), "[DONE]")
            case "endless":
                with suppress(OSError):
                    for _ in range(100_000):
                        self._send(chunk("more "))
                self.server.left.set()
            case "hard":
                self._send(thought("let me"), thought(" see"), chunk("42"))
                self._send(chunk(reason="stop"), "[DONE]")
            case "pretty":
                self._send(*map(chunk, PRETTY), chunk(reason="stop"), "[DONE]")
            case "nothing":
                self._send(chunk(reason="stop"), "[DONE]")
            case "你好":
                self._send(*map(chunk, HELLO), chunk(reason="stop"))
                self._send({"choices": [], "usage": {"completion_tokens": 9}}, "[DONE]")
            case _:
                self._send(chunk(f"<{question}>"), chunk(reason="stop"), "[DONE]")

    def _send(self, *events: object) -> None:
        for event in events:
            data = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
            self.wfile.write(f"data: {data}\n\n".encode())

    def _wait_until_left(self) -> None:
        self.server.waiting.set()
        self.connection.recv(1)
        self.server.left.set()


class ChatServer(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        # What a GET of a path answers: status, content type and body.
        self.pages: dict[str, tuple[int, str, str]] = {
            "/": (200, "text/html; charset=utf-8", "<html>"),
            "/ready": (200, JSON, '{"status": "ready"}'),
            "/v1/models": (200, JSON, json.dumps({"data": [{"id": MODEL}]})),
        }
        self.waiting = threading.Event()
        self.left = threading.Event()
        self.released = threading.Event()
        # Instead of what a refusal says itself.
        self.retry_after: str | None = None
        # Further requests get no answer.
        self.holds_after = 1_000_000

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextmanager
def running_chat_server() -> Iterator[ChatServer]:
    with ChatServer() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()
