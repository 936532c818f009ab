"""What all answers and chunks of one request say alike, and what they cost.

Knows no route.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


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
