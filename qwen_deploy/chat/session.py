"""A conversation as a value: turns, system prompt, seed, settings, and the request they make.

Knows no command, no network and no terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from qwen_deploy.chat.settings import Value
from qwen_deploy.chat.words import Language

UNDO_STEPS = 100


class Ending(StrEnum):
    STOP = "stop"
    LENGTH = "stopped at max_tokens"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Turn:
    question: str
    answer: str
    ending: Ending = Ending.STOP
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Session:
    """`past` holds the turns as they were before each change of them, for undo.

    The seed is sent with every request. None is set unless one is given: a fixed default would
    make every retry repeat the same answer, and nobody would know why. `renders` and `language`
    are how things are shown, and go into no request.
    """

    turns: tuple[Turn, ...] = ()
    past: tuple[tuple[Turn, ...], ...] = ()
    system: str | None = None
    seed: int | None = None
    conf: Mapping[str, Value] = field(default_factory=dict)
    # None leaves it to the model's own template whether it thinks before it answers.
    thinks: bool | None = None
    renders: bool = True
    language: Language = "en"

    def with_turns(self, turns: tuple[Turn, ...]) -> Session:
        return replace(self, turns=turns, past=(*self.past, self.turns)[-UNDO_STEPS:])

    def undone(self) -> Session:
        return replace(self, turns=self.past[-1], past=self.past[:-1])

    def recorded(self, turn: Turn, *, again: bool) -> Session:
        """A turn asked again takes the place of the last one, unless nothing came of it."""
        if again and not turn.answer:
            return self
        return self.with_turns((*self._before(again), turn))

    def request(self, model: str, question: str, *, again: bool) -> dict[str, object]:
        payload: dict[str, object] = {
            "model": model,
            "messages": self._messages(question, again),
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.conf,
        }
        if self.seed is not None:
            payload["seed"] = self.seed
        if self.thinks is not None:
            payload["chat_template_kwargs"] = {"enable_thinking": self.thinks}
        return payload

    def _before(self, again: bool) -> tuple[Turn, ...]:
        return self.turns[:-1] if again else self.turns

    def _messages(self, question: str, again: bool) -> list[dict[str, str]]:
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self._before(again):
            # A question that got no word of an answer would be two user messages in a row.
            if turn.answer:
                messages.append({"role": "user", "content": turn.question})
                messages.append({"role": "assistant", "content": turn.answer})
        return [*messages, {"role": "user", "content": question}]


def history(session: Session, columns: int) -> str:
    lines = [f" History ({len(session.turns)}) ".center(columns, "=")]
    if session.system:
        lines.append(f"System: {session.system}")
    for number, turn in enumerate(session.turns, 1):
        lines.append(f"User[{number}]: {turn.question}")
        mark = "" if turn.ending is Ending.STOP else f"({turn.ending})"
        lines.append(f"Qwen[{number}]: {' '.join(filter(None, (turn.answer, mark)))}")
    return "\n".join([*lines, "=" * columns])
