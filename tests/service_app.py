"""The application over the fake engine, asked without a network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import httpx
from qwen_service.app import create_app
from qwen_service.engine import Chat, Generation
from qwen_service.lifecycle.notify import Notifier
from qwen_service.lifecycle.readiness import Readiness
from qwen_service.settings import Settings, load

from tests.fake_engine import FakeEngine

SETTINGS = load(
    {
        "QWEN_MODEL_DIR": "/models/tiny",
        "QWEN_MODEL_NAME": "Qwen/tiny",
        "QWEN_MODEL_ALIASES": "gpt-3.5-turbo",
        "QWEN_RELEASE": "r-12345678",
        "QWEN_AUTH": "none",
    }
)
MODEL = SETTINGS.model_name
HELLO: Mapping[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "one two"}]}


class Service:
    def __init__(self, settings: Settings = SETTINGS, engine: FakeEngine | None = None) -> None:
        self.engine = engine or FakeEngine()
        self.engine.start(lambda report: None)
        self.readiness = Readiness(Notifier(None), model=settings.model_name)
        self.readiness.facts = self.engine.facts
        self.readiness.ready()
        self.app = create_app(settings, self.engine, self.readiness)

    def ask(self, method: str, url: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                return await client.request(method, url, **options)

        return asyncio.run(send())

    def get(self, url: str, **options: Any) -> httpx.Response:
        return self.ask("GET", url, **options)

    def post(self, url: str, **fields: Any) -> httpx.Response:
        return self.ask("POST", url, json={"model": MODEL, **fields})

    def chat(self, **fields: Any) -> httpx.Response:
        return self.post("/v1/chat/completions", **{**HELLO, **fields})

    def send(self, url: str, body: bytes) -> httpx.Response:
        headers = {"content-type": "application/json"}
        return self.ask("POST", url, content=body, headers=headers)


def error_of(response: httpx.Response) -> dict[str, Any]:
    envelope = response.json()
    assert set(envelope) == {"error"}
    error: dict[str, Any] = envelope["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def events(response: httpx.Response) -> list[dict[str, Any]]:
    *lines, done, nothing = response.text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def user(content: Any) -> list[Any]:
    return [{"role": "user", "content": content}]


def generation(asked: Service) -> Generation:
    """The only one that the engine was asked for."""
    (generation,) = asked.engine.submitted
    return generation


def prompt(asked: Service) -> Chat:
    prompt = generation(asked).prompt
    assert isinstance(prompt, Chat)
    return prompt


def merged(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that the deltas of the only choice add up to, as clients add them."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "calls": []}
    for chunk in chunks:
        delta = chunk["choices"][0]["delta"]
        message["content"] += delta.get("content") or ""
        message["reasoning_content"] += delta.get("reasoning_content", "")
        for call in delta.get("tool_calls", ()):
            if call.get("id"):
                assert call["index"] == len(message["calls"])
                assert call["type"] == "function"
                message["calls"].append((call["function"]["name"], ""))
            name, arguments = message["calls"][call["index"]]
            message["calls"][call["index"]] = (name, arguments + call["function"]["arguments"])
        if call := delta.get("function_call"):
            if "name" in call:
                message["function_call"] = {"name": call["name"], "arguments": ""}
            message["function_call"]["arguments"] += call["arguments"]
    message["finish_reason"] = chunks[-1]["choices"][0]["finish_reason"]
    return message
