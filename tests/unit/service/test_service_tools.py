"""Tools, functions and thoughts in chat completions, whole and streamed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from qwen_service.engine import Chat, Generation

from tests.fake_engine import FACTS, FakeEngine
from tests.service_app import Service, error_of, events, generation, merged, prompt, user
from tests.tool_calls import BEIJING, CALL, FUNCTION, TOOLS

THINKS = replace(FACTS, thinks=True)
REACT = replace(FACTS, tools="react")
ACTION = f"Thought: I look.\nAction: get_weather\nAction Input: {BEIJING}\nObservation: 21"
THOUGHT = "<think>\nHm.\n</think>\n\nHello"
SAYS = {"weather": f"I look.\n{CALL}"}


def service(facts: Any = FACTS) -> Service:
    return Service(engine=FakeEngine(facts=facts, says=SAYS))


def test_a_tool_call_is_answered_and_streamed_alike() -> None:
    asked = service()
    choice = asked.chat(messages=user("weather"), tools=TOOLS).json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert call.pop("id").startswith("call_")
    assert call == {"type": "function", "function": {"name": "get_weather", "arguments": BEIJING}}
    assert choice["message"]["content"] == "I look."
    assert choice["finish_reason"] == "tool_calls"
    assert prompt(asked).tools == ({"type": "function", "function": FUNCTION},)
    streamed = merged(events(asked.chat(messages=user("weather"), tools=TOOLS, stream=True)))
    assert streamed == {
        "content": "I look.",
        "reasoning_content": "",
        "calls": [("get_weather", BEIJING)],
        "finish_reason": "tool_calls",
    }


def test_an_answer_of_calls_alone_has_no_content() -> None:
    asked = Service(engine=FakeEngine(says={"weather": CALL}))
    choice = asked.chat(messages=user("weather"), tools=TOOLS).json()["choices"][0]
    assert choice["message"]["content"] is None


def test_arguments_come_in_fragments_after_the_name() -> None:
    chunks = events(service().chat(messages=user("weather"), tools=TOOLS, stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    first, *fragments = (delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta)
    assert first["function"] == {"name": "get_weather", "arguments": ""}
    assert all(set(fragment) == {"index", "function"} for fragment in fragments)
    assert len(fragments) == len(BEIJING)


@pytest.mark.parametrize("legacy", [False, True], ids=["tools", "functions"])
@pytest.mark.parametrize(
    ("facts", "words"), [(FACTS, f"I look.\n{CALL}"), (REACT, ACTION)], ids=["json", "react"]
)
@pytest.mark.parametrize("cut", ["max_tokens", "stop"])
def test_a_call_that_is_cut_off_has_one_shape_whole_and_streamed(
    cut: str, facts: Any, words: str, legacy: bool
) -> None:
    arguments = '{"'

    class Calling(FakeEngine):
        def _pieces(self, generation: Generation) -> tuple[str, ...]:
            return tuple(words)

    limit = words.index(BEIJING) + len(arguments)
    fields: dict[str, Any] = {"messages": user("weather")}
    fields |= {"functions": [FUNCTION]} if legacy else {"tools": TOOLS}
    fields |= {"max_tokens": limit} if cut == "max_tokens" else {"stop": "city"}
    reason = "length" if cut == "max_tokens" else "stop"
    asked = Service(engine=Calling(facts=facts))
    choice = asked.chat(**fields).json()["choices"][0]
    message = choice["message"]
    assert (message["content"], choice["finish_reason"]) == ("I look.", reason)
    call = message["function_call"] if legacy else message["tool_calls"][0]["function"]
    assert call == {"name": "get_weather", "arguments": arguments}
    streamed = merged(events(asked.chat(**fields, stream=True)))
    assert (streamed["content"], streamed["finish_reason"]) == ("I look.", reason)
    found = streamed["function_call"] if legacy else streamed["calls"]
    assert found == (call if legacy else [("get_weather", arguments)])


def test_a_call_without_tools_is_text() -> None:
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        asked = service()
        choice = asked.chat(messages=user("weather"), **fields).json()["choices"][0]
        assert choice["message"]["content"] == f"I look.\n{CALL}"
        assert choice["finish_reason"] == "stop"
        assert prompt(asked).tools == ()


def test_functions_are_called_as_they_were_before_tools() -> None:
    fields = {"messages": user("weather"), "functions": [FUNCTION]}
    choice = service().chat(**fields).json()["choices"][0]
    assert choice["message"]["function_call"] == {"name": "get_weather", "arguments": BEIJING}
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "function_call"
    streamed = merged(events(service().chat(**fields, stream=True)))
    assert streamed["function_call"] == {"name": "get_weather", "arguments": BEIJING}
    assert (streamed["calls"], streamed["finish_reason"]) == ([], "function_call")


def test_calls_and_results_of_functions_reach_the_template_as_tools() -> None:
    messages = [
        *user("weather?"),
        {
            "role": "assistant",
            "content": None,
            "function_call": {"name": "get_weather", "arguments": BEIJING},
        },
        {"role": "function", "name": "get_weather", "content": "sunny"},
    ]
    asked = service()
    assert asked.chat(messages=messages, functions=[FUNCTION]).status_code == 200
    _, call, result = prompt(asked).messages
    assert call["tool_calls"][0]["function"] == {
        "name": "get_weather",
        "arguments": {"city": "北京"},
    }
    assert result == {"role": "tool", "content": "sunny"}


@pytest.mark.parametrize(
    ("choice", "is_constrained"),
    [
        ("auto", False),
        ("required", True),
        ({"type": "function", "function": {"name": "get_weather"}}, True),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "get_weather"}}],
                },
            },
            True,
        ),
    ],
)
def test_a_call_that_is_required_is_kept_by_a_grammar(choice: Any, is_constrained: bool) -> None:
    asked = service()
    other = {"type": "function", "function": {"name": "other"}}
    assert asked.chat(tools=[*TOOLS, other], tool_choice=choice).status_code == 200
    constraint = generation(asked).sampling.constraint
    assert (constraint is not None) == is_constrained
    if constraint is not None:
        assert constraint.kind == "lark"
        assert '\\"name\\": \\"get_weather\\"' in constraint.text
        assert ("other" in constraint.text) == (choice == "required")


def test_strict_functions_and_schemas_beside_tools_are_kept_by_a_grammar() -> None:
    strict = [{"type": "function", "function": {**FUNCTION, "strict": True}}]
    asked = service()
    assert asked.chat(tools=strict).status_code == 200
    constraint = generation(asked).sampling.constraint
    assert constraint is not None
    assert "TEXT" in constraint.text
    asked = service()
    asked.chat(tools=TOOLS, response_format={"type": "json_object"})
    constraint = generation(asked).sampling.constraint
    assert constraint is not None
    assert "value: %json" in constraint.text


def test_one_call_is_enough_where_calls_may_not_be_parallel() -> None:
    asked = Service(engine=FakeEngine(says={"weather": f"{CALL}\n{CALL}"}))
    both = asked.chat(messages=user("weather"), tools=TOOLS).json()["choices"][0]
    assert len(both["message"]["tool_calls"]) == 2
    one = asked.chat(messages=user("weather"), tools=TOOLS, parallel_tool_calls=False)
    assert len(one.json()["choices"][0]["message"]["tool_calls"]) == 1


def test_the_first_generation_is_asked_in_the_form_of_react() -> None:
    asked = service(REACT)
    asked.chat(messages=user("react"), functions=[FUNCTION])
    assert prompt(asked).tools == ()
    assert prompt(asked).messages[0]["content"].endswith("Begin!\n\nQuestion: react")
    assert generation(asked).sampling.stop == ("Observation:",)


@pytest.mark.parametrize("stream", [False, True])
def test_the_first_generation_calls_functions_and_continues_from_results(stream: bool) -> None:
    class React(FakeEngine):
        def _pieces(self, generation: Generation) -> tuple[str, ...]:
            assert isinstance(generation.prompt, Chat)
            if generation.prompt.continues:
                return (" I now know the final answer.", "\nFinal Answer: ", "sunny")
            return tuple(ACTION)

    asked = Service(engine=React(facts=REACT))
    response = asked.chat(messages=user("weather?"), tools=TOOLS, stream=stream)
    if stream:
        message = merged(events(response))
        assert message["content"] == "I look."
        assert message["calls"] == [("get_weather", BEIJING)]
        assert message["finish_reason"] == "tool_calls"
    else:
        message = response.json()["choices"][0]["message"]
        assert message["content"] == "I look."
        assert message["tool_calls"][0]["function"]["arguments"] == BEIJING
    call = {"type": "function", "function": {"name": "get_weather", "arguments": BEIJING}}
    messages = [
        *user("weather?"),
        {"role": "assistant", "content": "I look.", "tool_calls": [{**call, "id": "call_1"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "21 degrees"},
    ]
    response = asked.chat(messages=messages, tools=TOOLS, stream=stream)
    content = (
        merged(events(response))["content"]
        if stream
        else response.json()["choices"][0]["message"]["content"]
    )
    assert content == "sunny"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("opened", ["", "<think>\n"])
def test_thoughts_are_told_apart(opened: str, stream: bool) -> None:
    says = {"think": THOUGHT.removeprefix(opened)}
    asked = Service(engine=FakeEngine(facts=THINKS, says=says, opened=opened))
    response = asked.chat(messages=user("think"), stream=stream)
    message = merged(events(response)) if stream else response.json()["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("Hello", "Hm.")


@pytest.mark.parametrize(
    ("fields", "variables"),
    [
        ({}, {}),
        ({"reasoning_effort": "none"}, {"enable_thinking": False}),
        ({"reasoning_effort": "low"}, {"enable_thinking": True}),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
        ({"enable_thinking": False}, {"enable_thinking": False}),
    ],
)
def test_thinking_is_switched_by_the_template(
    fields: dict[str, Any], variables: dict[str, Any]
) -> None:
    asked = service(THINKS)
    assert asked.chat(**fields).status_code == 200
    assert prompt(asked).variables == variables


def test_a_model_that_does_not_think_cannot_be_asked_to() -> None:
    assert error_of(service().chat(reasoning_effort="high"))["param"] == "reasoning_effort"
    assert service().chat(reasoning_effort="none").status_code == 200
    assert service().chat(enable_thinking=False).status_code == 200


def test_a_model_without_tools_refuses_them() -> None:
    asked = service(replace(FACTS, tools=None))
    assert error_of(asked.chat(tools=TOOLS))["param"] == "tools"
    assert error_of(asked.chat(functions=[FUNCTION]))["param"] == "functions"


def result(**fields: Any) -> dict[str, Any]:
    return {"role": "tool", "content": "21 degrees", **fields}


@pytest.mark.parametrize(
    ("fields", "cause"),
    [({}, "is missing"), ({"tool_call_id": "call_2"}, "should be the id of a call")],
)
def test_a_result_belongs_to_a_call_that_was_made(fields: dict[str, Any], cause: str) -> None:
    function = {"name": "get_weather", "arguments": BEIJING}
    call = {"id": "call_1", "type": "function", "function": function}
    turns = [*user("weather?"), {"role": "assistant", "content": None, "tool_calls": [call]}]
    accepted = service().chat(messages=[*turns, result(tool_call_id="call_1")])
    assert accepted.status_code == 200
    for messages in ([*turns, result(**fields)], [result(**fields), *turns]):
        error = error_of(service().chat(messages=messages))
        assert error["param"] == f"messages[{messages.index(result(**fields))}].tool_call_id"
        assert cause in error["message"]
        assert error["code"] == "invalid_value"


def test_results_that_nothing_called_for_are_refused_by_the_first_generation() -> None:
    messages = [{"role": "function", "name": "f", "content": "x"}]
    error = error_of(service(REACT).chat(messages=messages))
    assert error["param"] == "messages[0].role"


def test_logprobs_of_tokens_that_are_held_back_are_not_lost() -> None:
    fields = {"messages": user("weather"), "tools": TOOLS, "logprobs": True, "stream": True}
    chunks = [chunk["choices"][0] for chunk in events(service().chat(**fields))]
    told = [it for choice in chunks if choice["logprobs"] for it in choice["logprobs"]["content"]]
    assert "".join(token["token"] for token in told) == f"I look.\n{CALL}"
