"""Messages as callers send them -> messages as the models' templates want them.

Knows neither templates nor the engine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from qwen_service.errors import ApiError
from qwen_service.protocol.base import MOST_NESTED, plain, wrong
from qwen_service.protocol.chat import FunctionCall, Message

# The templates of Qwen know these roles by other names.
ROLES = {"developer": "system", "function": "tool"}


def for_template(messages: Sequence[Message]) -> tuple[dict[str, Any], ...]:
    return tuple(_message(f"messages[{at}]", message) for at, message in enumerate(messages))


def _message(path: str, message: Message) -> dict[str, Any]:
    rendered: dict[str, Any] = {
        "role": ROLES.get(message.role, message.role),
        "content": _text(path, message),
    }
    if message.role != "assistant":
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
    arguments = _arguments(function.arguments, f"{path}.arguments")
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
            raise wrong(f"{path}.content[{at}].{part.type}", "Field required")
        texts.append(text)
    return "\n".join(texts)


def _arguments(text: str, path: str) -> Any:
    """Templates render arguments themselves and so want the object, not its text."""
    try:
        return plain(json.loads(text or "{}"))
    except RecursionError as error:
        raise wrong(path, f"should be nested at most {MOST_NESTED} deep") from error
    except ValueError as error:
        raise ApiError(
            400, f"{path}: should be JSON: {error}", param=path, code="invalid_value"
        ) from error
