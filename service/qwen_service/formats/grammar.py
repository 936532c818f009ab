"""What an answer may be where it has to call tools: a grammar in llguidance's dialect of Lark.

Knows neither the library nor the engine. The schemas are the callers' and unchecked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qwen_service.formats.tools import Tool

# More calls in one answer help nobody, and a model that does not end them would go on for ever.
MOST_CALLS = 32
# As the templates write JSON; white space without end would be JSON, too.
LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def tool_calls(
    tools: Sequence[Tool],
    *,
    is_required: bool,
    parallel: bool,
    otherwise: Mapping[str, Any] | None = None,
) -> str:
    """Calls, or, where none is required, free text before them or a JSON value instead of them."""
    more = f'("\\n" call){{0,{MOST_CALLS - 1}}}' if parallel else ""
    rules = [
        # Tokens of their own; as strings they would have to be spelled.
        f'call: <tool_call> "\\n" ({_either("call", len(tools))}) "\\n" </tool_call>',
        *_calls(tools),
    ]
    if is_required:
        start = f"start: call {more}"
    elif otherwise is not None:
        start = f"start: call {more} | value"
        rules.append(f"value: %json {_json(otherwise)}")
    else:
        start = f"start: TEXT? (call {more})?"
        rules.append("TEXT: /(?s:.+)/ & ~/(?s:.*)<tool_call>(?s:.*)/")
    return "\n".join([start, *rules]) + "\n"


def react(tools: Sequence[Tool], *, continues: bool) -> str:
    """A thought and one call; the prompt may have begun the thought."""
    begin = " " if continues else "Thought: "
    rules = [
        f'start: {_quoted(begin)} THOUGHT "\\n" ({_either("act", len(tools))})',
        r"THOUGHT: /[^\n]{1,1000}/",
        *_actions(tools),
    ]
    return "\n".join(rules) + "\n"


def _either(name: str, count: int) -> str:
    return " | ".join(f"{name}_{index}" for index in range(count))


def _calls(tools: Sequence[Tool]) -> list[str]:
    rules = []
    for index, tool in enumerate(tools):
        head = f'{{"name": {json.dumps(tool.name)}, "arguments": '
        rules.append(f'call_{index}: {_quoted(head)} arguments_{index} "}}"')
        rules.append(f"arguments_{index}: %json {_json(tool.parameters)}")
    return rules


def _actions(tools: Sequence[Tool]) -> list[str]:
    rules = []
    for index, tool in enumerate(tools):
        head = f"Action: {tool.name}\nAction Input: "
        rules.append(f"act_{index}: {_quoted(head)} arguments_{index}")
        rules.append(f"arguments_{index}: %json {_json(tool.parameters)}")
    return rules


def _quoted(text: str) -> str:
    return json.dumps(text)


def _json(schema: Mapping[str, Any]) -> str:
    """Arguments are an object, also where the schema does not say so."""
    return json.dumps({"type": "object", **schema, "x-guidance": LAYOUT})
