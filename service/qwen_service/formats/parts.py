"""What an answer consists of once its text is read, and what reads it.

Knows neither how models write it nor how it is sent.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Said:
    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    text: str


@dataclass(frozen=True, slots=True)
class CallBegan:
    """A function is called; its arguments follow."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A part of the JSON text of a call's arguments."""

    index: int
    text: str


Part = Said | Thought | CallBegan | CallArguments


class Reader(Protocol):
    """Text in pieces of any size -> parts, as soon as nothing can change them any more."""

    @property
    def has_called(self) -> bool:
        """Whether functions were called, and the last call was not cut off."""

    def feed(self, text: str) -> list[Part]: ...

    def end(self) -> list[Part]:
        """What was held back when no further text comes."""


def began(index: int, name: str) -> CallBegan:
    return CallBegan(index, f"call_{secrets.token_hex(12)}", name)


def overlap(text: str, marks: Sequence[str]) -> int:
    """How many characters at the end of the text are a beginning of one of the marks."""
    for length in range(min(len(text), max(map(len, marks)) - 1), 0, -1):
        end = text[-length:]
        if any(mark.startswith(end) and mark != end for mark in marks):
            return length
    return 0
