"""A request for a chat completion.

Knows nothing of templates and formats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from qwen_service.protocol.base import Count, FunctionName, Json, Listed, Strict, Words, wrong
from qwen_service.protocol.sampling import SamplingFields
from qwen_service.protocol.tools import (
    Choice,
    FunctionOfName,
    LegacyFunction,
    Mode,
    Offer,
    ToolField,
    check_schemas,
    offer,
)

MOST_TOOLS = 128
MOST_MESSAGES = 2048
MOST_PARTS = 1024


class ContentPart(Strict):
    type: Literal["text", "refusal"]
    text: Words | None = None
    refusal: Words | None = None


class FunctionCall(Strict):
    name: FunctionName
    arguments: Words


class ToolCall(Strict):
    echoed = frozenset({"index"})

    id: Words | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


# What each role has to say, for the published document; it is judged where messages are converted.
TOLD: JsonDict = {
    "content": {"type": ["string", "array"]},
    "function_call": {"type": "null"},
    "tool_calls": {"type": "null"},
}
BY_ROLE: JsonDict = {
    "anyOf": [
        {"properties": {"role": {"const": "assistant"}}},
        {
            "properties": {"role": {"enum": ["system", "developer", "user", "function"]}, **TOLD},
            "required": ["content"],
        },
        {
            "properties": {"role": {"const": "tool"}, "tool_call_id": {"type": "string"}, **TOLD},
            "required": ["content", "tool_call_id"],
        },
    ]
}


class Message(Strict):
    model_config = ConfigDict(json_schema_extra=BY_ROLE)
    echoed = frozenset({"annotations", "audio", "id", "object", "refusal", "status"})

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Words | Annotated[Listed[ContentPart], Field(max_length=MOST_PARTS)] | None = None
    reasoning_content: Words | None = None
    name: Words | None = None
    tool_calls: Annotated[Listed[ToolCall], Field(max_length=MOST_TOOLS)] | None = None
    tool_call_id: Words | None = None
    function_call: FunctionCall | None = None


Messages = Annotated[Listed[Message], Field(min_length=1, max_length=MOST_MESSAGES)]


class JsonSchema(Strict):
    name: Words | None = None
    description: Words | None = None
    schema_: Json | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class TemplateVariables(Strict):
    enable_thinking: bool | None = None


class ChatRequest(SamplingFields):
    messages: Messages
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: Annotated[Listed[ToolField], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Mode | Choice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[Listed[LegacyFunction], Field(max_length=MOST_TOOLS)] | None = None
    function_call: Literal["none", "auto"] | FunctionOfName | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    chat_template_kwargs: TemplateVariables | None = None
    # As DashScope's clients say it.
    enable_thinking: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    def unread(self, path: str = "") -> Iterator[str]:
        yield from super().unread(path)
        if any(it.name and it.role not in ("function", "tool") for it in self.messages):
            yield "messages.name"

    def logprobs_count(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise wrong("top_logprobs", "should be given with logprobs only")
        return (self.top_logprobs or 0) if self.logprobs else None

    def offer(self) -> Offer:
        if self.tools and self.functions:
            raise wrong("functions", "should not be given beside tools")
        if not self.functions:
            if self.function_call not in (None, "none", "auto"):
                raise wrong("function_call", "should be given with functions only")
            tools = tuple(tool.function.tool() for tool in self.tools or ())
            check_schemas(tools, "tools")
            parallel = self.parallel_tool_calls is not False
            return offer(tools, self.tool_choice, parallel=parallel, param="tool_choice")
        if self.tool_choice not in (None, "none", "auto"):
            raise wrong("tool_choice", "should be given with tools only")
        tools = tuple(it.tool(f"functions[{at}]") for at, it in enumerate(self.functions))
        check_schemas(tools, "functions")
        named = self.function_call
        choice: Mode | Choice | None = (
            Choice(type="function", function=named) if isinstance(named, FunctionOfName) else named
        )
        legacy = offer(tools, choice, parallel=False, param="function_call")
        return replace(legacy, is_legacy=True)

    def thinking(self) -> tuple[str, bool] | None:
        """Whether the model shall think, and the field that says so."""
        variables = self.chat_template_kwargs
        if variables is not None:
            for name in variables.unread("chat_template_kwargs."):
                raise wrong(name, "is no variable that may be set here")
            if variables.enable_thinking is not None:
                return "chat_template_kwargs.enable_thinking", variables.enable_thinking
        if self.enable_thinking is not None:
            return "enable_thinking", self.enable_thinking
        if self.reasoning_effort is not None:
            return "reasoning_effort", self.reasoning_effort != "none"
        return None

    def continues(self) -> bool:
        """Whether the last message goes on where it ends."""
        if not self.continue_final_message:
            if self.add_generation_prompt is False:
                reason = "should be false with continue_final_message only"
                raise wrong("add_generation_prompt", reason)
            return False
        if self.add_generation_prompt:
            raise wrong("add_generation_prompt", "should be false where the last message goes on")
        last = self.messages[-1]
        if last.role != "assistant" or last.tool_calls or last.function_call:
            reason = "the last message should be text of the assistant"
            raise wrong("continue_final_message", reason)
        return True


class NamelessChatRequest(ChatRequest):
    """Older clients name the model in the path."""

    model: str | None = None  # type: ignore[assignment]
