"""A request of the Responses API -> the chat request that says the same.

Knows neither the engine nor what is answered.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwen_service.conversion.messages import check_result, read_arguments
from qwen_service.errors import ApiError
from qwen_service.protocol.base import MISSING, wrong
from qwen_service.protocol.chat import (
    ChatRequest,
    FunctionCall,
    JsonSchema,
    Message,
    ResponseFormat,
    ToolCall,
)
from qwen_service.protocol.responses import (
    FlatChoice,
    FlatTool,
    InputItem,
    InputPart,
    ResponsesRequest,
    TextFormat,
)
from qwen_service.protocol.tools import (
    AllowedTools,
    Choice,
    FunctionOfName,
    FunctionTool,
    Mode,
    NamedTool,
    ToolField,
)

# How fields are called there and here; longer names first.
NAMES = (
    ("messages", "input"),
    ("response_format", "text.format"),
    ("reasoning_effort", "reasoning.effort"),
    ("max_completion_tokens", "max_output_tokens"),
)


def chat_request(request: ResponsesRequest) -> ChatRequest:
    text = request.text.format if request.text else None
    return ChatRequest(
        model=request.model,
        messages=_messages(request),
        max_completion_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        logprobs=request.wants_logprobs,
        top_logprobs=request.top_logprobs if request.wants_logprobs else None,
        response_format=_format(text) if text else None,
        tools=[_tool(it) for it in request.tools] if request.tools else None,
        tool_choice=_choice(request.tool_choice),
        parallel_tool_calls=request.parallel_tool_calls,
        reasoning_effort=request.reasoning.effort if request.reasoning else None,
    )


def renamed(error: ApiError) -> ApiError:
    """The same error about the fields that the caller knows."""
    for theirs, ours in NAMES:
        if error.param and error.param.startswith(theirs):
            error.param = ours + error.param.removeprefix(theirs)
            error.message = error.message.replace(theirs, ours)
    return error


def _messages(request: ResponsesRequest) -> list[Message]:
    messages: list[Message] = []
    called: set[str | None] = set()
    if request.instructions:
        messages.append(Message(role="system", content=request.instructions))
    if isinstance(request.input, str):
        return [*messages, Message(role="user", content=request.input)]
    thought: str | None = None
    for at, item in enumerate(request.input):
        path = f"input[{at}]"
        if item.type == "reasoning":
            thought = _joined(item.content, path) or _joined(item.summary, path)
            continue
        if item.type == "function_call_output":
            check_result(item.call_id, called, f"{path}.call_id")
        elif item.type == "function_call":
            called.add(item.call_id)
        message = _message(item, path)
        if message.role == "assistant":
            message.reasoning_content, thought = thought, None
        if message.tool_calls and messages and messages[-1].role == "assistant":
            # A message and its calls are one turn, and several items.
            messages[-1].tool_calls = [*(messages[-1].tool_calls or ()), *message.tool_calls]
        else:
            messages.append(message)
    if not messages:
        raise wrong("input", "should hold a message")
    return messages


def _message(item: InputItem, path: str) -> Message:
    match item.type:
        case "function_call":
            for name in ("call_id", "name", "arguments"):
                if getattr(item, name) is None:
                    raise wrong(f"{path}.{name}", MISSING)
            read_arguments(item.arguments or "", f"{path}.arguments")
            function = FunctionCall(name=item.name or "", arguments=item.arguments or "")
            call = ToolCall(id=item.call_id, function=function)
            return Message(role="assistant", tool_calls=[call])
        case "function_call_output":
            if item.output is None:
                raise wrong(f"{path}.output", MISSING)
            content = _joined(item.output, path)
            return Message(role="tool", tool_call_id=item.call_id, content=content)
    if item.role is None or item.content is None:
        name = "role" if item.role is None else "content"
        raise wrong(f"{path}.{name}", MISSING)
    return Message(role=item.role, content=_joined(item.content, path))


def _joined(content: str | Sequence[InputPart] | None, path: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = [part.refusal if part.type == "refusal" else part.text for part in content]
    if None in texts:
        raise wrong(f"{path}.content[{texts.index(None)}].text", MISSING)
    return "\n".join(text for text in texts if text)


def _tool(tool: FlatTool) -> ToolField:
    function = FunctionTool(
        name=tool.name,
        description=tool.description,
        parameters=tool.parameters,
        strict=tool.strict,
    )
    return ToolField(type="function", function=function)


def _choice(choice: Mode | FlatChoice | None) -> Mode | Choice | None:
    if not isinstance(choice, FlatChoice):
        return choice
    if choice.type == "function":
        if choice.name is None:
            raise wrong("tool_choice.name", MISSING)
        return Choice(type="function", function=FunctionOfName(name=choice.name))
    if choice.mode is None or choice.tools is None:
        raise wrong("tool_choice.tools", MISSING)
    named = [
        NamedTool(type="function", function=FunctionOfName(name=it.name)) for it in choice.tools
    ]
    allowed = AllowedTools(mode=choice.mode, tools=named)
    return Choice(type="allowed_tools", allowed_tools=allowed)


def _format(text: TextFormat) -> ResponseFormat:
    if text.type != "json_schema":
        return ResponseFormat(type=text.type)
    if text.schema_ is None:
        raise wrong("text.format.schema", MISSING)
    schema = JsonSchema(name=text.name, schema=text.schema_, strict=text.strict)
    return ResponseFormat(type="json_schema", json_schema=schema)
