"""Tokens of one answer -> exact text: whole characters only, stop strings cut away.

Knows no tokenizer and no model; a function that decodes is given to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence

from qwen_service.engine import Event, Finished, Logprob, Piece
from qwen_service.inference.model import Chosen

Decode = Callable[[Sequence[int]], str]
INCOMPLETE = "\ufffd"
# More tokens than any character has bytes: beyond, the bytes are no text and never will be.
LONGEST_CHARACTER_TOKENS = 16


class Detokenizer:
    """Gives the text of each token as soon as no later token can change it.

    What it still holds when no further token comes are bytes of a character that never ended, and
    no text.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []
        # Decoding starts one settled piece back, for decoders that look at their left side.
        self._context = 0
        self._given = ""
        self._held = False

    def add(self, token: int) -> str:
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(INCOMPLETE) and len(self._ids) - self._context <= LONGEST_CHARACTER_TOKENS:
            # At most the last character can still change: bytes of it may be missing.
            self._held = True
            text = text[:-1]
            piece = text[len(self._given) :]
            self._given += piece
            return piece
        self._held = False
        piece = text[len(self._given) :]
        self._ids = self._ids[self._context :]
        self._context = len(self._ids)
        self._given = self._decode(self._ids)
        return piece

    @property
    def holds(self) -> bool:
        """Whether the last token ended within a character."""
        return self._held


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
        self._logprobs = HeldLogprobs()
        self._ends = ends
        self._limit = limit
        self.tokens = 0

    def accept(self, choice: Chosen) -> Iterator[Event]:
        assert choice.token is not None
        self.tokens += 1
        ended = choice.token in self._ends
        new = "" if ended else self._detokenizer.add(choice.token)
        if choice.logprob is not None and not ended:
            self._logprobs.hold(choice.logprob, new, is_whole=not self._detokenizer.holds)
        text, stopped = self._matcher.feed(new)
        over = ended or choice.is_last or self.tokens >= self._limit
        if over and not stopped:
            text += self._matcher.rest()
        logprobs = self._logprobs.release(text, is_cut=stopped, is_over=over)
        if text or logprobs:
            yield Piece(text, logprobs)
        if stopped or over:
            is_whole = stopped or ended or choice.is_last
            yield Finished("stop" if is_whole else "length", self.tokens)


class HeldLogprobs:
    """Keeps what is told of tokens until their text is certain, and drops what was cut away."""

    def __init__(self) -> None:
        # Each with the places where its token's text begins and ends in the answer's.
        self._held: deque[tuple[int, int, Logprob]] = deque()
        self._read = 0
        self._given = 0

    def hold(self, logprob: Logprob, text: str, *, is_whole: bool) -> None:
        begin = self._read
        self._read += len(text)
        # A token within an unfinished character waits for the character.
        self._held.append((begin, self._read + (0 if is_whole else 1), logprob))

    def release(self, text: str, *, is_cut: bool, is_over: bool) -> tuple[Logprob, ...]:
        self._given += len(text)
        told = []
        while self._held:
            begin, end, logprob = self._held[0]
            if end > self._given and not is_cut and not is_over:
                break
            self._held.popleft()
            if not is_cut or begin < self._given:
                told.append(logprob)
        return tuple(told)
