"""`python -m tests.browser.fake_service`: the real service over an engine that says the question
back, has one place, and keeps it for who asks it to hold; for answers that no model was taught."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

from qwen_service import __main__ as service
from qwen_service import engines
from qwen_service.engine import Chat, Embedding, Event, Generation, Stats
from qwen_service.settings import Settings

from tests.fake_engine import FACTS, FakeEngine

HOLD = "Hold the line."


class Engine(FakeEngine):
    _ticks = 0

    def submit(self, generation: Generation | Embedding, deliver: Callable[[Event], None]) -> None:
        prompt = generation.prompt
        self._holds = isinstance(prompt, Chat) and prompt.messages[-1]["content"] == HOLD
        super().submit(generation, deliver)

    def stats(self) -> Stats:
        self._ticks += 1
        return replace(super().stats(), ticks=self._ticks)


def make(settings: Settings) -> Engine:
    return Engine(room=1, facts=replace(FACTS, context_tokens=100_000, thinks=True))


if __name__ == "__main__":
    engines.make = make
    sys.exit(service.main())
