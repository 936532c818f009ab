"""Asks a target, so many at a time, and collects what comes. Knows neither figures nor terminals.

It does not fight a server that refuses: who is told to wait waits, and after many failures in a
row all stop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from qwen_deploy.load.request import Connection, Sample, Target

MOST_FAILURES_IN_A_ROW = 20
PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Extent:
    """One level ends after so many requests, or when none may begin any more."""

    requests: int | None
    seconds: float | None


@dataclass(slots=True)
class Round:
    """One number of requests at a time, as far as it came."""

    concurrency: int
    samples: list[Sample] = field(default_factory=list)
    is_interrupted: bool = False
    is_given_up: bool = False


def measure(
    target: Target,
    concurrency: int,
    extent: Extent,
    payloads: Iterator[dict[str, object]],
    *,
    tell: Callable[[Round], None],
    clock: Callable[[], float],
) -> Round:
    """Ctrl-C ends it, and what was measured until then is returned."""
    crew = _Crew(target, Round(concurrency), extent, payloads, clock)
    try:
        crew.start()
        while crew.is_at_work(POLL_SECONDS):
            tell(crew.round)
    except KeyboardInterrupt:
        crew.round.is_interrupted = True
    finally:
        crew.end()
    tell(crew.round)
    return crew.round


class _Crew:
    def __init__(
        self,
        target: Target,
        round: Round,
        extent: Extent,
        payloads: Iterator[dict[str, object]],
        clock: Callable[[], float],
    ) -> None:
        self.round = round
        self._payloads = payloads
        self._left = extent.requests
        self._clock = clock
        self._ends_at = None if extent.seconds is None else clock() + extent.seconds
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._failures = 0
        self._connections = [Connection(target) for _ in range(round.concurrency)]
        self._threads = [
            threading.Thread(target=self._work, args=(one,), daemon=True)
            for one in self._connections
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def is_at_work(self, seconds: float) -> bool:
        alive = [thread for thread in self._threads if thread.is_alive()]
        if alive:
            alive[0].join(seconds)
        return any(thread.is_alive() for thread in self._threads)

    def end(self) -> None:
        """What is still on its way is no sample."""
        self._stop.set()
        for connection in self._connections:
            connection.close()
        for thread in self._threads:
            with suppress(RuntimeError):  # Ctrl-C came before this one was started
                thread.join()

    def _work(self, connection: Connection) -> None:
        while (payload := self._next()) is not None:
            sample = connection.ask(payload)
            if self._stop.is_set():
                return
            self._note(sample)
            if sample.error:
                pause = sample.retry_after if sample.retry_after is not None else PAUSE_SECONDS
                self._stop.wait(min(pause, LONGEST_PAUSE_SECONDS))

    def _next(self) -> dict[str, object] | None:
        with self._lock:
            is_over = self._ends_at is not None and self._clock() >= self._ends_at
            if self._stop.is_set() or is_over or self._left == 0:
                return None
            if self._left is not None:
                self._left -= 1
            return next(self._payloads)

    def _note(self, sample: Sample) -> None:
        with self._lock:
            self.round.samples.append(sample)
            self._failures = self._failures + 1 if sample.error else 0
            if self._failures >= max(MOST_FAILURES_IN_A_ROW, self.round.concurrency):
                self.round.is_given_up = True
                self._stop.set()
