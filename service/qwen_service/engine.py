"""What the service asks of an engine and what an engine answers: plain values and a protocol.

Knows neither HTTP and chat formats above nor torch below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length"]


class EngineError(Exception):
    """The engine could not go on with a request; the caller is not at fault."""


class Refused(EngineError):
    """The caller asked for something that cannot be."""

    def __init__(self, message: str, *, param: str, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class QueueFull(EngineError):
    """As many requests wait as may wait."""


class NotServing(EngineError):
    """The model is not loaded yet, or the engine takes no new requests any more."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens; None stands for what the model's own configuration says."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Chat:
    """A prompt that the model's own chat template turns into text."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer to be generated."""

    id: str
    prompt: Chat
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class Started:
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Piece:
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    reason: FinishReason
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    error: EngineError


# In this order: Started, any number of Piece, then Finished; or Failed in place of the rest.
Event = Started | Piece | Finished | Failed


@dataclass(frozen=True, slots=True)
class ModelFacts:
    device: str
    dtype: str
    context_tokens: int


@dataclass(frozen=True, slots=True)
class Loading:
    step: str


@dataclass(frozen=True, slots=True)
class Loaded:
    facts: ModelFacts


@dataclass(frozen=True, slots=True)
class Broken:
    """The engine cannot serve, and will not by itself."""

    reason: str


Report = Loading | Loaded | Broken


@dataclass(frozen=True, slots=True)
class Stats:
    running: int = 0
    waiting: int = 0
    tokens: int = 0
    # Grows at every step of real work, and while there is none: a stuck engine does not tick.
    ticks: int = 0
    memory_bytes: int | None = None


class Engine(Protocol):
    def start(self, report: Callable[[Report], None]) -> None:
        """Begins to load and returns at once; `report` is called from another thread."""

    def submit(self, generation: Generation, deliver: Callable[[Event], None]) -> None:
        """Queues a generation or raises; `deliver` is called from another thread."""

    def cancel(self, generation_id: str) -> None:
        """Frees the place of a generation at the next step; it gets no further event."""

    def drain(self) -> None:
        """Takes no new generations; those it has go on."""

    def stop(self) -> None:
        """Fails whatever is left and ends the engine."""

    def stats(self) -> Stats: ...
