"""An answer while it comes: its text, how it ended and how fast. Knows no turn and no stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field

from qwen_deploy.chat.client import AnswerFailed, Piece, Service
from qwen_deploy.chat.session import Ending

Clock = Callable[[], float]
SHORTEST_SECONDS = 0.5


@dataclass(slots=True)
class Answer:
    parts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    ending: Ending = Ending.STOP
    failure: AnswerFailed | None = None
    finish_reason: str | None = None
    tokens: int | None = None
    prompt_tokens: int | None = None
    asked_at: float = 0.0
    first_at: float | None = None
    last_at: float = 0.0
    ended_at: float = 0.0

    @property
    def text(self) -> str:
        return "".join(self.parts)

    @property
    def reasoning(self) -> str:
        return "".join(self.thoughts)

    def add(self, piece: Piece, now: float) -> None:
        if piece.text or piece.reasoning:
            self.parts.append(piece.text)
            self.thoughts.append(piece.reasoning)
            self.first_at = now if self.first_at is None else self.first_at
            self.last_at = now
        self.finish_reason = piece.finish_reason or self.finish_reason
        if piece.finish_reason == "length":
            self.ending = Ending.LENGTH
        self.tokens = piece.tokens if piece.tokens is not None else self.tokens
        if piece.prompt_tokens is not None:
            self.prompt_tokens = piece.prompt_tokens

    def speed(self) -> str:
        """Empty if nothing came. Tokens are the service's own count, never guessed from pieces."""
        if self.first_at is None:
            return ""
        said = [f"{self.first_at - self.asked_at:.2f} s to the first token"]
        if rate := self.tokens_per_second():
            said.append(f"{rate:.1f} tokens/s")
        if self.tokens:
            said.append(f"{self.tokens} tokens")
        return ", ".join(said)

    def tokens_per_second(self) -> float | None:
        """Of the tokens after the first one, whose time is another figure. None for an answer so
        short that how its last packets were gathered on the way decides."""
        seconds = self.last_at - (self.first_at or self.last_at)
        return (self.tokens - 1) / seconds if self.tokens and seconds >= SHORTEST_SECONDS else None


def receive(
    service: Service, payload: Mapping[str, object], show: Callable[[Piece], None], *, clock: Clock
) -> Answer:
    """The answer, each piece shown as it comes. Ctrl-C and failures end it; neither loses text."""
    answer = Answer(asked_at=clock())
    try:
        with closing(service.stream(payload)) as pieces:
            for piece in pieces:
                answer.add(piece, clock())
                show(piece)
    except KeyboardInterrupt:
        answer.ending = Ending.INTERRUPTED
    except AnswerFailed as exc:
        answer.ending, answer.failure = Ending.FAILED, exc
    answer.ended_at = clock()
    return answer
