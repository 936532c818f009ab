"""One request from its submission to its last event: what it needs to begin, or why it may not.

Knows neither the queue nor the batch it stands in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qwen_service.engine import (
    Chat,
    Embedding,
    Event,
    Generation,
    ModelFacts,
    Refused,
    Started,
)
from qwen_service.inference.answer import Answer
from qwen_service.inference.model import Model


@dataclass(slots=True, eq=False)
class Request:
    wish: Generation | Embedding
    deliver: Callable[[Event], None]
    # Of its submission: the greater, the younger.
    number: int
    # The prompt and what was answered so far: all that is needed to begin anew elsewhere.
    tokens: list[int] = field(default_factory=list)
    answer: Answer | None = None
    sampler: Any = None
    is_cancelled: bool = False

    @property
    def id(self) -> str:
        return self.wish.id

    @property
    def is_slow_to_read(self) -> bool:
        """A grammar may take a second to compile, and must not hold up others' prompts."""
        return isinstance(self.wish, Generation) and self.wish.sampling.constraint is not None

    def tell(self, event: Event) -> None:
        if not self.is_cancelled:
            self.deliver(event)


def prepare(request: Request, model: Model, max_tokens_default: int | None) -> None:
    """Reads the prompt and what is asked of the answer; raises `Refused`."""
    wish = request.wish
    if isinstance(wish, Embedding):
        _prepare_embedding(request, wish, model)
    else:
        _prepare_generation(request, wish, model, max_tokens_default)


def _prepare_embedding(request: Request, wish: Embedding, model: Model) -> None:
    if model.facts.kind != "embedding":
        raise Refused(
            "this model chats and makes no embeddings", param="model", code="not_an_embedding_model"
        )
    request.tokens = list(model.encode_input(wish.prompt).tokens)
    length = len(request.tokens)
    if length > _room(model.facts):
        raise _too_long(model.facts, f"the input has {length} tokens", "input")
    request.tell(Started(length))


def _prepare_generation(
    request: Request, wish: Generation, model: Model, max_tokens_default: int | None
) -> None:
    param = "messages" if isinstance(wish.prompt, Chat) else "prompt"
    if model.facts.kind != "chat":
        raise Refused(
            "this model makes embeddings and writes no text", param="model", code="not_a_chat_model"
        )
    prompt = model.encode(wish.prompt)
    length = len(prompt.tokens)
    left = _room(model.facts) - length
    wanted = wish.sampling.max_tokens
    if wanted is None:
        wanted = min(max_tokens_default or left, left)
    wanted = max(wanted, 1)
    if left < wanted:
        asked = f"you requested {length + wanted} tokens ({length} in the {param}, {wanted} in the "
        raise _too_long(model.facts, f"{asked}completion)", param)
    request.sampler = model.sampler(wish.sampling, prompt)
    request.tokens = list(prompt.tokens)
    request.answer = Answer(model.decode, ends=model.ends, stops=wish.sampling.stop, limit=wanted)
    request.tell(Started(length, prompt.opened))


def _room(facts: ModelFacts) -> int:
    kv_tokens = facts.context_tokens if facts.kv_tokens is None else facts.kv_tokens
    return min(facts.context_tokens, kv_tokens)


def _too_long(facts: ModelFacts, asked: str, param: str) -> Refused:
    limit = f"This model's maximum context length is {facts.context_tokens} tokens"
    if _room(facts) < facts.context_tokens:
        limit += f", and the memory for keys and values has room for {facts.kv_tokens}"
    return Refused(
        f"{limit}. However, {asked}. Please reduce the length of the {param}"
        f"{'.' if param == 'input' else ' or completion.'}",
        param=param,
        code="context_length_exceeded",
    )
