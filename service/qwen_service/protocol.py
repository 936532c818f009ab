"""What a request may say: the fields of OpenAI's chat completions, and how a wrong one is named.

Knows nothing of the engine. Unknown fields are accepted, as every OpenAI server does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qwen_service.errors import ApiError, not_supported

# Known, not served yet, and so refused by name unless the value asks for nothing.
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "best_of": (1,),
    "echo": (False,),
    "continue_final_message": (False,),
}

Number = Annotated[float, Field(allow_inf_nan=False)]


class Strict(BaseModel):
    """No silent conversions: a number in quotes is a mistake."""

    model_config = ConfigDict(strict=True, extra="ignore")


class TextPart(Strict):
    type: Literal["text"]
    text: str


class FunctionCall(Strict):
    name: str
    arguments: str


class ToolCall(Strict):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class StreamOptions(Strict):
    include_usage: bool | None = None


class ChatRequest(Strict):
    model_config = ConfigDict(strict=True, extra="allow")

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: Number | None = Field(None, ge=0, le=1)
    repetition_penalty: Number | None = Field(None, gt=0, le=10)
    presence_penalty: Number | None = Field(None, ge=-2, le=2)
    frequency_penalty: Number | None = Field(None, ge=-2, le=2)
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    def refuse_unsupported(self) -> None:
        for field, value in (self.model_extra or {}).items():
            if field in UNSUPPORTED and value is not None and value not in UNSUPPORTED[field]:
                raise not_supported(field)


def invalid(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first wrong field, under the name the caller gave it."""
    first = errors[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return ApiError(400, f"the body is not valid JSON: {reason}", code="invalid_json")
    # Where a field may have several types, the one that fits best fails deepest.
    path = max(
        (path for error in errors if (path := _path(error["loc"])).startswith(_path(first["loc"]))),
        key=len,
    )
    # One error for each type that a field may have.
    reasons = dict.fromkeys(error["msg"] for error in errors if _path(error["loc"]) == path)
    message = " or ".join(reasons)
    if not path:
        return ApiError(400, f"the body should be a JSON object: {message}", code="invalid_json")
    return ApiError(400, f"{path}: {message}", param=path, code="invalid_value")


def _path(location: Sequence[str | int]) -> str:
    path = ""
    for step in location[1:]:
        if isinstance(step, int):
            path += f"[{step}]"
        elif re.fullmatch(r"str|int|float|bool|\w*\W.*", step):
            # pydantic's name of one type among several, not a field; what follows is its inside.
            continue
        else:
            path += f".{step}" if path else step
    return path
