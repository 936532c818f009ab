"""Where bytes come from: the protocols that every source obeys. Knows no particular source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from qwen_weights.manifest import Artifact


class Interruption(Exception):
    """The source failed in a way that may pass: it is asked again after a pause. `is_answer` says
    that it was reached and spoke."""

    def __init__(
        self, message: str, *, retry_after: float | None = None, is_answer: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.is_answer = is_answer


class Stubborn(Interruption):
    """It may pass, but hardly: a few tries are enough."""


class TooSlow(Interruption):
    """It sends, but too little to be of use."""


@dataclass(frozen=True)
class Patience:
    """How long one connection may be silent, or slower than is of any use."""

    stall_seconds: float = 20
    slow_bytes: int = 1024  # a second
    slow_seconds: float = 30


class ByteStream(Protocol):
    """The bytes of a file from `offset` on, which a source that cannot begin where it was asked
    puts before that. `total` is the size of the whole file where the source says it."""

    @property
    def offset(self) -> int: ...

    @property
    def total(self) -> int | None: ...

    def readinto(self, buffer: memoryview) -> int:
        """Fills the start of the buffer as soon as there is anything; 0 at the end, or when cut
        off."""
        ...

    def close(self) -> None: ...


class Source(Protocol):
    """Raises a WeightsError for what stays so, and Interruption for the rest."""

    name: str
    is_wan: bool

    def offers(self, artifact: Artifact) -> bool: ...

    def open(self, artifact: Artifact, offset: int, end: int | None = None) -> ByteStream: ...

    def close(self) -> None:
        """Ends every stream at once, also one that another thread is reading."""
        ...
