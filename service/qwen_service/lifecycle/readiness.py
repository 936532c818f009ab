"""What state the service is in, and telling systemd so: starting, loading, ready, stuck, draining,
failed.

Knows neither who asks nor what the engine does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from qwen_service.engine import ModelFacts
from qwen_service.lifecycle.notify import Notifier

State = Literal["starting", "loading", "ready", "stuck", "draining", "failed"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(slots=True)
class SelfTests:
    """What the self-tests showed so far; `error` is the last one's, if it failed."""

    passed: int = 0
    failed: int = 0
    last_seconds: float = 0.0
    # The quickest one: what a test takes where nothing holds it up.
    least_seconds: float = 0.0
    last_at: float | None = None
    error: str = ""


class Readiness:
    def __init__(
        self, notifier: Notifier, *, model: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._notifier = notifier
        self._model = model
        self._clock = clock
        self._since = clock()
        self.state: State = "starting"
        self.reason = "starting"
        self.facts: ModelFacts | None = None
        # From the start to the first completion.
        self.load_seconds: float | None = None
        self.tested = SelfTests()

    @property
    def uptime_seconds(self) -> float:
        return self._clock() - self._since

    def loading(self, step: str) -> None:
        self.state = "loading"
        self.reason = f"Loading {self._model}: {step}"
        self._notifier.send(STATUS=self.reason)

    def ready(self) -> None:
        self.state = "ready"
        self.reason = ""
        if self.load_seconds is None:
            self.load_seconds = self.uptime_seconds
        self._notifier.send(READY=1, STATUS=f"Serving {self._model}")

    def stuck(self, reason: str) -> None:
        """Until the engine moves again, nothing new is taken on."""
        self.state = "stuck"
        self.reason = reason
        self._notifier.send(STATUS=f"Stuck: {reason}")

    def draining(self, seconds: float) -> None:
        self.state = "draining"
        self.reason = "the service is stopping"
        # The unit's own stop timeout need not know how long a drain may take.
        extended = int((seconds + 15) * 1e6)
        self._notifier.send(STOPPING=1, EXTEND_TIMEOUT_USEC=extended, STATUS="Draining")

    def failed(self, reason: str) -> None:
        self.state = "failed"
        self.reason = reason
        self._notifier.send(STATUS=f"Failed: {reason}")

    def describe(self, status: str) -> None:
        self._notifier.send(STATUS=status)

    def needs_time(self, seconds: float) -> None:
        self._notifier.send(EXTEND_TIMEOUT_USEC=int(seconds * 1e6))

    def is_alive(self) -> None:
        self._notifier.send(WATCHDOG=1)
