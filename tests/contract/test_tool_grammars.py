"""The grammars of tool calls as the library reads them, over the fixture model's own tokens."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from qwen_service.formats import grammar
from qwen_service.formats.tools import Tool
from transformers import AutoTokenizer

from tests.fixture_model import fixture_model

pytestmark = pytest.mark.contract

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = (Tool("get_weather", "", CITY), Tool('say_"hi"', "", {}))


def call(name: str = "get_weather", arguments: str = '{"city": "北京"}') -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(fixture_model())


def is_allowed(text: str, lark: str) -> bool:
    matcher = LLMatcher(from_tokenizer(tokenizer()), LLMatcher.grammar_from_lark(lark))
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokenizer()(text, add_special_tokens=False)["input_ids"]
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("text", "required", "single", "free", "json"),
    [
        (call(), True, True, True, True),
        (call('say_\\"hi\\"', "{}"), True, True, True, True),
        (f"{call()}\n{call()}", True, False, True, True),
        (call(arguments='{"town": "北京"}'), False, False, False, False),
        (call(arguments="[]"), False, False, False, False),
        (call("other"), False, False, False, False),
        (call().removesuffix("</tool_call>"), False, False, False, False),
        ("Hello", False, False, True, False),
        (f"I look <b>.\n{call()}", False, False, True, False),
        ('{"a": 5}', False, False, True, True),
        ('{"a": "5"}', False, False, True, False),
        ("", False, False, True, False),
    ],
)
def test_calls_are_kept_to_their_schemas(
    text: str, required: bool, single: bool, free: bool, json: bool
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    many: dict[str, Any] = {"is_required": False, "parallel": True}
    found = (
        is_allowed(text, grammar.tool_calls(TOOLS, is_required=True, parallel=True)),
        is_allowed(text, grammar.tool_calls(TOOLS, is_required=True, parallel=False)),
        is_allowed(text, grammar.tool_calls(TOOLS, **many)),
        is_allowed(text, grammar.tool_calls(TOOLS, **many, otherwise=schema)),
    )
    assert found == (required, single, free, json)


@pytest.mark.parametrize("continues", [False, True])
def test_react_calls_are_kept_to_their_schemas(continues: bool) -> None:
    begin = " " if continues else "Thought: "
    lark = grammar.react(TOOLS, continues=continues)
    for arguments, is_kept in (('{"city": "北京"}', True), ("{}", False), ("北京", False)):
        text = f"{begin}I look.\nAction: get_weather\nAction Input: {arguments}"
        assert is_allowed(text, lark) == is_kept
    assert not is_allowed("Hello", lark)
