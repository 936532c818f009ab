"""Functions as callers describe them, today's tools and the older functions, and which to call.

Knows nothing of how a model is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from qwen_service.formats.tools import Tool
from qwen_service.protocol.base import (
    MISSING,
    FunctionName,
    Json,
    Listed,
    Strict,
    Words,
    wrong,
)


class FunctionTool(Strict):
    name: FunctionName
    description: Words | None = None
    parameters: Json | None = None
    strict: bool | None = None

    def tool(self) -> Tool:
        return Tool(self.name, self.description or "", _schema(self.parameters), bool(self.strict))


class ToolField(Strict):
    type: Literal["function"]
    function: FunctionTool


class LegacyFunction(Strict):
    """The original demo's callers may name a function twice, for the model and for people."""

    name: FunctionName | None = None
    name_for_model: FunctionName | None = None
    name_for_human: Words | None = None
    description: Words | None = None
    description_for_model: Words | None = None
    parameters: Json | None = None

    def tool(self, path: str) -> Tool:
        name = self.name_for_model or self.name
        if name is None:
            raise wrong(f"{path}.name", MISSING)
        described = self.description_for_model or self.description or ""
        human = self.name_for_human or self.name or name
        return Tool(name, described, _schema(self.parameters), human_name=human)


class FunctionOfName(Strict):
    name: FunctionName


class NamedTool(Strict):
    type: Literal["function"]
    function: FunctionOfName


class AllowedTools(Strict):
    mode: Literal["auto", "required"]
    tools: Listed[NamedTool] = Field(min_length=1)


class Choice(Strict):
    """One function by its name, or some of those that are offered."""

    type: Literal["function", "allowed_tools"]
    function: FunctionOfName | None = None
    allowed_tools: AllowedTools | None = None


Mode = Literal["none", "auto", "required"]


@dataclass(frozen=True, slots=True)
class Offer:
    """What the model may call in this answer, and whether it has to."""

    tools: tuple[Tool, ...] = ()
    is_required: bool = False
    parallel: bool = True
    # Answers speak of function_call and not of tool_calls.
    is_legacy: bool = False

    @property
    def param(self) -> str:
        return "functions" if self.is_legacy else "tools"

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.name for tool in self.tools)


def offer(
    tools: Sequence[Tool], choice: Mode | Choice | None, *, parallel: bool, param: str
) -> Offer:
    if not tools:
        if choice not in (None, "none", "auto"):
            raise wrong(param, "should be given with tools only")
        return Offer()
    if len({tool.name for tool in tools}) < len(tools):
        raise wrong("functions" if param == "function_call" else "tools", "names should differ")
    if choice == "none":
        return Offer()
    wanted, is_required = _wanted(choice, param)
    if missing := wanted - {tool.name for tool in tools}:
        raise wrong(param, f"there is no function {min(missing)}")
    chosen = tuple(tool for tool in tools if not wanted or tool.name in wanted)
    return Offer(chosen, is_required, parallel)


def _wanted(choice: Mode | Choice | None, param: str) -> tuple[set[str], bool]:
    """The names that are left of all (none: all of them), and whether one has to be called."""
    if not isinstance(choice, Choice):
        return set(), choice == "required"
    if choice.type == "function":
        if choice.function is None:
            raise wrong(f"{param}.function", MISSING)
        return {choice.function.name}, True
    allowed = choice.allowed_tools
    if allowed is None:
        raise wrong(f"{param}.allowed_tools", MISSING)
    return {tool.function.name for tool in allowed.tools}, allowed.mode == "required"


def _schema(parameters: Json | None) -> Json:
    return parameters or {"type": "object", "properties": {}}


def check_schemas(tools: Sequence[Tool], path: str) -> None:
    for index, tool in enumerate(tools):
        if tool.parameters.get("type", "object") != "object":
            where = f"{path}[{index}].function" if path == "tools" else f"{path}[{index}]"
            raise wrong(f"{where}.parameters.type", "should be object")
