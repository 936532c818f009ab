"""A deterministic engine behind the service's own protocol, for tests of HTTP alone."""

from __future__ import annotations

from collections.abc import Callable

from qwen_service.engine import (
    EngineError,
    Event,
    Failed,
    Finished,
    Generation,
    Loaded,
    ModelFacts,
    NotServing,
    Piece,
    QueueFull,
    Report,
    Started,
    Stats,
)

FACTS = ModelFacts(device="cpu", dtype="float32", context_tokens=1000)


class FakeEngine:
    """Says the last message back, a word a piece; holds answers back when told to."""

    def __init__(self, *, room: int = 100, holds: bool = False) -> None:
        self.submitted: list[Generation] = []
        self.cancelled: list[str] = []
        # Instead of an answer; `late` once the prompt was accepted.
        self.failure: EngineError | None = None
        self.fails_late = False
        self._room = room
        self._holds = holds
        self._held: dict[str, tuple[Generation, Callable[[Event], None]]] = {}
        self._accepts = False

    def start(self, report: Callable[[Report], None]) -> None:
        self._accepts = True
        report(Loaded(FACTS))

    def submit(self, generation: Generation, deliver: Callable[[Event], None]) -> None:
        if not self._accepts:
            raise NotServing("the engine takes no requests")
        if len(self._held) >= self._room:
            raise QueueFull(f"{self._room} requests are running or waiting")
        self.submitted.append(generation)
        self._held[generation.id] = (generation, deliver)
        if self.failure is None or self.fails_late:
            deliver(Started(len(_words(generation))))
        if not self._holds:
            self.release()

    def release(self) -> None:
        """Answers all that was held back."""
        for generation, deliver in self._held.values():
            if self.failure is not None:
                deliver(Failed(self.failure))
                continue
            for word in _words(generation):
                deliver(Piece(word))
            deliver(Finished("stop", len(_words(generation)) + 1))
        self._held.clear()

    def cancel(self, generation_id: str) -> None:
        if self._held.pop(generation_id, None):
            self.cancelled.append(generation_id)

    def drain(self) -> None:
        self._accepts = False

    def stop(self) -> None:
        self._accepts = False

    def stats(self) -> Stats:
        return Stats(running=len(self._held))


def _words(generation: Generation) -> list[str]:
    text: str = generation.prompt.messages[-1]["content"]
    first, *rest = text.split(" ")
    return [first, *(f" {word}" for word in rest)]
