"""Tokens of one answer -> exact text: whole characters only, stop strings cut away.

Knows no tokenizer and no model; a function that decodes is given to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from qwen_service.engine import Event, Finished, Piece

Decode = Callable[[Sequence[int]], str]
INCOMPLETE = "\ufffd"
# More tokens than any character has bytes: beyond, the bytes are no text and never will be.
LONGEST_CHARACTER_TOKENS = 16


class Detokenizer:
    """Gives the text of each token as soon as no later token can change it."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []
        # Decoding starts one settled piece back, for decoders that look at their left side.
        self._context = 0
        self._given = ""

    def add(self, token: int) -> str:
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(INCOMPLETE) and len(self._ids) - self._context <= LONGEST_CHARACTER_TOKENS:
            # At most the last character can still change: bytes of it may be missing.
            text = text[:-1]
            piece = text[len(self._given) :]
            self._given += piece
            return piece
        piece = text[len(self._given) :]
        self._ids = self._ids[self._context :]
        self._context = len(self._ids)
        self._given = self._decode(self._ids)
        return piece

    def rest(self) -> str:
        """What is left when no further token comes: at most an unfinished character."""
        return self._decode(self._ids)[len(self._given) :]


class StopMatcher:
    """Passes text on until a stop string begins in it, whatever pieces it comes in."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """The text that is certain by now, and whether a stop string was met."""
        text = self._held + text
        found = [index for stop in self._stops if (index := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def rest(self) -> str:
        """What was held back; empty once a stop string was met."""
        return self._held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class Answer:
    """Turns the tokens of one generation into its events."""

    def __init__(
        self, decode: Decode, *, ends: Collection[int], stops: Sequence[str], limit: int
    ) -> None:
        self._detokenizer = Detokenizer(decode)
        self._matcher = StopMatcher(stops)
        self._ends = ends
        self._limit = limit
        self.tokens = 0

    def accept(self, token: int) -> Iterator[Event]:
        self.tokens += 1
        ended = token in self._ends
        text, stopped = self._matcher.feed("" if ended else self._detokenizer.add(token))
        over = ended or self.tokens >= self._limit
        if over and not stopped:
            last, stopped = self._matcher.feed(self._detokenizer.rest())
            text += last + self._matcher.rest()
        if text:
            yield Piece(text)
        if stopped or over:
            yield Finished("stop" if stopped or ended else "length", self.tokens)
