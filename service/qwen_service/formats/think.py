"""Parts the thoughts of a model, which it writes between <think> and </think>, from its answer.

Knows nothing of what the answer holds.
"""

from __future__ import annotations

from typing import Literal

from qwen_service.formats.parts import Part, Reader, Said, Thought, overlap

OPEN, CLOSE = "<think>", "</think>"


class ThinkReader:
    """Thoughts come first or not at all; a tag further on is a word like any other."""

    def __init__(self, *, is_open: bool, answer: Reader | None = None) -> None:
        self._state: Literal["start", "thinking", "between", "answering"] = (
            "thinking" if is_open else "start"
        )
        # Newlines after <think> and around </think> belong to the tags.
        self._is_first = True
        self._answer = answer
        self._held = ""

    @property
    def has_called(self) -> bool:
        return self._answer is not None and self._answer.has_called

    def feed(self, text: str) -> list[Part]:
        if self._state == "answering":
            return self._say(text)
        text = self._held + text
        self._held = ""
        match self._state:
            case "start":
                return self._begin(text)
            case "thinking":
                return self._think(text)
            case _:
                return self._begin_answer(text)

    def end(self) -> list[Part]:
        parts: list[Part] = []
        if self._state == "thinking" and (thought := self._held.rstrip("\n")):
            parts.append(Thought(thought))
        elif self._state == "start" and self._held:
            parts += self._say(self._held)
        self._held = ""
        return parts + (self._answer.end() if self._answer else [])

    def _begin(self, text: str) -> list[Part]:
        bare = text.lstrip()
        if bare.startswith(OPEN):
            self._state = "thinking"
            return self.feed(bare[len(OPEN) :])
        if OPEN.startswith(bare):
            self._held = text
            return []
        self._state = "answering"
        return self._say(text)

    def _think(self, text: str) -> list[Part]:
        if self._is_first:
            text = text.lstrip("\n")
        thought, close, rest = text.partition(CLOSE)
        if not close:
            certain = text[: len(text) - overlap(text, (CLOSE,))].rstrip("\n")
            self._held = text[len(certain) :]
            thought = certain
        else:
            thought = thought.rstrip("\n")
            self._state = "between"
        parts: list[Part] = [Thought(thought)] if thought else []
        self._is_first = self._is_first and not thought
        return parts + (self._begin_answer(rest) if close else [])

    def _begin_answer(self, text: str) -> list[Part]:
        text = text.lstrip("\n")
        if not text:
            return []
        self._state = "answering"
        return self._say(text)

    def _say(self, text: str) -> list[Part]:
        return self._answer.feed(text) if self._answer else [Said(text)]
