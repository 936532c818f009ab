"""Whatever is sent: a clear refusal in OpenAI's envelope, never a failure of the service."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import pytest
from qwen_service.engine import Refused
from qwen_service.errors import ApiError
from qwen_service.protocol.invalid import invalid
from qwen_service.routes import body as bodies

from tests.fake_engine import FakeEngine
from tests.service_app import HELLO, MODEL, Service, error_of, user

CHAT = "/v1/chat/completions"
# How libraries speak of themselves.
LIBRARY = ("Input should", "Field required", "after validation", "Value error", "parsing the body")
ROUTES = (CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses", "/tokenize", "/detokenize")


@pytest.fixture(scope="module")
def service() -> Service:
    return Service()


def refused(response: httpx.Response) -> dict[str, Any]:
    assert 400 <= response.status_code < 500, response.text
    assert response.status_code != 422
    error = error_of(response)
    assert "Traceback" not in response.text
    assert len(error["message"]) < 2000
    assert not [words for words in LIBRARY if words in error["message"]], error["message"]
    assert isinstance(error["code"], str)
    return error


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def with_text(field: str, text: str) -> bytes:
    """The usual request and one more field, written as it stands."""
    return f'{json.dumps(HELLO)[:-1]}, "{field}": {text}}}'.encode()


@pytest.mark.parametrize("url", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"42",
        b'"text"',
        b"\x00",
        b"\xff\xfe{}",
        b"{}",
        b'{"model": 5}',
        b'{"model": "\\ud800"}',
        b'{"\\ud800": 1, "model": {}}',
        b'{"model": NaN}',
        b'{"a": ' + b"1" * 5000 + b"}",
        nested(100_000).encode(),
        b'{"a":' * 20_000,
    ],
    ids=lambda body: repr(body[:16]),
)
def test_what_is_no_request_is_refused(service: Service, url: str, body: bytes) -> None:
    refused(service.send(url, body))


@pytest.mark.parametrize("url", ROUTES)
def test_a_body_that_is_not_called_json_is_refused(service: Service, url: str) -> None:
    content = json.dumps({**HELLO, "prompt": "x", "input": "x", "tokens": []}).encode()
    for headers in ({"content-type": "text/plain"}, {"content-type": "\x7f"}, {}):
        refused(service.ask("POST", url, content=content, headers=headers))


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("temperature", "1e400"),
        ("temperature", "NaN"),
        ("temperature", "-Infinity"),
        ("temperature", "true"),
        ("max_tokens", "1e2"),
        ("max_tokens", "99999999999999999999999999"),
        ("max_tokens", "-1"),
        ("n", "0"),
        ("n", "1" * 400),
        ("seed", "18446744073709551616"),
        ("top_k", "-2"),
        ("logit_bias", '{"1": 1e400}'),
        ("logit_bias", '{"1": NaN}'),
        ("logit_bias", '{"-1": 1}'),
        ("logit_bias", '{"99999999999999999999": 1}'),
        ("logit_bias", "[1]"),
        ("stop", json.dumps(["x"] * 10_000)),
        ("stop", '"\\ud83d"'),
        ("stop", '[""]'),
        ("messages", "[]"),
        ("messages", '[{"role": "king", "content": "x"}]'),
        ("messages", '[{"content": "x"}]'),
        ("messages", '[{"role": "user", "content": "\\ud800"}]'),
        ("messages", '["x"]'),
        ("messages", nested(500)),
        ("messages", '{"0": {"role": "user", "content": "x"}}'),
        ("tools", '[{"type": "function", "function": {"name": "f", "parameters": 5}}]'),
        ("tools", '[{"type": "function", "function": {"name": ""}}]'),
        ("tools", '[{"type": "function", "function": {"name": "f\\ud800"}}]'),
        ("stream_options", '"x"'),
        ("user", "5"),
    ],
)
def test_a_wrong_value_is_named(service: Service, field: str, text: str) -> None:
    error = refused(service.send(CHAT, with_text(field, text)))
    assert error["param"].startswith(field)


SCHEMAS = [
    '{"a": ' * 100 + "1" + "}" * 100,
    '{"minimum": 1e400}',
    '{"minimum": NaN}',
    '{"description": "\\ud800"}',
    '{"\\ud800": 1}',
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_schemas_that_cannot_even_be_written_down_are_named(service: Service, schema: str) -> None:
    format = f'{{"type": "json_schema", "json_schema": {{"name": "x", "schema": {schema}}}}}'
    error = refused(service.send(CHAT, with_text("response_format", format)))
    assert error["param"] == "response_format.json_schema.schema"
    tool = f'[{{"type": "function", "function": {{"name": "f", "parameters": {schema}}}}}]'
    error = refused(service.send(CHAT, with_text("tools", tool)))
    assert error["param"] == "tools[0].function.parameters"


@pytest.mark.parametrize(
    "arguments",
    [
        "{",
        "NaN",
        "[1]",
        "5",
        '{"a": NaN}',
        nested(100_000),
        '{"a": "\\ud800"}',
        f'{{"a": {nested(99)}}}',
    ],
    ids=lambda arguments: arguments[:16],
)
def test_arguments_of_earlier_calls_are_checked_too(service: Service, arguments: str) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    error = refused(service.chat(messages=messages))
    assert error["param"] == "messages[0].tool_calls[0].function.arguments"
    item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": arguments}
    response = service.post("/v1/responses", input=[*user("x"), item])
    assert refused(response)["param"] == "input[1].arguments"


def test_a_megabyte_of_prompt_is_read(service: Service) -> None:
    text = "天气" * 170_000
    assert len(text.encode()) > 1_000_000
    assert service.chat(messages=user(text), max_tokens=1).status_code == 200
    assert service.post("/tokenize", prompt=text).json()["count"] == len(text)


def test_a_prompt_that_is_too_long_for_the_model_is_told_with_its_code() -> None:
    engine = FakeEngine()
    reason = "9 tokens in the messages: please reduce the length of the messages"
    engine.failure = Refused(reason, param="messages", code="context_length_exceeded")
    service = Service(engine=engine)
    for stream in (False, True):
        assert refused(service.chat(stream=stream))["code"] == "context_length_exceeded"
        error = refused(service.post("/v1/responses", input="x", stream=stream))
        assert error["param"] == "input"
        assert error["message"] == reason.replace("messages", "input")


def test_text_of_any_language_survives_the_way_there_and_back(service: Service) -> None:
    text = '你好 🚀👩‍👩‍👧\u2028\u0000\x1b\\"</script>\r\n'
    for stream in (False, True):
        response = service.chat(messages=user(text), stream=stream)
        if stream:
            datas = [line[6:] for line in response.text.split("\n\n")[:-2]]
            deltas = [json.loads(data)["choices"][0]["delta"] for data in datas]
            assert "".join(delta.get("content", "") for delta in deltas) == text
        else:
            assert response.json()["choices"][0]["message"]["content"] == text


def test_an_unknown_model_is_named_whatever_it_is_called(service: Service) -> None:
    for name in ("", "x" * 5000, "../../etc/passwd", "模型", MODEL.lower()):
        response = service.post(CHAT, **{**HELLO, "model": name})
        assert response.status_code == 404
        assert error_of(response)["code"] == "model_not_found"


def test_empty_texts_are_no_mistake(service: Service) -> None:
    for content in ("", [], [{"type": "text", "text": ""}]):
        messages = [{"role": "system", "content": content}, *user(content)]
        assert service.chat(messages=messages).status_code == 200
    silent = [*user("x"), {"role": "assistant", "content": None}, *user("y")]
    assert service.chat(messages=silent).status_code == 200


@pytest.mark.parametrize("role", ["system", "developer", "user", "function"])
def test_a_message_without_content_is_a_mistake(service: Service, role: str) -> None:
    for turn in ({"role": role}, {"role": role, "content": None}):
        error = refused(service.chat(messages=[turn]))
        assert (error["param"], error["code"]) == ("messages[0].content", "invalid_value")
        assert error["message"] == "messages[0].content: is missing"
    response = service.post("/v1/responses", input=[{"role": "user"}])
    assert refused(response)["param"] == "input[0].content"


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"", "Expecting value, line 1, column 1"),
        (b'{"model": "x",}', "line 1, column 15"),
        (b'{"a": "\xff"}', "it is not UTF-8"),
        (nested(100_000).encode(), "it is nested too deeply"),
        (b'{"a": ' + b"1" * 6000 + b"}", "it has a number with thousands of digits"),
    ],
    ids=["empty", "comma", "utf-8", "deep", "digits"],
)
def test_what_is_no_json_is_told_why(service: Service, body: bytes, cause: str) -> None:
    error = refused(service.send(CHAT, body))
    assert error["message"].startswith("the body is not valid JSON: ")
    assert cause in error["message"]
    assert error["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"logit_bias": {"x": 1}}, "logit_bias: the name 'x' should match ^[0-9]{1,9}$"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5: should be at most 100"),
        ({"stop": 5}, "stop: should be a string or a list"),
        ({"stop": ""}, "stop: should not be empty"),
        ({"stop": "x" * 1025}, "stop: should have at most 1024 characters"),
        ({"messages": []}, "messages: should not be empty"),
        ({"messages": [{}]}, "messages[0].role: is missing"),
        ({"seed": 1.5}, "seed: should be a whole number"),
        ({"stream": 1}, "stream: should be true or false"),
        ({"tool_choice": 5}, "tool_choice: should be 'none', 'auto' or 'required' or an object"),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "tools[0].function.name: should match ^[a-zA-Z0-9_.-]{1,64}$",
        ),
    ],
)
def test_a_wrong_value_is_told_in_words_of_the_api(
    service: Service, fields: dict[str, Any], message: str
) -> None:
    assert refused(service.chat(**fields))["message"] == message


def test_a_name_that_the_caller_made_up_is_told_in_short(service: Service) -> None:
    name = "x" * 5000
    assert "x" * 64 in refused(service.chat(logit_bias={name: 1}))["message"]
    assert (
        "x" * 64 in refused(service.post("/v1/responses", input="x", metadata={name: 1}))["param"]
    )


@pytest.mark.parametrize(
    ("url", "field", "wrong"),
    [
        ("/v1/completions", "prompt", [-1] * 3000),
        ("/v1/embeddings", "input", [-1] * 3000),
        (CHAT, "messages", [{"role": "nobody"}] * 3000),
        ("/detokenize", "tokens", ["x"] * 3000),
    ],
)
def test_of_many_wrong_items_only_the_first_is_looked_at(
    service: Service, url: str, field: str, wrong: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def counted(errors: Sequence[Mapping[str, Any]]) -> ApiError:
        seen.append(len(errors))
        return invalid(errors)

    monkeypatch.setattr(bodies, "invalid", counted)
    refused(service.post(url, **{field: wrong}))
    assert seen[0] < 10


def test_an_object_of_endless_fields_is_refused(service: Service) -> None:
    fields = {f"field{number}": 1 for number in range(200)}
    error = refused(service.chat(**fields))
    assert "at most 128 fields" in error["message"]
    turn = {"role": "user", "content": "x", **fields}
    error = refused(service.chat(messages=[turn]))
    assert error["param"] == "messages[0]"


@pytest.mark.parametrize("type", ["text/plain", "application/x-www-form-urlencoded"])
def test_a_body_of_another_type_is_told_how_to_be_sent(service: Service, type: str) -> None:
    body = json.dumps(HELLO).encode()
    answer = service.ask("POST", CHAT, content=body, headers={"content-type": type})
    assert "application/json" in refused(answer)["message"]
