"""What state the service is in, and telling systemd so: starting, loading, ready, draining, failed.

Knows neither who asks nor what the engine does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from qwen_service.engine import ModelFacts
from qwen_service.notify import Notifier

State = Literal["starting", "loading", "ready", "draining", "failed"]


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
        self._notifier.send(READY=1, STATUS=f"Serving {self._model}")

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
