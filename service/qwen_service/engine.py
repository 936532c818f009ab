"""What the service asks of an engine and what an engine answers: plain values and a protocol.

Knows neither HTTP and chat formats above nor torch below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length"]


class EngineError(Exception):
    """The engine could not go on with a request; the caller is not at fault."""


class Refused(EngineError):
    """The caller asked for something that cannot be."""

    def __init__(self, message: str, *, param: str, code: str = "invalid_value") -> None:
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
    # Token id and what is added to its logit, from -100 (never) to 100 (always).
    logit_bias: tuple[tuple[int, float], ...] = ()
    # How many of the likeliest tokens are told beside each one; None: no logprobs at all.
    logprobs: int | None = None
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the answer must be, kept by masking tokens: a JSON object, a JSON value that a schema
    describes, or a text of a grammar in llguidance's dialect of Lark."""

    kind: Literal["json_object", "json_schema", "lark"]
    # The schema as JSON, or the grammar; empty for json_object.
    text: str = ""
    # Whether the model may first think between <think> and </think>, where nothing is masked.
    may_think: bool = False
    # The field of the request that asks for it.
    param: str = "response_format"


@dataclass(frozen=True, slots=True)
class Chat:
    """A prompt that the model's own chat template turns into text."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    # Further variables of the template, enable_thinking among them.
    variables: Mapping[str, Any] = field(default_factory=dict)
    # The last message is the assistant's and goes on where it ends.
    continues: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt as it is; control tokens written in it are control tokens."""

    text: str


@dataclass(frozen=True, slots=True)
class Tokens:
    ids: tuple[int, ...]


Prompt = Chat | Text | Tokens


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer to be generated."""

    id: str
    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class Embedding:
    """One text to be embedded."""

    id: str
    prompt: Text | Tokens


@dataclass(frozen=True, slots=True)
class Started:
    prompt_tokens: int
    # What the prompt's end has opened already of the answer's text: "<think>", or nothing.
    opened: str = ""


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token, natural logarithm of its probability, and the likeliest ones in its place."""

    text: str
    bytes: bytes
    logprob: float
    top: tuple[Logprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    # One for each token that came with this piece, where logprobs were asked for.
    logprobs: tuple[Logprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    reason: FinishReason
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Embedded:
    vector: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    error: EngineError


# In this order: Started, any number of Piece, then Finished; or Failed in place of the rest. For an
# embedding: Started, then Embedded.
Event = Started | Piece | Finished | Embedded | Failed


@dataclass(frozen=True, slots=True)
class ModelFacts:
    device: str
    dtype: str
    context_tokens: int
    kind: Literal["chat", "embedding"] = "chat"
    # How the model was taught to call tools; None where it was not.
    tools: Literal["tool_call", "react"] | None = None
    # Whether its template knows <think>.
    thinks: bool = False
    # Tokens that the memory for keys and values has room for; all running requests share them.
    kv_tokens: int | None = None


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
    # Of the GPUs; None where the process's own memory says it all.
    memory_bytes: int | None = None
    # Tokens whose keys and values are held now.
    kv_tokens: int = 0


class Engine(Protocol):
    def start(self, report: Callable[[Report], None]) -> None:
        """Begins to load and returns at once; `report` is called from another thread."""

    def submit(self, generation: Generation | Embedding, deliver: Callable[[Event], None]) -> None:
        """Queues a generation or raises; `deliver` is called from another thread."""

    def cancel(self, generation_id: str) -> None:
        """Frees the place of a generation at the next step; it gets no further event."""

    def encode(self, prompt: Prompt) -> Sequence[int]:
        """Token ids of a prompt; may take long, callable from any thread. Raises EngineError."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, control tokens included. Raises EngineError."""

    def drain(self) -> None:
        """Takes no new generations; those it has go on."""

    def stop(self) -> None:
        """Fails whatever is left and ends the engine."""

    def stats(self) -> Stats: ...
