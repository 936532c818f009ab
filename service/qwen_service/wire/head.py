"""What all answers and chunks of one request say alike, and what they cost.

Knows no route.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qwen_service.errors import ApiError
from qwen_service.wire.events import DONE, event


@dataclass(frozen=True, slots=True)
class Head:
    id: str
    created: int
    model: str
    release: str

    def render(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.release,
        }


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def render(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class Choice(Protocol):
    def render(self, *, with_logprobs: bool) -> dict[str, Any]: ...


def completion(
    head: Head, kind: str, choices: Sequence[Choice], usage: Usage, *, with_logprobs: bool
) -> dict[str, Any]:
    """A whole answer of that kind."""
    rendered = head.render(kind)
    rendered["choices"] = [choice.render(with_logprobs=with_logprobs) for choice in choices]
    rendered["usage"] = usage.render()
    return rendered


class Stream:
    """What is around the choices of a stream's chunks, and behind the last of them."""

    def __init__(self, head: Head, kind: str, *, with_usage: bool) -> None:
        self._head = head.render(kind)
        # Clients that ask for usage find the field in every chunk.
        self._usage: dict[str, Any] = {"usage": None} if with_usage else {}

    def chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "choices": [choice], **self._usage}

    def end(self, usage: Usage) -> str:
        if not self._usage:
            return DONE
        return event({**self._head, "choices": [], "usage": usage.render()}) + DONE

    def failure(self, error: ApiError) -> str:
        return event(error.envelope())
