"""What the service writes down: a line of logfmt for each request, and, where that is asked for,
what was said. Never a key.

Logfmt (name=value, quoted as JSON where it must be) reads well in journalctl and parses anywhere.
"""

from __future__ import annotations

import contextvars
import json
import logging
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen_service.engine import (
    Chat,
    Embedded,
    Embedding,
    Engine,
    Event,
    Failed,
    Finished,
    Generation,
    Piece,
    Prompt,
    Text,
)
from qwen_service.inference.around import AroundEngine

log = logging.getLogger("qwen_service")

# Characters of a prompt, and of an answer, that the log keeps.
MOST_LOGGED = 2000
BARE = re.compile(r"[\w.:/@+*{}\[\],-]+", re.ASCII)

# The request that is being answered, for what happens on its behalf further down.
request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")


def set_up() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)


def logfmt(fields: Mapping[str, Any]) -> str:
    """Fields that are None are left out."""
    return " ".join(
        f"{name}={_value(value)}" for name, value in fields.items() if value is not None
    )


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = str(value)
    if BARE.fullmatch(text):
        return text
    # Lone surrogates cannot be written to a stream.
    return json.dumps(text, ensure_ascii=not _is_writable(text))


def _is_writable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    # Other ends of lines than those that JSON escapes, and what moves a terminal's cursor.
    return not re.search(r"[\x7f-\x9f\u2028\u2029\u202a-\u202e]", text)


@dataclass(slots=True)
class _Said:
    request: str
    prompt: str
    answer: list[str] = field(default_factory=list)
    length: int = 0


class Transcript(AroundEngine):
    """Writes down prompts and answers, in full up to MOST_LOGGED characters each."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._said: dict[str, _Said] = {}

    def submit(self, generation: Generation | Embedding, deliver: Callable[[Event], None]) -> None:
        said = _Said(request_id.get(), _words(generation.prompt))

        def overhear(event: Event) -> None:
            deliver(event)
            self._note(generation.id, said, event)

        self._said[generation.id] = said
        try:
            super().submit(generation, overhear)
        except BaseException:
            self._said.pop(generation.id, None)
            raise

    def cancel(self, generation_id: str) -> None:
        super().cancel(generation_id)
        self._write(generation_id, "cancelled")

    def _note(self, generation_id: str, said: _Said, event: Event) -> None:
        if isinstance(event, Piece):
            if said.length < MOST_LOGGED:
                said.answer.append(event.text)
                said.length += len(event.text)
        elif isinstance(event, Finished):
            self._write(generation_id, event.reason)
        elif isinstance(event, Embedded | Failed):
            self._write(generation_id, type(event).__name__.lower())

    def _write(self, generation_id: str, end: str) -> None:
        said = self._said.pop(generation_id, None)
        if said is None:
            return
        fields = {
            "transcript": generation_id,
            "id": said.request,
            "end": end,
            "prompt": _cut(said.prompt),
            "answer": _cut("".join(said.answer)),
        }
        log.info("%s", logfmt(fields))


def _words(prompt: Prompt) -> str:
    if isinstance(prompt, Chat):
        return json.dumps(list(prompt.messages), ensure_ascii=False, default=str)
    return prompt.text if isinstance(prompt, Text) else f"{len(prompt.ids)} token ids"


def _cut(text: str) -> str:
    return text if len(text) <= MOST_LOGGED else text[:MOST_LOGGED] + "…"
