"""A request of the newer Responses API.

Nothing is kept between requests, so whatever needs a memory is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from qwen_service.protocol.base import (
    Count,
    FunctionName,
    Json,
    Listed,
    Number,
    Request,
    StreamOptions,
    Strict,
    Words,
)
from qwen_service.protocol.chat import MOST_MESSAGES, MOST_PARTS, MOST_TOOLS
from qwen_service.protocol.tools import Mode

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
# What needs a memory or a tool that is not here, with the values that ask for nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "background_options": (),
    "context_management": ([],),
    "conversation": (),
    "image": (),
    "max_tool_calls": (),
    "previous_response_id": (),
    "prompt": (),
    "store": (False,),
    "truncation": ("disabled",),
    # Fields of the other routes that would change the answer.
    "frequency_penalty": (0, 0.0),
    "logit_bias": ({},),
    "max_tokens": (),
    "max_completion_tokens": (),
    "n": (1,),
    "presence_penalty": (0, 0.0),
    "response_format": (),
    "seed": (),
    "stop": ([],),
}


class InputPart(Strict):
    echoed = frozenset({"annotations", "logprobs"})

    type: Literal["input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"]
    text: Words | None = None
    refusal: Words | None = None


Parts = Annotated[Listed[InputPart], Field(max_length=MOST_PARTS)]


class InputItem(Strict):
    """A message, a call, its result or a thought; without a type it is a message."""

    echoed = frozenset({"encrypted_content", "id", "phase", "status"})

    type: Literal["message", "function_call", "function_call_output", "reasoning"] | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Words | Parts | None = None
    summary: Parts | None = None
    call_id: Words | None = None
    name: FunctionName | None = None
    arguments: Words | None = None
    output: Words | Parts | None = None


class FlatTool(Strict):
    type: Literal["function"]
    name: FunctionName
    description: Words | None = None
    parameters: Json | None = None
    strict: bool | None = None


class FlatNamed(Strict):
    type: Literal["function"]
    name: FunctionName


class FlatChoice(Strict):
    type: Literal["function", "allowed_tools"]
    name: FunctionName | None = None
    mode: Literal["auto", "required"] | None = None
    tools: Annotated[Listed[FlatNamed], Field(min_length=1)] | None = None


class TextFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    name: Words | None = None
    description: Words | None = None
    schema_: Json | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(Strict):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Strict):
    effort: Effort | None = None


class ResponsesRequest(Request):
    # The instructions are a message beside them.
    input: Words | Annotated[Listed[InputItem], Field(min_length=1, max_length=MOST_MESSAGES - 1)]
    instructions: Words | None = None
    max_output_tokens: Count | None = None
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1)
    min_p: Number | None = Field(None, ge=0, le=1)
    repetition_penalty: Number | None = Field(None, gt=0, le=10)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: Listed[str] | None = None
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    tools: Annotated[Listed[FlatTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Mode | FlatChoice | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: dict[Words, Words] | None = Field(None, max_length=16)
    user: Words | None = None

    def ignored(self) -> tuple[str, ...]:
        for name, neutral in REFUSED.items():
            self.refuse_unless(name, neutral)
        return tuple(name for name in super().ignored() if name not in REFUSED)

    def unread(self, path: str = "") -> Iterator[str]:
        yield from super().unread(path)
        if [it for it in self.include or () if it != "message.output_text.logprobs"]:
            yield "include"

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or "message.output_text.logprobs" in (self.include or ())
