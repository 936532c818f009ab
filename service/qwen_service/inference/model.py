"""What the inference thread asks of a model: rows of tokens that grow, as values and a protocol.

Knows neither threads and queues above nor torch below.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qwen_service.engine import EngineError, Logprob, ModelFacts, Prompt, Sampling


class StepFailed(Exception):
    """A step of the model broke; these rows are lost, the model is fit for the next step."""

    def __init__(self, keys: Sequence[str], reason: str) -> None:
        super().__init__(reason)
        self.keys = keys


@dataclass(frozen=True, slots=True)
class ReadPrompt:
    tokens: Sequence[int]
    # What the prompt's end has opened of the answer's text: "<think>", or nothing.
    opened: str = ""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The next token of a row; None where its numbers made no sense any more."""

    key: str
    token: int | None
    logprob: Logprob | None = None
    # The answer is whole with this token, as its constraint says.
    is_last: bool = False
    # Why the row cannot go on, where it is the caller's doing.
    refusal: EngineError | None = None


@dataclass(frozen=True, slots=True)
class Vector:
    """A row of an embedding model, read to its end."""

    key: str
    values: tuple[float, ...]


class Model(Protocol):
    """Rows come and go between steps; a model of embeddings only reads them."""

    @property
    def facts(self) -> ModelFacts: ...

    @property
    def ends(self) -> Collection[int]: ...

    def encode(self, prompt: Prompt) -> ReadPrompt:
        """Safe beside all other calls, as the next three; raises `Refused`."""

    def encode_input(self, prompt: Prompt) -> ReadPrompt:
        """A text to be embedded, with the tokens its model wants around it."""

    def sampler(self, sampling: Sampling, prompt: ReadPrompt) -> Any:
        """All that chooses one answer's tokens: it outlives its row. Raises `Refused`."""

    def decode(self, tokens: Sequence[int], *, with_control: bool = False) -> str: ...

    def has_room(self, length: int) -> bool:
        """Whether a row of so many tokens may join, with some space to grow."""

    def fits(self) -> bool:
        """Whether the memory holds one token more for every row."""

    def add(self, key: str, tokens: Sequence[int], sampler: Any) -> None: ...

    def remove(self, key: str) -> None: ...

    def extend(self) -> Sequence[Chosen]:
        """One token more for every row that has begun; raises `StepFailed`."""

    def extend_alone(self) -> Sequence[Chosen]:
        """The same for the next of the rows that go by themselves, one a call, in turns."""

    def prefill(self) -> Sequence[Chosen | Vector]:
        """A bounded part of the rows that have not; raises `StepFailed`."""

    def kv_tokens(self) -> int: ...

    def memory_bytes(self) -> int | None: ...
