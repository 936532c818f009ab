"""Bodies of many items: bounded by name, and judged beside the event loop."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from qwen_service.conversion import chat
from qwen_service.routes.body import BESIDE, LARGE_BYTES, MOST_VALUES

from tests.service_app import HELLO, MODEL, Service, error_of, user

CHAT = "/v1/chat/completions"
LARGE = {**HELLO, "user": "x" * LARGE_BYTES}


@pytest.fixture(scope="module")
def service() -> Service:
    return Service()


def filled(url: str, item: bytes, count: int) -> tuple[str, bytes]:
    """A body whose one list holds so many of the same."""
    field = {"/v1/embeddings": "input", "/detokenize": "tokens"}.get(url, "prompt")
    head = json.dumps({"model": MODEL, field: []})[:-2].encode()
    return url, head + b",".join([item] * count) + b"]}"


@pytest.mark.parametrize("url", ["/v1/completions", "/v1/embeddings", "/detokenize"])
@pytest.mark.parametrize("item", [b"1", b"-1", b"[]", b"{}", b'""', b'"\\\\"', b'"\\","', b"[1]"])
def test_a_body_of_too_many_values_is_refused(service: Service, url: str, item: bytes) -> None:
    response = service.send(*filled(url, item, MOST_VALUES + 1))
    error = error_of(response)
    assert (response.status_code, error["code"]) == (400, "too_many_values")
    assert str(MOST_VALUES) in error["message"]


def test_names_of_fields_are_counted_too(service: Service) -> None:
    fields = ",".join(f'"{number}":0' for number in range(MOST_VALUES // 2 + 1))
    response = service.send(CHAT, f"{{{fields}}}".encode())
    assert error_of(response)["code"] == "too_many_values"


@pytest.mark.parametrize("text", ['{"a": [1, 2]},', '\\"[,', "\\\\,", '\\\\",\\\\"'])
def test_what_stands_in_a_text_is_not_counted(service: Service, text: str) -> None:
    written = (text * MOST_VALUES)[: 4 * MOST_VALUES]
    assert service.chat(messages=user(written), max_tokens=1).status_code == 200


PART = {"type": "text", "text": "x"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TURN = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("url", "fields", "param", "most"),
    [
        (CHAT, {"messages": [TURN] * 2049}, "messages", 2048),
        (CHAT, {"messages": user([PART] * 1025)}, "messages[0].content", 1024),
        (
            CHAT,
            {"messages": [{"role": "assistant", "tool_calls": [CALL] * 129}]},
            "messages[0].tool_calls",
            128,
        ),
        ("/tokenize", {"messages": [TURN] * 2049}, "messages", 2048),
        ("/v1/responses", {"input": [TURN] * 2048}, "input", 2047),
        ("/v1/completions", {"prompt": ["x"] * 65}, "prompt", 64),
    ],
)
def test_a_list_that_is_too_long_is_named_with_its_limit(
    service: Service, url: str, fields: dict[str, Any], param: str, most: int
) -> None:
    error = error_of(service.post(url, **fields))
    assert error["param"] == param
    assert error["message"] == f"{param}: should have at most {most} items"


def test_a_long_conversation_is_answered(service: Service) -> None:
    assert service.chat(messages=[TURN] * 2048).status_code == 200
    fields = {"input": [TURN] * 2047, "instructions": "x"}
    assert service.post("/v1/responses", **fields).status_code == 200


@contextmanager
def busy() -> Iterator[None]:
    """Another's large body is being judged."""
    release = threading.Event()
    judging = BESIDE.submit(release.wait)
    try:
        yield
    finally:
        release.set()
        judging.result()


@pytest.mark.parametrize("stream", [False, True])
def test_others_are_answered_while_a_large_body_is_judged(service: Service, stream: bool) -> None:
    async def ask() -> tuple[httpx.Response, ...]:
        transport = httpx.ASGITransport(service.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:

            def post(body: Any) -> Coroutine[Any, Any, httpx.Response]:
                return client.post(CHAT, json={**body, "stream": stream})

            with busy():
                large = asyncio.ensure_future(post(LARGE))
                # As many as an answer takes turns of the loop, and more.
                others = [await post(HELLO) for _ in range(10)] + [await client.get("/health")]
                assert not large.done()
            return *others, await large

    assert {answer.status_code for answer in asyncio.run(ask())} == {200}


@pytest.mark.parametrize("url", [CHAT, "/v1/responses", "/tokenize"])
def test_a_large_body_is_also_made_a_prompt_beside_the_others(
    service: Service, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    plan = chat.plan

    def watched(*arguments: Any) -> chat.Plan:
        threads.append(threading.current_thread().name)
        return plan(*arguments)

    monkeypatch.setattr(chat, "plan", watched)
    name = "input" if url == "/v1/responses" else "messages"
    for text in ("x", "x" * LARGE_BYTES):
        assert service.post(url, **{name: user(text)}).status_code == 200
    here, beside = threads
    assert here == threading.main_thread().name
    assert beside.startswith("qwen-bodies")
