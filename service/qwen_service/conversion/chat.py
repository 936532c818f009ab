"""A request for a chat completion -> generations, and how to read what they say.

Knows neither status codes nor threads nor tokenizers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen_service.conversion import generation, messages
from qwen_service.engine import Chat, Constraint, Generation, ModelFacts
from qwen_service.formats import grammar, react, react_prompt, think, tool_calls
from qwen_service.formats.parts import Reader
from qwen_service.protocol.base import MISSING, wrong
from qwen_service.protocol.chat import ChatRequest
from qwen_service.protocol.tools import Offer
from qwen_service.settings import Settings


@dataclass(frozen=True, slots=True)
class Reading:
    """How the text of an answer is to be read."""

    offer: Offer = field(default_factory=Offer)
    form: str | None = None
    thinks: bool = False
    continues: bool = False

    def reader(self, opened: str) -> Reader | None:
        """One for each choice; None where the text is the answer."""
        calls: Reader | None = None
        if self.offer.tools and self.form == "react":
            calls = react.ReactReader(self.offer.names, continues=self.continues)
        elif self.offer.tools:
            calls = tool_calls.ToolCallReader(self.offer.names)
        if self.thinks or opened:
            return think.ThinkReader(is_open=opened.startswith(think.OPEN), answer=calls)
        return calls


@dataclass(frozen=True, slots=True)
class Plan:
    generations: tuple[Generation, ...]
    choices: int
    reading: Reading
    ignored: tuple[str, ...]


def plan(request: ChatRequest, settings: Settings, facts: ModelFacts, id: str) -> Plan:
    ignored = request.ignored()
    offer = request.offer()
    if offer.tools and facts.tools is None:
        raise wrong(offer.param, "the model was not taught to call tools")
    variables, may_think, unheard = _thinking(request, facts)
    prompt = _prompt(request, offer, facts, variables)
    is_react = facts.tools == "react"
    continues = is_react and prompt.continues
    choices = generation.choices(request, settings)
    sampling = generation.sampling(
        request,
        settings,
        max_tokens=request.max_completion_tokens or request.max_tokens,
        logprobs=request.logprobs_count(),
        constraint=_constraint(request, offer, facts, may_think=may_think, continues=continues),
        stops=_stops(offer, is_react=is_react),
    )
    reading = Reading(offer, facts.tools, facts.thinks and not prompt.continues, continues)
    answers = generation.generations(id, (prompt,), sampling, choices)
    return Plan(answers, choices, reading, ignored + unheard)


def _thinking(
    request: ChatRequest, facts: ModelFacts
) -> tuple[Mapping[str, Any], bool, tuple[str, ...]]:
    """Variables for the template, whether thoughts may come, and what has no effect."""
    wish = request.thinking()
    if wish is None:
        return {}, facts.thinks, ()
    name, is_wanted = wish
    if not facts.thinks:
        if is_wanted:
            raise wrong(name, "the model was not taught to think before it answers")
        return {}, False, ()
    # How much the model thinks is its own affair.
    unheard = (name,) if name == "reasoning_effort" and is_wanted else ()
    return {"enable_thinking": is_wanted}, is_wanted, unheard


def _prompt(
    request: ChatRequest, offer: Offer, facts: ModelFacts, variables: Mapping[str, Any]
) -> Chat:
    rendered = messages.for_template(request.messages)
    continues = request.continues()
    if facts.tools == "react":
        if continues and offer.tools:
            raise wrong("continue_final_message", "should not be given beside functions")
        written = react_prompt.write(rendered, offer.tools)
        return Chat(written.messages, (), variables, continues or written.continues)
    tools = tuple(tool.for_template() for tool in offer.tools)
    return Chat(rendered, tools, variables, continues)


def _stops(offer: Offer, *, is_react: bool) -> tuple[str, ...]:
    if not offer.tools:
        return ()
    if is_react:
        return (react_prompt.STOP,)
    # After one call the answer is over.
    return () if offer.parallel else (tool_calls.CLOSE,)


def _constraint(
    request: ChatRequest, offer: Offer, facts: ModelFacts, *, may_think: bool, continues: bool
) -> Constraint | None:
    wanted = _schema(request)
    if not offer.tools:
        if wanted is None:
            return None
        if wanted == {"type": "object"}:
            return Constraint("json_object", may_think=may_think)
        return Constraint("json_schema", json.dumps(wanted), may_think)
    is_strict = any(tool.strict for tool in offer.tools)
    if not (offer.is_required or is_strict or wanted is not None):
        return None
    if facts.tools != "react":
        text = grammar.tool_calls(
            offer.tools, is_required=offer.is_required, parallel=offer.parallel, otherwise=wanted
        )
    elif offer.is_required:
        text = grammar.react(offer.tools, continues=continues)
    else:
        name = offer.param if is_strict else "response_format"
        raise wrong(name, "this model cannot keep to a schema where it may also call a function")
    return Constraint("lark", text, may_think, offer.param)


def _schema(request: ChatRequest) -> Mapping[str, Any] | None:
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.json_schema is None:
        raise wrong("response_format.json_schema", MISSING)
    return wanted.json_schema.schema_ or {"type": "object"}
