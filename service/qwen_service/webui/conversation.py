"""A conversation as the browser keeps it: asked on, undone, edited, and as messages of the API.

Knows neither HTTP nor how it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

TITLE_LENGTH = 40


@dataclass(frozen=True, slots=True)
class Turn:
    role: Literal["user", "assistant"]
    content: str
    reasoning: str = ""
    # Said by the page about an answer; no model ever sees it.
    note: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    id: str
    title: str = ""
    system: str = ""
    turns: tuple[Turn, ...] = ()

    def asked(self, question: str) -> Conversation:
        return self._said((*self.complete().turns, Turn("user", question)))

    def complete(self, note: str = "") -> Conversation:
        """Questions and answers take turns, also where an answer never came."""
        is_open = self.turns and self.turns[-1].role == "user"
        return self.answered(Turn("assistant", "", note=note)) if is_open else self

    def answered(self, answer: Turn) -> Conversation:
        return replace(self, turns=(*self.turns, answer))

    def unanswered(self) -> Conversation:
        """Without what came after the last question."""
        return replace(self, turns=self.turns[: self._last_question() + 1])

    def undone(self) -> tuple[Conversation, str]:
        """Without the last question, and that question."""
        last = self._last_question()
        if last < 0:
            return self, ""
        return self._said(self.turns[:last]), self.turns[last].content

    def edited(self, index: int, question: str) -> Conversation:
        """With another question in this place, and nothing after it."""
        return self._said((*self.turns[:index], Turn("user", question)))

    def _said(self, turns: tuple[Turn, ...]) -> Conversation:
        """The title goes with the first question, unless somebody gave another."""
        is_given = self.title and self.title != _title(self.turns)
        return replace(self, title=self.title if is_given else _title(turns), turns=turns)

    def _last_question(self) -> int:
        places = [place for place, turn in enumerate(self.turns) if turn.role == "user"]
        return places[-1] if places else -1

    def messages(self) -> list[dict[str, str]]:
        """Exactly what was said; answers that never came are left out."""
        system = [{"role": "system", "content": self.system}] if self.system.strip() else []
        said = [turn for turn in self.turns if turn.role == "user" or turn.content]
        return [*system, *({"role": turn.role, "content": turn.content} for turn in said)]

    def written(self) -> dict[str, Any]:
        return asdict(self)


def _title(turns: tuple[Turn, ...]) -> str:
    lines = turns[0].content.strip().splitlines() if turns else []
    return lines[0][:TITLE_LENGTH] if lines else ""


def parse(value: Any) -> Conversation:
    """Raises ValueError: a browser's storage may hold anything."""
    if not isinstance(value, Mapping):
        raise ValueError("a conversation should be an object")
    turns = value.get("turns", ())
    if not isinstance(turns, list | tuple):
        raise ValueError("turns should be a list")
    return Conversation(
        id=_text(value, "id"),
        title=_text(value, "title"),
        system=_text(value, "system"),
        turns=tuple(_turn(turn) for turn in turns),
    )


def _turn(value: Any) -> Turn:
    if not isinstance(value, Mapping) or value.get("role") not in ("user", "assistant"):
        raise ValueError("a turn should be the user's or the assistant's")
    fields = ("content", "reasoning", "note")
    return Turn(value["role"], *(_text(value, field) for field in fields))


def _text(value: Mapping[str, Any], field: str) -> str:
    text = value.get(field, "")
    if not isinstance(text, str):
        raise ValueError(f"{field} should be a text")
    return text
