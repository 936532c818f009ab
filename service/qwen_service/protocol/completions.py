"""A request for a text completion.

Knows nothing of tokenizers.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from qwen_service.engine import Prompt, Text, Tokens
from qwen_service.protocol.base import Listed, Words, not_supported, wrong
from qwen_service.protocol.sampling import SamplingFields

# What OpenAI's API says where the caller does not.
MAX_TOKENS = 16
MOST_PROMPTS = 64
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenIds = Annotated[Listed[TokenId], Field(min_length=1)]


class CompletionRequest(SamplingFields):
    prompt: (
        Words
        | TokenIds
        | Annotated[Listed[Words], Field(min_length=1, max_length=MOST_PROMPTS)]
        | Annotated[Listed[TokenIds], Field(min_length=1, max_length=MOST_PROMPTS)]
    )
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: int | None = Field(None, ge=1)
    suffix: Words | None = None

    def check(self) -> None:
        if self.best_of not in (None, 1):
            raise not_supported("best_of")
        if self.suffix:
            raise not_supported("suffix")
        if self.echo and self.logprobs is not None:
            raise wrong("echo", "cannot be given beside logprobs: those of prompts are not known")


class NamelessCompletionRequest(CompletionRequest):
    """Older clients name the model in the path."""

    model: str | None = None  # type: ignore[assignment]


def prompts(given: str | list[int] | list[str] | list[list[int]]) -> tuple[Prompt, ...]:
    if isinstance(given, str):
        return (Text(given),)
    if isinstance(given[0], int):
        return (Tokens(tuple(given)),)
    return tuple(
        Text(it) if isinstance(it, str) else Tokens(tuple(it))
        for it in given
        if not isinstance(it, int)
    )
