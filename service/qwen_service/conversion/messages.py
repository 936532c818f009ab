"""Messages as callers send them -> messages as the models' templates want them.

Knows neither templates nor the engine.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

from qwen_service.formats.arguments import read_object
from qwen_service.protocol.base import MISSING, plain, wrong
from qwen_service.protocol.chat import FunctionCall, Message

# The templates of Qwen know these roles by other names.
ROLES = {"developer": "system", "function": "tool"}


def for_template(messages: Sequence[Message]) -> tuple[dict[str, Any], ...]:
    called: set[str | None] = set()
    rendered = []
    for at, message in enumerate(messages):
        path = f"messages[{at}]"
        if message.role == "tool":
            check_result(message.tool_call_id, called, f"{path}.tool_call_id")
        called |= {call.id for call in message.tool_calls or ()}
        rendered.append(_message(path, message))
    return tuple(rendered)


def check_result(id: str | None, called: Collection[str | None], path: str) -> None:
    if id is None:
        raise wrong(path, MISSING)
    if id not in called:
        raise wrong(path, "should be the id of a call that the assistant made before")


def _message(path: str, message: Message) -> dict[str, Any]:
    rendered: dict[str, Any] = {
        "role": ROLES.get(message.role, message.role),
        "content": _text(path, message),
    }
    if message.role != "assistant":
        if message.content is None:
            raise wrong(f"{path}.content", MISSING)
        if message.tool_calls or message.function_call:
            raise wrong(f"{path}.role", "only the assistant calls functions")
        return rendered
    if message.reasoning_content:
        rendered["reasoning_content"] = message.reasoning_content
    calls = [
        _call(it.function, f"{path}.tool_calls[{at}].function", it.id)
        for at, it in enumerate(message.tool_calls or ())
    ]
    if message.function_call:
        calls.append(_call(message.function_call, f"{path}.function_call", None))
    if calls:
        rendered["tool_calls"] = calls
    return rendered


def _call(function: FunctionCall, path: str, id: str | None) -> dict[str, Any]:
    arguments = read_arguments(function.arguments, f"{path}.arguments")
    return {
        "id": id,
        "type": "function",
        "function": {"name": function.name, "arguments": arguments},
    }


def _text(path: str, message: Message) -> str:
    if not isinstance(message.content, list):
        return message.content or ""
    texts = []
    for at, part in enumerate(message.content):
        text = part.text if part.type == "text" else part.refusal
        if text is None:
            raise wrong(f"{path}.content[{at}].{part.type}", MISSING)
        texts.append(text)
    return "\n".join(texts)


def read_arguments(text: str, path: str) -> dict[str, Any]:
    """Templates render arguments themselves and so want the object, not its text."""
    arguments = read_object(text or "{}")
    if arguments is None:
        raise wrong(path, "should be a JSON object")
    try:
        return cast(dict[str, Any], plain(arguments))
    except ValueError as error:
        raise wrong(path, str(error)) from error
