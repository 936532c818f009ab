"""Tool calls as Qwen2.5 and Qwen3 write them: JSON between <tool_call> and </tool_call>.

What is malformed or calls no function that was offered stays text; what is cut off is a call as far
as it came.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Literal

from qwen_service.formats.arguments import ObjectEnd, read_object, written
from qwen_service.formats.parts import CallArguments, Part, Said, began, overlap

OPEN, CLOSE = "<tool_call>", "</tool_call>"
NAME = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]*)"')
# From here on it is certain that this is a call, so its arguments may be sent as they come.
HEAD = re.compile(NAME.pattern + r'\s*,\s*"arguments"\s*:\s*(?=\{)')
LONGEST_HEAD = 512
TAIL = re.compile(r"\s*\}?\s*")


class ToolCallReader:
    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._state: Literal["text", "call", "arguments", "tail", "cut"] = "text"
        self._held = ""
        self._searched = 0
        self._object = ObjectEnd()
        self._calls = 0

    @property
    def has_called(self) -> bool:
        return self._calls > 0 and self._state not in ("arguments", "cut")

    def feed(self, text: str) -> list[Part]:
        self._held += text
        parts: list[Part] = []
        while self._step(parts):
            pass
        return parts

    def end(self) -> list[Part]:
        held, self._held = self._held, ""
        if self._state == "call":
            return self._read(held) or self._cut(held)
        if self._state == "text" and (held.strip() or (held and not self._calls)):
            return [Said(held)]
        return []

    def _step(self, parts: list[Part]) -> bool:
        """Reads on in the text that is held; whether something was settled."""
        if not self._held:
            return False
        match self._state:
            case "text":
                return self._read_text(parts)
            case "call":
                return self._read_call(parts)
            case "arguments":
                return self._read_arguments(parts)
        return self._read_tail()

    def _read_text(self, parts: list[Part]) -> bool:
        text, open, rest = self._held.partition(OPEN)
        if open:
            # Newlines around a call belong to it.
            self._say(text.rstrip("\n"), parts)
            self._held, self._state, self._searched = rest, "call", 0
            return True
        certain = text[: len(text) - overlap(text, (OPEN,))].rstrip("\n")
        self._say(certain, parts)
        self._held = text[len(certain) :]
        return False

    def _say(self, text: str, parts: list[Part]) -> None:
        if text.strip() or (text and not self._calls):
            parts.append(Said(text))

    def _read_call(self, parts: list[Part]) -> bool:
        if len(self._held) < LONGEST_HEAD + len(OPEN):
            head = HEAD.match(self._held)
            if head and head[1] in self._names:
                parts.append(self._begin(head[1]))
                self._held = self._held[head.end() :]
                self._state, self._object = "arguments", ObjectEnd()
                return True
        at = self._held.find(CLOSE, max(0, self._searched - len(CLOSE)))
        self._searched = len(self._held)
        if at < 0:
            return False
        block, self._held = self._held[:at], self._held[at + len(CLOSE) :]
        parts += self._read(block) or [Said(OPEN + block + CLOSE)]
        self._state = "text"
        return True

    def _begin(self, name: str) -> Part:
        self._calls += 1
        return began(self._calls - 1, name)

    def _read_arguments(self, parts: list[Part]) -> bool:
        end = self._object.find(self._held)
        if end < 0:
            parts.append(CallArguments(self._calls - 1, self._held))
            self._held = ""
            return False
        parts.append(CallArguments(self._calls - 1, self._held[:end]))
        self._held = self._held[end:]
        self._state = "tail"
        return True

    def _read_tail(self) -> bool:
        rest = self._held[TAIL.match(self._held).end() :]  # type: ignore[union-attr]
        if CLOSE.startswith(rest):
            # Nothing yet, or a part of the tag, or all of it.
            self._held, self._state = ("", "text") if rest == CLOSE else (self._held, "tail")
            return False
        self._held = rest.removeprefix(CLOSE)
        self._state = "text"
        return True

    def _read(self, block: str) -> list[Part]:
        """The call that a whole block is, or nothing."""
        value = read_object(block)
        name = value.get("name") if value else None
        if value is None or not isinstance(name, str) or name not in self._names:
            return []
        arguments: Any = value.get("arguments", {})
        if isinstance(arguments, str):
            arguments = read_object(arguments)
        if not isinstance(arguments, dict):
            return []
        return [self._begin(name), CallArguments(self._calls - 1, written(arguments))]

    def _cut(self, block: str) -> list[Part]:
        """What there is of a block that never ended: its name at most, or words that were none."""
        bare = block.lstrip()
        if bare and (not bare.startswith("{") or ObjectEnd().find(bare) >= 0):
            return [Said(OPEN + block)]
        self._state = "cut"
        name = NAME.match(block)
        return [self._begin(name[1])] if name and name[1] in self._names else []
