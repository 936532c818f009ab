"""An engine around an engine: passes everything on, for those who change or watch one thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qwen_service.engine import Embedding, Engine, Event, Generation, Prompt, Report, Stats


class AroundEngine:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def start(self, report: Callable[[Report], None]) -> None:
        self._engine.start(report)

    def submit(self, generation: Generation | Embedding, deliver: Callable[[Event], None]) -> None:
        self._engine.submit(generation, deliver)

    def cancel(self, generation_id: str) -> None:
        self._engine.cancel(generation_id)

    def encode(self, prompt: Prompt) -> Sequence[int]:
        return self._engine.encode(prompt)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._engine.decode(tokens)

    def drain(self) -> None:
        self._engine.drain()

    def stop(self) -> None:
        self._engine.stop()

    def stats(self) -> Stats:
        return self._engine.stats()
