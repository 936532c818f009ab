"""One function, and a call of it as Qwen2.5 and Qwen3 write it."""

from __future__ import annotations

from typing import Any

BEIJING = '{"city": "北京"}'
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {BEIJING}}}\n</tool_call>'
FUNCTION: dict[str, Any] = {
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
TOOLS: list[Any] = [{"type": "function", "function": FUNCTION}]
