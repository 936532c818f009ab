"""Thoughts and tool calls out of text, whatever pieces it comes in; and the prompt of ReAct."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from qwen_service.formats.parts import CallArguments, CallBegan, Reader, Said, Thought
from qwen_service.formats.react import ReactReader
from qwen_service.formats.react_prompt import write
from qwen_service.formats.think import ThinkReader
from qwen_service.formats.tool_calls import ToolCallReader
from qwen_service.formats.tools import Tool

from tests.tool_calls import BEIJING, CALL

NAMES = frozenset({"get_weather", "get_time"})
TIME = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
Read = tuple[str, str, list[tuple[str, str]]]


def splits(text: str) -> Iterator[list[str]]:
    """The text in pieces of every size, and in two at every place."""
    for size in range(1, len(text) + 1):
        yield [text[at : at + size] for at in range(0, len(text), size)]
    for at in range(len(text)):
        yield [text[:at], text[at:]]


def read(reader: Reader, pieces: list[str]) -> Read:
    """What was said, what was thought, and the calls."""
    said, thought = "", ""
    calls: list[tuple[str, str]] = []
    parts = [part for piece in pieces for part in reader.feed(piece)] + reader.end()
    for part in parts:
        match part:
            case Said():
                said += part.text
            case Thought():
                thought += part.text
            case CallBegan():
                assert part.index == len(calls)
                assert part.id.startswith("call_")
                calls.append((part.name, ""))
            case CallArguments():
                name, arguments = calls[part.index]
                calls[part.index] = (name, arguments + part.text)
    return said, thought, calls


def read_alike(make: Callable[[], Reader], text: str) -> Read:
    """The reading that all ways to cut the text have in common."""
    first, *others = (read(make(), pieces) for pieces in splits(text))
    assert all(other == first for other in others)
    return first


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("Hello", "Hello", []),
        ("a < b and <tool> or <tool_cal", "a < b and <tool> or <tool_cal", []),
        ("two\n\nlines\n", "two\n\nlines\n", []),
        (CALL, "", [("get_weather", BEIJING)]),
        (f"I look.\n{CALL}\n{TIME}", "I look.", [("get_weather", BEIJING), ("get_time", "{}")]),
        (f"{CALL}\nDone.", "\nDone.", [("get_weather", BEIJING)]),
        (CALL.removesuffix("\n</tool_call>"), "", [("get_weather", BEIJING)]),
        ('<tool_call>{"name":"get_time"}</tool_call>', "", [("get_time", "{}")]),
        (
            '<tool_call>{"name": "get_weather", "arguments": {"city": "}]\\"{"}}</tool_call>',
            "",
            [("get_weather", '{"city": "}]\\"{"}')],
        ),
        (
            '<tool_call>{"arguments": {"city": "x"}, "name": "get_weather"}</tool_call>',
            "",
            [("get_weather", '{"city": "x"}')],
        ),
        (
            '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": 1}"}</tool_call>',
            "",
            [("get_weather", '{"city": 1}')],
        ),
    ],
)
def test_tool_calls_are_found_in_any_pieces(
    text: str, said: str, calls: list[tuple[str, str]]
) -> None:
    found = read_alike(lambda: ToolCallReader(NAMES), text)
    assert found == (said, "", calls)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\n{no json}\n</tool_call>",
        "<tool_call>\n[1, 2]\n</tool_call>",
        '<tool_call>{"name": "rm_rf", "arguments": {}}</tool_call>',
        '<tool_call>{"name": ["get_time"], "arguments": {}}</tool_call>',
        '<tool_call>{"name": "get_time", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "get_time", "arguments": NaN}</tool_call>',
        '<tool_call>{"name": "rm_rf", "arguments": {}}',
        "<tool_call> is how it begins.",
        "<tool_call>" + "[" * 2000,
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    for pieces in ([text], list(text)):
        reader = ToolCallReader(NAMES)
        assert read(reader, pieces) == (text, "", [])
        assert not reader.has_called


HEAD = '<tool_call>\n{"name": "get_weather", "arguments": '


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("<tool_call>", "", []),
        ('I look.\n<tool_call>\n{"name": "get_wea', "I look.", []),
        ('<tool_call>{"name": "get_time"', "", [("get_time", "")]),
        (HEAD, "", [("get_weather", "")]),
        (HEAD + '{"city": "北', "", [("get_weather", '{"city": "北')]),
        (f"{TIME}\n{HEAD}{{", "", [("get_time", "{}"), ("get_weather", "{")]),
        ('<tool_call>{"arguments": {"city": "x"}, "na', "", []),
    ],
)
def test_a_call_that_is_cut_off_is_a_call_as_far_as_it_came(
    text: str, said: str, calls: list[tuple[str, str]]
) -> None:
    assert read_alike(lambda: ToolCallReader(NAMES), text) == (said, "", calls)
    reader = ToolCallReader(NAMES)
    read(reader, [text])
    assert not reader.has_called


def test_a_call_is_whole_once_its_arguments_are() -> None:
    whole = CALL.index(BEIJING) + len(BEIJING)
    for length in range(len(CALL) + 1):
        reader = ToolCallReader(NAMES)
        read(reader, [CALL[:length]])
        assert reader.has_called == (length >= whole)


def test_arguments_are_told_as_they_come() -> None:
    reader = ToolCallReader(NAMES)
    head, rest = CALL[: CALL.index("{", 15)], CALL[CALL.index("{", 15) :]
    told = [reader.feed(piece) for piece in (head, rest[:4], rest[4:])]
    assert [len(parts) for parts in told] == [0, 2, 1]


@pytest.mark.parametrize(
    ("is_open", "text", "said", "thought"),
    [
        (False, "Hello", "Hello", ""),
        (False, "<think>\nHm.\n</think>\n\nHello", "Hello", "Hm."),
        (False, "\n<think>\nHm.\n\nSo.\n</think>\n\nHello\n", "Hello\n", "Hm.\n\nSo."),
        (False, "<think>\n\n</think>\n\nHello", "Hello", ""),
        (False, "<think>Hm. <b", "", "Hm. <b"),
        (False, "<thin ice", "<thin ice", ""),
        (False, "<", "<", ""),
        (False, "So <think>this</think>", "So <think>this</think>", ""),
        (True, "Hm.\n</think>\n\nHello <think>", "Hello <think>", "Hm."),
        (True, "\nHm.\n", "", "Hm."),
        (True, "", "", ""),
    ],
)
def test_thoughts_are_parted_in_any_pieces(
    is_open: bool, text: str, said: str, thought: str
) -> None:
    assert read(ThinkReader(is_open=is_open), [text]) == (said, thought, [])
    if text:
        found = read_alike(lambda: ThinkReader(is_open=is_open), text)
        assert found == (said, thought, [])


def test_calls_come_after_thoughts_and_not_within_them() -> None:
    def make() -> Reader:
        answer = ToolCallReader(NAMES)
        return ThinkReader(is_open=False, answer=answer)

    text = f"<think>\nMaybe {TIME}?\n</think>\n\n{CALL}"
    assert read_alike(make, text) == ("", f"Maybe {TIME}?", [("get_weather", BEIJING)])


REACT_CALL = f"Thought: I should look.\nAction: get_weather\nAction Input: {BEIJING}"


@pytest.mark.parametrize(
    ("continues", "text", "said", "calls"),
    [
        (False, REACT_CALL, "I should look.", [("get_weather", BEIJING)]),
        (False, f"{REACT_CALL}\nObserv", "I should look.", [("get_weather", BEIJING)]),
        (False, "Thought: Easy.\nFinal Answer: 42\nyes", "42\nyes", []),
        (True, " I know.\nFinal Answer: sunny", "sunny", []),
        (True, " More.\nAction: get_time\nAction Input: {}\n", "More.", [("get_time", "{}")]),
        (False, "Hello\nAction", "Hello\nAction", []),
        (False, "Hello.\nFinal Answer: 42", "Hello.42", []),
        (False, "Thought: no end", "Thought: no end", []),
        (False, "Thought", "Thought", []),
        (False, "\nAction: get_time\nAction Input: now please", "", [("get_time", "now please")]),
        (
            False,
            "Thought: x\nAction: rm_rf\nAction Input: {}",
            "Thought: x\nAction: rm_rf\nAction Input: {}",
            [],
        ),
        (False, "Thought: x\nAction Input: {}", "Thought: x\nAction Input: {}", []),
    ],
)
def test_react_is_read_in_any_pieces(
    continues: bool, text: str, said: str, calls: list[tuple[str, str]]
) -> None:
    found = read_alike(lambda: ReactReader(NAMES, continues=continues), text)
    assert found == (said, "", calls)


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("Thought: I should look.\nAction: get_wea", "I should look.", []),
        ("Hello.\nAction:", "Hello.", []),
        ("Thought: I look.\nAction: get_time\nAction In", "I look.", [("get_time", "")]),
        (REACT_CALL[:-3], "I should look.", [("get_weather", BEIJING[:-3])]),
        ("Thought: x\nAction: see below", "Thought: x\nAction: see below", []),
    ],
)
def test_a_call_of_react_that_is_cut_off_is_a_call_as_far_as_it_came(
    text: str, said: str, calls: list[tuple[str, str]]
) -> None:
    assert read_alike(lambda: ReactReader(NAMES), text) == (said, "", calls)
    reader = ReactReader(NAMES)
    read(reader, [text])
    assert not reader.has_called


WEATHER = Tool("get_weather", "Weather of a city.", {"type": "object"}, human_name="Weather")


def test_the_prompt_of_react_is_that_of_the_original() -> None:
    messages = [{"role": "user", "content": "Sunny?"}]
    (turn,) = write(messages, [WEATHER]).messages
    assert turn["content"].startswith(
        "Answer the following questions as best you can. You have access to the following APIs:\n\n"
        "get_weather: Call this tool to interact with the Weather API. What is the Weather API "
        'useful for? Weather of a city. Parameters: {"type": "object"}\n\nUse the following format:'
    )
    assert "should be one of [get_weather]\n" in turn["content"]
    assert turn["content"].endswith("Begin!\n\nQuestion: Sunny?")


def test_a_result_continues_the_thought_that_called() -> None:
    function: dict[str, Any] = {"name": "get_weather", "arguments": json.loads(BEIJING)}
    written = write(
        [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "Sunny?"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": function}]},
            {"role": "tool", "content": "21 degrees"},
        ],
        [WEATHER],
    )
    system, asked, answered = written.messages
    assert system == {"role": "system", "content": "S"}
    assert asked["content"].endswith("Question: Sunny?")
    assert answered["content"] == (
        f"Thought: \nAction: get_weather\nAction Input: {BEIJING}\n"
        "Observation: 21 degrees\nThought:"
    )
    assert written.continues


def test_earlier_answers_are_final_answers_beside_tools_only() -> None:
    messages = [
        {"role": "user", "content": "\nHello "},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Sunny?"},
    ]
    first, answer, last = write(messages, [WEATHER]).messages
    assert (first["content"], last["content"][-16:]) == ("Hello", "Question: Sunny?")
    assert answer["content"] == "Thought: I now know the final answer.\nFinal Answer: Hi"
    plain = write(messages, [])
    assert [turn["content"] for turn in plain.messages] == ["Hello", "Hi", "Sunny?"]
    assert not plain.continues
