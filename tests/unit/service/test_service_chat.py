"""Chat completions field by field: honoured, or refused by name."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from qwen_service.engine import Constraint

from tests.fake_engine import FakeEngine
from tests.service_app import (
    HELLO,
    SETTINGS,
    Service,
    error_of,
    events,
    generation,
    merged,
    prompt,
    user,
)
from tests.tool_calls import FUNCTION, TOOLS


@pytest.fixture(scope="module")
def shared() -> Service:
    """For tests that ask and leave nothing."""
    return Service()


@pytest.mark.parametrize(
    ("format", "constraint"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Constraint("json_object")),
        (
            {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "integer"}, "strict": True},
            },
            Constraint("json_schema", '{"type": "integer"}'),
        ),
    ],
)
def test_the_form_of_an_answer_is_a_constraint(
    format: dict[str, Any], constraint: Constraint | None
) -> None:
    asked = Service()
    assert asked.chat(response_format=format).status_code == 200
    assert generation(asked).sampling.constraint == constraint


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": TOOLS, "tool_choice": "required"}, "tools"),
        ({"functions": [FUNCTION], "function_call": {"name": "get_weather"}}, "functions"),
    ],
)
def test_a_constraint_knows_the_field_that_asks_for_it(fields: dict[str, Any], param: str) -> None:
    asked = Service()
    assert asked.chat(**fields).status_code == 200
    constraint = generation(asked).sampling.constraint
    assert constraint is not None
    assert constraint.param == param


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_tell_of_every_token(stream: bool) -> None:
    response = Service().chat(logprobs=True, top_logprobs=2, stream=stream)
    if stream:
        chunks = [chunk["choices"][0] for chunk in events(response)]
        told = [
            it for choice in chunks if choice["logprobs"] for it in choice["logprobs"]["content"]
        ]
    else:
        told = response.json()["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in told] == ["one", " two"]
    assert told[0] == {
        "token": "one",
        "logprob": -0.5,
        "bytes": [111, 110, 101],
        "top_logprobs": [
            {"token": "one", "logprob": -0.5, "bytes": [111, 110, 101]},
            {"token": "one1", "logprob": -1.5, "bytes": [111, 110, 101, 49]},
        ],
    }


def test_biases_reach_the_engine_by_token() -> None:
    asked = Service()
    assert asked.chat(logit_bias={"5": -100, "17": 2.5}).status_code == 200
    assert generation(asked).sampling.logit_bias == ((5, -100.0), (17, 2.5))


def test_seeds_stay_within_64_bits_for_every_choice() -> None:
    asked = Service()
    assert asked.chat(seed=2**63 - 1, n=2).status_code == 200
    seeds = [generation.sampling.seed for generation in asked.engine.submitted]
    assert seeds == [2**63 - 1, -(2**63)]


def test_the_last_message_may_go_on() -> None:
    messages = [*user("Hi"), {"role": "assistant", "content": "Hel"}]
    asked = Service()
    fields = {"continue_final_message": True, "add_generation_prompt": False}
    assert asked.chat(messages=messages, **fields).status_code == 200
    assert prompt(asked).continues
    asked = Service()
    assert asked.chat(messages=messages).status_code == 200
    assert not prompt(asked).continues


def test_what_has_no_effect_is_named_in_the_head() -> None:
    fields = {"metadata": {"a": "b"}, "store": True, "service_tier": "flex", "colour": 1}
    for stream in (False, True):
        response = Service().chat(**fields, stream=stream)
        assert response.status_code == 200
        named = response.headers["x-qwen-ignored"].split(",")
        assert named == ["metadata", "store", "service_tier", "colour"]
    assert "x-qwen-ignored" not in Service().chat(user="ann", metadata=None, store=None).headers
    strange = {"é": 1, "a b": 1, "x" * 65: 1, "ok": 1, "\r\nx": 1}
    assert Service().chat(**strange).headers["x-qwen-ignored"] == "ok"
    messages = [{**user("Hi")[0], "name": "ann", "mood": "good", "refusal": None}]
    response = Service().chat(messages=messages)
    assert response.headers["x-qwen-ignored"] == "messages.mood,messages.name"
    tools = [{"type": "function", "function": {**FUNCTION, "colour": 1}, "cost": 2}]
    headers = Service().chat(tools=tools, stream=True, stream_options={"x": 1}).headers
    assert set(headers["x-qwen-ignored"].split(",")) == {
        "tools.cost",
        "tools.function.colour",
        "stream_options.x",
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "auto", "functions": [], "function_call": "none"},
        {"modalities": ["text"], "verbosity": "medium", "ignore_eos": False, "min_tokens": 0},
        {"logit_bias": {}, "logprobs": False, "top_logprobs": 0, "stop": []},
        {"continue_final_message": False, "add_generation_prompt": True},
        {"parallel_tool_calls": True, "response_format": {"type": "text"}},
        {"chat_template_kwargs": {}, "temperature": 0, "top_k": -1, "max_tokens": 2**31 - 1},
    ],
)
def test_what_asks_for_nothing_is_accepted(fields: dict[str, Any]) -> None:
    assert Service().chat(**fields).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"web_search_options": {}, "modalities": ["audio"]}, "modalities"),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
        ({"verbosity": "low"}, "verbosity"),
        ({"guided_json": {"type": "object"}}, "guided_json"),
        ({"min_tokens": 5}, "min_tokens"),
        ({"min_tokens": False}, "min_tokens"),
        ({"stop_token_ids": [1]}, "stop_token_ids"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs.chat_template"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {str(at): 1 for at in range(1025)}}, "logit_bias"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 1}}},
            "response_format.json_schema.schema",
        ),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": TOOLS * 2}, "tools"),
        ({"tools": TOOLS * 129}, "tools"),
        ({"tools": TOOLS, "functions": [FUNCTION]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "no"}}},
            "tool_choice",
        ),
        ({"tools": TOOLS, "function_call": {"name": "get_weather"}}, "function_call"),
        ({"functions": [FUNCTION], "tool_choice": "required"}, "tool_choice"),
        ({"functions": [{}]}, "functions[0].name"),
        (
            {"functions": [{"name": "f", "parameters": {"type": "array"}}]},
            "functions[0].parameters.type",
        ),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": "x",
                        "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
                    }
                ]
            },
            "messages[0].role",
        ),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"n": 2**31}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"max_completion_tokens": -5}, "max_completion_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"top_k": 10**400}, "top_k"),
        ({"temperature": 10**400}, "temperature"),
        ({"stop": ["x"] * 10_000}, "stop"),
        ({"stop": "x" * 1025}, "stop"),
    ],
)
def test_what_cannot_be_had_is_named(shared: Service, fields: dict[str, Any], param: str) -> None:
    before = len(shared.engine.submitted)
    response = shared.chat(**fields)
    assert response.status_code == 400, response.text
    error = error_of(response)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert len(shared.engine.submitted) == before


def test_older_clients_name_the_model_in_the_path() -> None:
    asked = Service()
    body = {"messages": HELLO["messages"]}
    for name in ("Qwen/tiny", "Qwen%2Ftiny", "gpt-3.5-turbo"):
        response = asked.ask("POST", f"/v1/engines/{name}/chat/completions", json=body)
        assert response.json()["choices"][0]["message"]["content"] == "one two"
    response = asked.ask("POST", "/v1/engines/gpt-9/chat/completions", json=body)
    assert (response.status_code, error_of(response)["param"]) == (404, "model")


def test_a_silent_stream_says_that_it_lives() -> None:
    engine = FakeEngine(holds=True)
    asked = Service(replace(SETTINGS, keep_alive_seconds=0.01), engine)

    async def stream() -> str:
        sent: list[dict[str, Any]] = []
        lively = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if not received:
                received.append(1)
                return {"type": "http.request", "body": body, "more_body": False}
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Any) -> None:
            sent.append(message)
            if b": keep-alive\n\n" in message.get("body", b""):
                lively.set()
                engine.release()

        received: list[int] = []
        body = json.dumps({**HELLO, "stream": True}).encode()
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        await asyncio.wait_for(asked.app(scope, receive, send), 20)
        assert lively.is_set()
        return b"".join(message.get("body", b"") for message in sent).decode()

    text = asyncio.run(stream())
    response = httpx.Response(200, text=text.replace(": keep-alive\n\n", ""))
    assert merged(events(response))["content"] == "one two"
