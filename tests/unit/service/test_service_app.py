"""The HTTP surface over an engine that only echoes: shapes, refusals, states."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qwen_service.engine import Chat, EngineError, Refused

from tests.fake_engine import FakeEngine
from tests.service_app import HELLO, SETTINGS, Service, error_of, events


@pytest.fixture(scope="module")
def shared() -> Service:
    """For tests that ask and leave nothing."""
    return Service()


def test_an_answer_has_every_field_of_a_completion() -> None:
    answer = Service().chat().json()
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"]) == ("chat.completion", "Qwen/tiny")
    assert answer["system_fingerprint"] == "r-12345678"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "one two", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


def test_a_stream_is_a_role_then_text_then_an_end() -> None:
    response = Service().chat(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events(response)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"content": "one"},
        {"content": " two"},
        {},
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert all("usage" not in chunk for chunk in chunks)


def test_a_stream_tells_its_usage_when_asked() -> None:
    *chunks, last = events(Service().chat(stream=True, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


def test_several_choices_draw_different_random_numbers() -> None:
    service = Service()
    answer = service.chat(n=3, seed=7).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [generation.sampling.seed for generation in service.engine.submitted] == [7, 8, 9]
    assert answer["usage"]["completion_tokens"] == 9
    streamed = events(service.chat(n=2, stream=True))
    assert {chunk["choices"][0]["index"] for chunk in streamed} == {0, 1}


def test_every_sampling_field_reaches_the_engine() -> None:
    service = Service()
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": -0.3,
        "seed": -1,
    }
    assert service.chat(**fields, max_tokens=9, stop="x", user="ann", unknown=1).status_code == 200
    sampling = service.engine.submitted[0].sampling
    assert {name: getattr(sampling, name) for name in fields} == fields
    assert (sampling.max_tokens, sampling.stop) == (9, ("x",))


def test_the_newer_name_of_the_token_limit_counts_first() -> None:
    service = Service()
    service.chat(max_completion_tokens=3, max_tokens=5, stop=["a", "b"])
    assert service.engine.submitted[0].sampling.max_tokens == 3
    assert service.engine.submitted[0].sampling.stop == ("a", "b")


def test_messages_of_all_roles_reach_the_engine() -> None:
    service = Service()
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "北京"}'},
    }
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    assert service.chat(messages=messages).status_code == 200
    prompt = service.engine.submitted[0].prompt
    assert isinstance(prompt, Chat)
    system, user, assistant, tool = prompt.messages
    assert system == {"role": "system", "content": "Be brief."}
    assert user["content"] == "a\nb"
    assert assistant["tool_calls"][0]["function"]["arguments"] == {"city": "北京"}
    assert tool == {"role": "tool", "content": "sunny"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
        ),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": 0.5}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"n": 9}, "n"),
        ({"n": 0}, "n"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", 1]}, "stop[1]"),
        ({"stop": ["x"] * 33}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_a_wrong_field_is_named(shared: Service, fields: dict[str, Any], param: str) -> None:
    response = shared.chat(**fields)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert param.split(".")[0].split("[")[0] in error["message"]


def test_tool_arguments_that_are_no_json_are_named() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "{"}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    error = error_of(Service().chat(messages=messages))
    assert error["param"] == "messages[0].tool_calls[0].function.arguments"


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": False, "top_logprobs": None, "logit_bias": {}, "tools": []},
        {"response_format": {"type": "text"}, "tool_choice": "auto"},
        {"temperature": None, "stop": None, "n": None, "stream": None, "seed": None},
    ],
)
def test_a_field_that_asks_for_nothing_is_accepted(fields: dict[str, Any]) -> None:
    assert Service().chat(**fields).status_code == 200


@pytest.mark.parametrize(
    "body", [b'{"model"', b"[]", b"null", b"", b"[" * 100_000, b'"\\ud800"', b"\xff\xfe{}"]
)
def test_a_body_that_is_no_request_is_the_callers_fault(body: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = Service().ask("POST", "/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"


def test_numbers_that_json_does_not_know_are_refused() -> None:
    body = json.dumps({**HELLO, "temperature": float("nan")}).encode()
    headers = {"content-type": "application/json"}
    response = Service().ask("POST", "/v1/chat/completions", content=body, headers=headers)
    assert (response.status_code, error_of(response)["param"]) == (400, "temperature")


def test_a_body_beyond_the_limit_is_refused() -> None:
    service = Service(replace(SETTINGS, max_body_bytes=1000))
    assert service.chat(user="x" * 500).status_code == 200
    response = service.chat(user="x" * 1000)
    assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")


def test_a_body_without_a_length_is_measured_as_it_comes() -> None:
    async def body() -> Any:
        for _ in range(100):
            yield b" " * 100

    service = Service(replace(SETTINGS, max_body_bytes=1000))
    headers = {"content-type": "application/json"}
    response = service.ask("POST", "/v1/chat/completions", content=body(), headers=headers)
    assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")


def test_models_and_their_aliases_are_listed() -> None:
    service = Service()
    listed = service.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["Qwen/tiny", "gpt-3.5-turbo"]
    assert service.get("/v1/models/Qwen/tiny").json() == listed["data"][0]
    assert service.chat(model="gpt-3.5-turbo").json()["model"] == "gpt-3.5-turbo"


def test_an_unknown_model_is_not_found() -> None:
    service = Service()
    for response in (service.get("/v1/models/gpt-9"), service.chat(model="gpt-9")):
        error = error_of(response)
        assert response.status_code == 404
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "`gpt-9`" in error["message"]


def test_an_unknown_route_or_method_is_an_error_in_the_same_shape() -> None:
    service = Service()
    assert error_of(service.get("/v1/nothing"))["code"] == "unknown_url"
    assert error_of(service.get("/nothing"))["code"] == "unknown_url"
    assert service.get("/v1/chat/completions").status_code == 405


def test_a_key_is_needed_where_keys_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"ann {hashlib.sha256(b'sk-ann').hexdigest()}\n")
    service = Service(replace(SETTINGS, keys_file=path))
    for header in (b"", b"Bearer sk-bob", b"Bearer \xff", b"Basic c2stYW5u"):
        response = service.get("/v1/models", headers={"authorization": header})
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert error_of(response)["type"] == "authentication_error"
    good = {"authorization": "Bearer sk-ann"}
    assert service.get("/v1/models", headers=good).status_code == 200
    for url in ("/health", "/ready", "/version"):
        assert service.get(url).status_code == 200


def test_without_keys_any_key_will_do() -> None:
    headers = {"authorization": "Bearer none"}
    assert Service().get("/v1/models", headers=headers).status_code == 200


def test_readiness_tells_its_reason_and_the_release() -> None:
    service = Service()
    ready = service.get("/ready").json()
    assert ready.pop("uptime_seconds") >= 0
    assert ready == {"status": "ready", "release": "r-12345678", "model": "Qwen/tiny"}
    service.readiness.loading("weights 43%")
    response = service.get("/ready")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"
    assert response.json() == {
        "status": "loading",
        "release": "r-12345678",
        "reason": "Loading Qwen/tiny: weights 43%",
    }
    assert service.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize("state", ["loading", "draining", "failed"])
def test_requests_come_too_early_or_too_late(state: str) -> None:
    service = Service()
    {
        "loading": lambda: service.readiness.loading("weights"),
        "draining": lambda: service.readiness.draining(1),
        "failed": lambda: service.readiness.failed("no memory"),
    }[state]()
    response = service.chat()
    assert (response.status_code, error_of(response)["code"]) == (503, "not_ready")
    assert response.headers["retry-after"] == "5"
    assert ("connection" in response.headers) == (state == "draining")


def test_a_full_queue_says_when_to_come_back() -> None:
    response = Service(engine=FakeEngine(room=0)).chat()
    assert (response.status_code, error_of(response)["code"]) == (429, "queue_full")
    assert response.headers["retry-after"] == "1"


def test_choices_that_do_not_all_fit_leave_nothing_behind() -> None:
    engine = FakeEngine(room=2, holds=True)
    assert Service(engine=engine).chat(n=3).status_code == 429
    assert len(engine.cancelled) == 2
    assert engine.stats().running == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_prompt_has_a_status_also_in_a_stream(stream: bool) -> None:
    engine = FakeEngine()
    engine.failure = Refused("too long", param="messages", code="context_length_exceeded")
    response = Service(engine=engine).chat(stream=stream)
    assert response.status_code == 400
    assert error_of(response)["code"] == "context_length_exceeded"


def test_an_engine_that_fails_is_a_500_without_details() -> None:
    engine = FakeEngine()
    engine.failure = EngineError("the model failed while it answered")
    response = Service(engine=engine).chat()
    assert response.status_code == 500
    assert error_of(response)["type"] == "server_error"


def test_a_failure_inside_a_stream_is_its_last_event() -> None:
    engine = FakeEngine()
    engine.failure = EngineError("the model failed while it answered")
    engine.fails_late = True
    response = Service(engine=engine).chat(stream=True)
    assert response.status_code == 200
    *_, said, last, nothing = response.text.split("\n\n")
    assert '"content":" two"' in said
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["type"], nothing) == ("server_error", "")


def test_a_mistake_of_the_service_is_a_500_without_details() -> None:
    engine = FakeEngine()
    service = Service(engine=engine)
    engine.submit = None  # type: ignore[method-assign,assignment]
    response = service.chat()
    assert (response.status_code, error_of(response)["code"]) == (500, "internal_error")
    assert "NoneType" not in response.text


@pytest.mark.parametrize(
    ("wish", "is_kept"), [("abc-1.2:3", True), ("two words", False), ("x" * 129, False)]
)
def test_a_sensible_request_id_comes_back(wish: str, is_kept: bool) -> None:
    given = Service().get("/health", headers={"x-request-id": wish}).headers["x-request-id"]
    assert (given == wish) == is_kept


def test_the_log_names_a_request_and_not_its_words(caplog: pytest.LogCaptureFixture) -> None:
    service = Service()
    with caplog.at_level("INFO", logger="qwen_service"):
        service.ask(
            "POST", "/v1/chat/completions", json=dict(HELLO), headers={"x-request-id": "r1"}
        )
        service.get("/health")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "qwen_service"]
    assert line.startswith("request=POST path=/v1/chat/completions status=200 id=r1 key=- ")
    assert "prompt_tokens=2 completion_tokens=3 " in line
    assert "one two" not in caplog.text


def test_the_version_names_release_and_model() -> None:
    answer = Service().get("/version").json()
    assert set(answer) == {
        "version",
        "release",
        "model",
        "revision",
        "engine",
        "device",
        "dtype",
        "torch",
        "transformers",
    }


def test_the_document_says_what_needs_a_key_and_which_models_there_are(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"ann {hashlib.sha256(b'sk-ann').hexdigest()}\n")
    for settings, security in (
        (SETTINGS, None),
        (replace(SETTINGS, keys_file=path), [{"key": []}]),
    ):
        document = Service(settings).get("/openapi.json").json()
        chat = document["paths"]["/v1/chat/completions"]["post"]
        assert chat.get("security") == security
        assert "security" not in document["paths"]["/health"]["get"]
        assert set(chat["responses"]) >= {"200", "400", "401", "404", "429", "503"}
        assert "422" not in chat["responses"]
        fields = document["components"]["schemas"]["ChatRequest"]["properties"]
        assert fields["model"]["enum"] == ["Qwen/tiny", "gpt-3.5-turbo"]
        (limit,) = (kind["maximum"] for kind in fields["n"]["anyOf"] if "maximum" in kind)
        assert limit == settings.max_choices
