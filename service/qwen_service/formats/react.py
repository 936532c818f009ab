"""ReAct, the form in which the first generation was taught to use tools: what it answers.

Knows nothing of the prompt. As in the original, a thought is told with the call that it leads to,
and dropped where it leads to the final answer.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from qwen_service.formats.arguments import ObjectEnd
from qwen_service.formats.parts import CallArguments, Part, Said, began, overlap

THOUGHT = "Thought:"
ACTION, INPUT, FINAL = "\nAction:", "\nAction Input:", "\nFinal Answer:"


State = Literal["start", "thought", "text", "answer", "words", "input", "end", "cut"]


class ReactReader:
    def __init__(self, names: Collection[str], *, continues: bool = False) -> None:
        self._names = names
        # Where a result was told, the prompt has begun the thought already.
        self._state: State = "thought" if continues else "start"
        self._held = ""
        self._object = ObjectEnd()

    @property
    def has_called(self) -> bool:
        # Of words instead of an object nobody knows where they end.
        return self._state == "end" or (self._state == "input" and self._object.is_new)

    def feed(self, text: str) -> list[Part]:
        self._held += text
        match self._state:
            case "start":
                return self._begin()
            case "thought" | "text":
                return self._think()
            case "answer" | "words":
                return self._answer()
            case "input":
                return self._argue()
            case _:
                self._held = ""
                return []

    def end(self) -> list[Part]:
        held, self._held = self._held, ""
        if self._state == "input":
            # Words instead of an object are handed on: the caller knows what it offered.
            return [CallArguments(0, held.strip())] if held.strip() else []
        if self._state in ("thought", "text") and (parts := self._cut(held)) is not None:
            return parts
        return [Said(held)] if held and self._state != "answer" else []

    def _begin(self) -> list[Part]:
        bare = self._held.lstrip()
        if THOUGHT.startswith(bare) and bare != THOUGHT:
            return []
        # What does not begin with a thought is said at once.
        self._state = "thought" if bare.startswith(THOUGHT) else "text"
        return self._think()

    def _think(self) -> list[Part]:
        text = self._held
        final, input = text.find(FINAL), text.find(INPUT)
        if final >= 0 and not 0 <= input < final:
            said = "" if self._state == "thought" else text[:final]
            self._state, self._held = "answer", text[final + len(FINAL) :]
            return ([Said(said)] if said else []) + self._answer()
        if input >= 0:
            return self._act(text, input)
        if self._state == "thought":
            return []
        action = text.find(ACTION)
        certain = action if action >= 0 else len(text) - overlap(text, (ACTION, FINAL))
        self._held = text[certain:]
        return [Said(text[:certain])] if certain else []

    def _act(self, text: str, input: int) -> list[Part]:
        action = text.find(ACTION)
        name = text[action + len(ACTION) : input].strip()
        if not 0 <= action < input or name not in self._names:
            # No call that can be answered: it stays text, as it is.
            self._state = "words"
            return self._answer()
        self._state, self._held = "input", text[input + len(INPUT) :]
        return [*_thought(text[:action]), began(0, name), *self._argue()]

    def _cut(self, text: str) -> list[Part] | None:
        """What there is of a call whose input never began; None where there is no call."""
        before, action, after = text.partition(ACTION)
        line, newline, rest = after.partition("\n")
        name = line.strip()
        if not action or not INPUT.startswith(newline + rest):
            return None
        if newline and name in self._names:
            self._state = "cut"
            return [*_thought(before), began(0, name)]
        if not newline and any(known.startswith(name) for known in self._names):
            self._state = "cut"
            return _thought(before)
        return None

    def _answer(self) -> list[Part]:
        text, self._held = self._held, ""
        if self._state == "answer":
            text = text.lstrip()
        if not text:
            return []
        self._state = "words"
        return [Said(text)]

    def _argue(self) -> list[Part]:
        bare = self._held.lstrip() if self._object.is_new else self._held
        if not bare or (self._object.is_new and not bare.startswith("{")):
            return []
        self._held = ""
        end = self._object.find(bare)
        if end >= 0:
            self._state, bare = "end", bare[:end]
        return [CallArguments(0, bare)]


def _thought(text: str) -> list[Part]:
    _, mark, after = text.partition(f"{THOUGHT} ")
    thought = (after if mark else text).strip()
    return [Said(thought)] if thought else []
