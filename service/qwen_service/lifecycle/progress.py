"""Whether the engine gets on, judged from what it tells. Pure: knows no clock and no threads."""

from __future__ import annotations

from qwen_service.engine import Stats
from qwen_service.lifecycle.readiness import SelfTests

# Steps take a second at most; this one, and the time between two self-tests, stay below 10 s.
STUCK_SECONDS = 6.0
# A self-test may take this many times as long as the quickest one.
SLOWER_FACTOR = 10


class Progress:
    def __init__(self) -> None:
        self._ticks = -1
        self._silent_seconds = 0.0
        self.has_moved = False

    def judge(
        self, stats: Stats, tested: SelfTests, *, seconds: float, test_seconds: float
    ) -> str | None:
        """Why the engine seems to be stuck, or None. `seconds` went by since the last judgement,
        and `test_seconds` since the self-test began that has no answer yet."""
        self.has_moved = stats.ticks != self._ticks
        self._ticks = stats.ticks
        self._silent_seconds = 0.0 if self.has_moved else self._silent_seconds + seconds
        if self._silent_seconds >= STUCK_SECONDS:
            return f"the engine has made no step for {self._silent_seconds:.0f} s"
        if test_seconds >= max(STUCK_SECONDS, SLOWER_FACTOR * tested.least_seconds):
            return f"the self-test has had no answer for {test_seconds:.0f} s"
        return f"the self-test failed: {tested.error}" if tested.error else None
