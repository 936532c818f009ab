"""ReAct, the form in which the first generation was taught to use tools: what it is asked.

The words of the prompt are those of the original demo; the model was trained on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_service.errors import ApiError
from qwen_service.formats.arguments import written
from qwen_service.formats.tools import Tool

# Here the model would go on with what it thinks the tool answers.
STOP = "Observation:"
THOUGHT = "Thought:"

TOOL = (
    "{name}: Call this tool to interact with the {human} API."
    " What is the {human} API useful for? {description} Parameters: {parameters}"
)
INSTRUCTION = """\
Answer the following questions as best you can. You have access to the following APIs:

{tools}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!"""


@dataclass(frozen=True, slots=True)
class Written:
    """Messages with the tools written into them; whether the last of them goes on."""

    messages: tuple[Mapping[str, Any], ...]
    continues: bool


def write(messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> Written:
    turns: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        _add(turns, message, f"messages[{index}]", has_tools=bool(tools))
    is_result = messages[-1]["role"] == "tool"
    if is_result:
        turns[-1]["content"] += f"\n{THOUGHT}"
    asked = [turn for turn in turns if turn["role"] == "user"]
    if tools:
        if not asked:
            reason = "messages: tools need at least one message of the user"
            raise ApiError(400, reason, param="messages", code="invalid_value")
        asked[-1]["content"] = f"{instruction(tools)}\n\nQuestion: {asked[-1]['content']}"
    return Written(tuple(turns), is_result)


def instruction(tools: Sequence[Tool]) -> str:
    described = (
        TOOL.format(
            name=tool.name,
            human=tool.human_name,
            description=tool.description,
            parameters=written(tool.parameters),
        )
        for tool in tools
    )
    names = ", ".join(tool.name for tool in tools)
    return INSTRUCTION.format(tools="\n\n".join(described), names=names)


def _add(
    turns: list[dict[str, Any]], message: Mapping[str, Any], path: str, *, has_tools: bool
) -> None:
    role, content = message["role"], message["content"].lstrip("\n").rstrip()
    if role not in ("assistant", "tool"):
        turns.append({"role": role, "content": content})
        return
    if role == "tool":
        if not turns or turns[-1]["role"] != "assistant":
            reason = f"{path}.role: the result of a tool should follow a call of the assistant"
            raise ApiError(400, reason, param=f"{path}.role", code="invalid_value")
        content = f"{STOP} {content}"
    elif calls := message.get("tool_calls"):
        content = _called(content, calls)
    elif has_tools:
        content = f"{THOUGHT} I now know the final answer.\nFinal Answer: {content}"
    if turns and turns[-1]["role"] == "assistant":
        turns[-1]["content"] += f"\n{content}"
    else:
        turns.append({"role": "assistant", "content": content})


def _called(content: str, calls: Sequence[Mapping[str, Any]]) -> str:
    if not content.startswith(THOUGHT):
        content = f"{THOUGHT} {content}"
    for call in calls:
        function = call["function"]
        arguments = written(function["arguments"])
        content += f"\nAction: {function['name']}\nAction Input: {arguments}"
    return content
