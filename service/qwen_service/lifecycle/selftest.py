"""The proof that the engine still computes: one token now and then, while nobody else asks.

An engine around the engine, so that real work ends a test before it joins the queue, and so that
nobody counts what only a test did. Knows neither HTTP nor readiness.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from qwen_service.engine import (
    Embedded,
    Embedding,
    Engine,
    EngineError,
    Event,
    Failed,
    Finished,
    Generation,
    ModelFacts,
    Sampling,
    Stats,
    Text,
)
from qwen_service.inference.around import AroundEngine
from qwen_service.lifecycle.readiness import SelfTests

PROMPT = Text("1")
# A test follows a test after this long, and after as many times its own length: on a slow CPU an
# idle service stays idle.
EVERY_SECONDS = 2.5
PAUSE_FACTOR = 20
LONGEST_PAUSE_SECONDS = 30.0


class SelfTest(AroundEngine):
    def __init__(
        self, engine: Engine, tested: SelfTests, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(engine)
        self.tested = tested
        self._clock = clock
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._open: str | None = None
        self._began = clock()
        self._ended = clock()
        self._tokens = 0
        self._shown = 0

    def submit(self, generation: Generation | Embedding, deliver: Callable[[Event], None]) -> None:
        self.give_way()
        super().submit(generation, deliver)

    def give_way(self) -> None:
        with self._lock:
            name, self._open = self._open, None
        if name is not None:
            self._engine.cancel(name)

    def stats(self) -> Stats:
        stats = self._engine.stats()
        with self._lock:
            is_testing, tokens = self._open is not None, self._tokens
        if is_testing and stats.running + stats.waiting == 1:
            stats = replace(stats, running=0, waiting=0)
        # The one token of an open test may be counted already; a counter never goes back.
        self._shown = max(self._shown, stats.tokens - tokens - is_testing)
        return replace(stats, tokens=self._shown)

    @property
    def seconds_open(self) -> float:
        """For how long a test has waited for its answer."""
        with self._lock:
            return 0.0 if self._open is None else self._clock() - self._began

    def run_if_idle(self, facts: ModelFacts) -> bool:
        """Starts a test where one is due and the engine has nothing else to do."""
        pause = min(PAUSE_FACTOR * self.tested.least_seconds, LONGEST_PAUSE_SECONDS)
        stats = self._engine.stats()
        if stats.running + stats.waiting or self._clock() - self._ended < max(EVERY_SECONDS, pause):
            return False
        with self._lock:
            if self._open is not None:
                return False
            name = self._open = f"self-test-{next(self._numbers)}"
            self._began = self._clock()
        work = (
            Embedding(name, PROMPT)
            if facts.kind == "embedding"
            else Generation(name, PROMPT, Sampling(max_tokens=1, temperature=0))
        )
        try:
            self._engine.submit(work, lambda event: self._hear(name, event))
        except EngineError as error:
            self._hear(name, Failed(error))
        return True

    def _hear(self, name: str, event: Event) -> None:
        """Called from the engine's threads."""
        if not isinstance(event, Finished | Embedded | Failed):
            return
        with self._lock:
            if isinstance(event, Finished):
                self._tokens += event.completion_tokens
            if self._open != name:
                return
            self._open = None
            now = self._ended = self._clock()
            if isinstance(event, Failed):
                self.tested.failed += 1
                self.tested.error = str(event.error)
                return
            self.tested.passed += 1
            self.tested.error = ""
            seconds = self.tested.last_seconds = now - self._began
            self.tested.least_seconds = min(seconds, self.tested.least_seconds or seconds)
            self.tested.last_at = now
