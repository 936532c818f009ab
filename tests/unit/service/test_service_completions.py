"""Text completions, embeddings and tokens over an engine that computes nothing."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest
from qwen_service.engine import Text, Tokens

from tests.fake_engine import EMBEDDING, FakeEngine
from tests.service_app import Service, error_of, events


def complete(service: Service | None = None, **fields: Any) -> Any:
    return (service or Service()).post("/v1/completions", **{"prompt": "one two", **fields})


def test_a_completion_has_every_field() -> None:
    answer = complete().json()
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 0
    assert answer == {
        "object": "text_completion",
        "model": "Qwen/tiny",
        "system_fingerprint": "r-12345678",
        "choices": [{"index": 0, "text": "one two", "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
    }


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a b", [Text("a b")]),
        (["a", "b"], [Text("a"), Text("b")]),
        ([72, 105], [Tokens((72, 105))]),
        ([[72], [105, 33]], [Tokens((72,)), Tokens((105, 33))]),
        ("", [Text("")]),
    ],
)
def test_prompts_may_be_texts_and_tokens(prompt: Any, wanted: list[Any]) -> None:
    service = Service()
    assert complete(service, prompt=prompt).status_code == 200
    assert [generation.prompt for generation in service.engine.submitted] == wanted


def test_several_prompts_and_choices_are_counted_on() -> None:
    answer = complete(prompt=["a b", "c"], n=2).json()
    texts = [(choice["index"], choice["text"]) for choice in answer["choices"]]
    assert texts == [(0, "a b"), (1, "a b"), (2, "c"), (3, "c")]
    assert answer["usage"]["prompt_tokens"] == 3


def test_the_prompt_may_be_said_again() -> None:
    assert complete(echo=True).json()["choices"][0]["text"] == "one twoone two"
    assert complete(echo=True, prompt=[72, 105]).json()["choices"][0]["text"] == "Hi72 105"
    chunks = events(complete(echo=True, stream=True))
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["one two", "one", " two", ""]


def test_a_stream_ends_with_a_reason_and_the_usage() -> None:
    chunks = events(complete(stream=True, stream_options={"include_usage": True}))
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    *texts, end, usage = chunks
    assert [chunk["choices"][0]["text"] for chunk in texts] == ["one", " two"]
    assert end["choices"][0]["finish_reason"] == "stop"
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 5)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_stand_in_columns(stream: bool) -> None:
    response = complete(logprobs=1, stream=stream)
    chunks = events(response) if stream else [response.json()]
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    columns = {name: [value for it in told for value in it[name]] for name in told[0]}
    assert columns == {
        "tokens": ["one", " two"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"one": -0.5}, {" two": -0.5}],
        "text_offset": [0, 3],
    }


def test_sixteen_tokens_are_the_default() -> None:
    service = Service()
    complete(service)
    complete(service, max_tokens=5, seed=1, stop=["x"], best_of=1, suffix="")
    assert [it.sampling.max_tokens for it in service.engine.submitted] == [16, 5]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": ["a"] * 33, "n": 2}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"guided_regex": "a"}, "guided_regex"),
    ],
)
def test_a_wrong_field_of_a_completion_is_named(fields: dict[str, Any], param: str) -> None:
    response = complete(**fields)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


def test_tokens_that_do_not_exist_are_refused() -> None:
    response = complete(prompt=[2**31 - 1], echo=True)
    assert (response.status_code, error_of(response)["param"]) == (400, "prompt")


def test_older_clients_name_the_model_in_the_path_of_completions() -> None:
    service = Service()
    response = service.ask("POST", "/v1/engines/Qwen/tiny/completions", json={"prompt": "a b"})
    assert response.json()["choices"][0]["text"] == "a b"


def embedding() -> Service:
    return Service(engine=FakeEngine(facts=EMBEDDING))


def test_embeddings_are_numbers_or_their_bytes() -> None:
    service = embedding()
    answer = service.post("/v1/embeddings", input=["a", "bbb"]).json()
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    first, second = (item["embedding"] for item in answer["data"])
    assert [item["index"] for item in answer["data"]] == [0, 1]
    packed = service.post("/v1/embeddings", input=["a", "bbb"], encoding_format="base64").json()
    for item, vector in zip(packed["data"], (first, second), strict=True):
        unpacked = struct.unpack("<2f", base64.b64decode(item["embedding"]))
        assert unpacked == pytest.approx(vector)


def test_many_inputs_keep_their_order_and_leave_room_for_others() -> None:
    service = Service(engine=FakeEngine(facts=EMBEDDING, room=8))
    inputs = ["x" * (1 + at % 7) for at in range(100)]
    answer = service.post("/v1/embeddings", input=inputs).json()
    ratios = [item["embedding"][1] / item["embedding"][0] for item in answer["data"]]
    assert [round(ratio) for ratio in ratios] == [len(text) for text in inputs]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 3}, "dimensions"),
    ],
)
def test_a_wrong_field_of_embeddings_is_named(fields: dict[str, Any], param: str) -> None:
    response = embedding().post("/v1/embeddings", **fields)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


def test_a_model_serves_what_it_was_made_for() -> None:
    response = Service().post("/v1/embeddings", input="a")
    assert (response.status_code, error_of(response)["code"]) == (404, "not_an_embedding_model")
    for url, fields in (
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/responses", {"input": "a"}),
    ):
        response = embedding().post(url, **fields)
        assert (response.status_code, error_of(response)["code"]) == (404, "not_a_chat_model")
    assert embedding().post("/v1/embeddings", input="a").status_code == 200


def test_texts_and_messages_become_tokens_and_back() -> None:
    service = Service()
    assert service.post("/tokenize", prompt="Hi", return_token_strs=True).json() == {
        "count": 2,
        "max_model_len": 1000,
        "tokens": [72, 105],
        "token_strs": ["H", "i"],
    }
    messages = [{"role": "user", "content": "Hi"}]
    assert service.post("/tokenize", messages=messages).json()["tokens"] == [72, 105]
    assert service.post("/detokenize", tokens=[72, 105]).json() == {"prompt": "Hi"}
    assert service.ask("POST", "/detokenize", json={"tokens": []}).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("url", "fields", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user"}]}, "prompt"),
        ("/tokenize", {"messages": [{"role": "x"}]}, "messages[0].role"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [2**31 - 1]}, "tokens"),
        ("/detokenize", {"tokens": [2**70]}, "tokens[0]"),
    ],
)
def test_what_is_no_text_and_no_token_is_named(url: str, fields: Any, param: str) -> None:
    response = Service().post(url, **fields)
    assert response.status_code == 400
    assert error_of(response)["param"] == param
