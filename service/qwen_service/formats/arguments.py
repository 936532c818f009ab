"""The JSON text of a call's arguments: where an object ends in a text that is still coming.

Knows nothing of what surrounds it.
"""

from __future__ import annotations

import json
import re
from typing import Any

QUIET = re.compile(r'[^"{}\[\]]*')
IN_STRING = re.compile(r'[^"\\]*')


class ObjectEnd:
    """Finds the end of a JSON object by its brackets, whatever pieces it comes in."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self.is_new = True

    def find(self, text: str) -> int:
        """The index behind the object's last bracket, or -1 where it goes on."""
        self.is_new = False
        at = 0
        while at < len(text):
            if self._is_escaped:
                self._is_escaped = False
                at += 1
                continue
            skipped = (IN_STRING if self._in_string else QUIET).match(text, at)
            at = skipped.end() if skipped else at
            if at < len(text) and self._closes(text[at]):
                return at + 1
            at += 1
        return -1

    def _closes(self, letter: str) -> bool:
        if letter == "\\":
            self._is_escaped = True
        elif letter == '"':
            self._in_string = not self._in_string
        elif letter in "{[":
            self._depth += 1
        else:
            self._depth -= 1
            return self._depth == 0
        return False


def read_object(text: str) -> dict[str, Any] | None:
    """The JSON object that the text is, or None."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
