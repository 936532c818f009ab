"""The Responses API: items, events, and the memory that it does not have."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from qwen_service.engine import Chat, Constraint, EngineError

from tests.fake_engine import FACTS, FakeEngine
from tests.service_app import Service, error_of
from tests.tool_calls import BEIJING, CALL, FUNCTION

TOOL = {"type": "function", **FUNCTION}
SAYS = {"weather": f"I look.\n{CALL}", "think": "<think>\nHm.\n</think>\n\nHello"}


def service(**options: Any) -> Service:
    facts = replace(FACTS, **options)
    return Service(engine=FakeEngine(facts=facts, says=SAYS))


def respond(asked: Service | None = None, **fields: Any) -> httpx.Response:
    return (asked or service()).post("/v1/responses", **{"input": "one two", **fields})


def told(response: httpx.Response) -> list[dict[str, Any]]:
    """The events, whose names stand beside them and whose numbers have no gap."""
    blocks = [block.split("\n") for block in response.text.split("\n\n")[:-1]]
    events = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [name for name, _ in blocks] == [f"event: {event['type']}" for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def test_a_response_holds_the_message_and_what_was_asked() -> None:
    answer = respond(metadata={"a": "b"}, temperature=0.5, instructions="Be brief.").json()
    assert answer["id"].startswith("resp_")
    assert (answer["object"], answer["status"], answer["error"]) == ("response", "completed", None)
    assert (answer["metadata"], answer["temperature"]) == ({"a": "b"}, 0.5)
    (message,) = answer["output"]
    assert message.pop("id").startswith("msg_")
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": "one two"}
    assert message == {
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [part],
    }
    assert answer["usage"]["total_tokens"] == 5


def test_the_events_come_in_their_order() -> None:
    asked = service(thinks=True)
    events = told(respond(asked, input="think", stream=True))
    kinds = [event["type"].removeprefix("response.") for event in events]
    thought = [kind for kind in kinds if kind != "reasoning_text.delta"]
    assert [kind for kind in thought if kind != "output_text.delta"] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    deltas = [event["delta"] for event in events if event["type"].endswith("output_text.delta")]
    assert "".join(deltas) == "Hello"
    items = events[-1]["response"]["output"]
    assert [item["type"] for item in items] == ["reasoning", "message"]
    assert items[0]["content"] == [{"type": "reasoning_text", "text": "Hm."}]


def test_calls_are_items_of_their_own() -> None:
    fields: dict[str, Any] = {"input": "weather", "tools": [TOOL]}
    message, call = respond(**fields).json()["output"]
    assert message["content"][0]["text"] == "I look."
    assert (call["type"], call["name"]) == ("function_call", "get_weather")
    assert (call["arguments"], call["status"]) == (BEIJING, "completed")
    events = told(respond(**fields, stream=True))
    deltas = [it["delta"] for it in events if it["type"].endswith("arguments.delta")]
    (done,) = (it for it in events if it["type"].endswith("arguments.done"))
    assert "".join(deltas) == done["arguments"] == BEIJING
    assert events[-1]["response"]["output"][1]["arguments"] == BEIJING


def test_a_call_that_is_cut_off_is_an_item_that_is_incomplete() -> None:
    cut = SAYS["weather"].index("city")
    fields: dict[str, Any] = {"input": "weather", "tools": [TOOL], "max_output_tokens": cut}
    whole = respond(**fields).json()
    streamed = told(respond(**fields, stream=True))[-1]["response"]
    for response in (whole, streamed):
        message, call = response["output"]
        assert message["content"][0]["text"] == "I look."
        assert (call["arguments"], call["status"]) == ('{"', "incomplete")
        assert response["incomplete_details"] == {"reason": "max_output_tokens"}


def test_items_become_messages() -> None:
    asked = service(thinks=True)
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Sunny?"}]},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
        },
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": BEIJING},
        {"type": "function_call_output", "call_id": "c1", "output": "21 degrees"},
    ]
    response = respond(asked, input=items, instructions="S", tools=[TOOL], tool_choice="auto")
    assert response.status_code == 200
    prompt = asked.engine.submitted[0].prompt
    assert isinstance(prompt, Chat)
    system, user, assistant, tool = prompt.messages
    assert system == {"role": "system", "content": "S"}
    assert user == {"role": "user", "content": "Sunny?"}
    assert (assistant["content"], assistant["reasoning_content"]) == ("I look.", "Hm.")
    assert assistant["tool_calls"][0]["function"]["arguments"] == {"city": "北京"}
    assert tool == {"role": "tool", "content": "21 degrees"}
    assert prompt.tools == ({"type": "function", "function": FUNCTION},)


def test_forms_and_efforts_reach_the_engine() -> None:
    asked = service(thinks=True)
    format = {"type": "json_schema", "name": "x", "schema": {"type": "integer"}, "strict": True}
    respond(asked, text={"format": format}, reasoning={"effort": "none"}, max_output_tokens=7)
    (generation,) = asked.engine.submitted
    assert generation.sampling.constraint == Constraint("json_schema", '{"type": "integer"}')
    assert generation.sampling.max_tokens == 7
    assert isinstance(generation.prompt, Chat)
    assert generation.prompt.variables == {"enable_thinking": False}


def test_a_response_that_is_cut_off_is_incomplete() -> None:
    answer = respond(max_output_tokens=1).json()
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["output"][0]["status"] == "incomplete"
    assert told(respond(max_output_tokens=1, stream=True))[-1]["type"] == "response.incomplete"


def test_an_empty_answer_is_an_empty_message() -> None:
    asked = Service(engine=FakeEngine(says={"one two": ()}))
    (message,) = respond(asked).json()["output"]
    assert message["content"][0]["text"] == ""


def test_logprobs_stand_beside_the_text() -> None:
    answer = respond(include=["message.output_text.logprobs"], top_logprobs=1).json()
    told = answer["output"][0]["content"][0]["logprobs"]
    assert [token["token"] for token in told] == ["one", " two"]
    assert told[0]["top_logprobs"] == [{"token": "one", "logprob": -0.5, "bytes": [111, 110, 101]}]


def test_a_failure_inside_a_stream_fails_the_response() -> None:
    asked = service()
    asked.engine.failure, asked.engine.fails_late = EngineError("the model failed"), True
    *_, error, failed = told(respond(asked, stream=True))
    assert (error["type"], error["message"]) == ("error", "the model failed")
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"]["message"] == "the model failed"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"type": "message"}]}, "input[0].role"),
        ({"input": [{"type": "function_call"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "output": "21"}]}, "input[0].call_id"),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": "21"}]},
            "input[0].call_id",
        ),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"top_logprobs": 21}, "top_logprobs"),
    ],
)
def test_what_cannot_be_had_is_named(fields: dict[str, Any], param: str) -> None:
    response = respond(**fields)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


def test_what_has_no_effect_is_named() -> None:
    fields: dict[str, Any] = {
        "service_tier": "auto",
        "include": ["reasoning.encrypted_content"],
        "store": False,
        "background": False,
        "truncation": "disabled",
        "reasoning": {"summary": "auto"},
    }
    response = respond(**fields)
    assert response.headers["x-qwen-ignored"] == "service_tier,reasoning.summary,include"
