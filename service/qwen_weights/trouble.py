"""How a source fares: failures since the last byte, when it may be asked again, and when to come
back to it from another one. Does not know what is read from it."""

from __future__ import annotations

from .sources import Interruption, TooSlow

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
# Until a source that failed is preferred again although another one is being read.
_FIRST_RETURN_SECONDS = 30.0
_LONGEST_RETURN_SECONDS = 900.0
# A server may ask for more patience than the transfer has, but not for any.
_LONGEST_ASKED_SECONDS = 600.0


class Trouble:
    """Not safe by itself."""

    def __init__(self) -> None:
        self.failures = 0
        self.complaint: str | None = None
        self.asked_seconds = 0.0
        self._is_asked = False
        self._paused_until = 0.0
        self._return_at = 0.0
        self._slows = 0
        self._slow_until = 0.0

    def failed(self, interruption: Interruption, now: float) -> None:
        self.complaint = str(interruption)
        if isinstance(interruption, TooSlow):
            self._slows += 1
            self._slow_until = now + _doubled(_FIRST_RETURN_SECONDS, self._slows)
        if now < self._paused_until:
            return  # another stream told the same
        self.failures += 1
        pause = _doubled(_FIRST_PAUSE_SECONDS, self.failures, _LONGEST_PAUSE_SECONDS)
        asked = interruption.retry_after
        self._is_asked = asked is not None
        if asked is not None:
            pause = self.asked_seconds = min(asked, _LONGEST_ASKED_SECONDS)
        self._paused_until = now + pause
        self._return_at = now + max(_doubled(_FIRST_RETURN_SECONDS, self.failures), pause)

    def received(self) -> None:
        self.failures = 0
        self.asked_seconds = 0.0
        self._is_asked = False

    def pause_left(self, now: float) -> float:
        return max(0.0, self._paused_until - now) if self.failures else 0.0

    def deserves_waiting(self) -> bool:
        """A connection that broke is first tried again where it was."""
        return self.failures <= 1 and not self._is_asked

    def is_slow(self, now: float) -> bool:
        return now < self._slow_until

    def can_return(self, now: float) -> bool:
        return now >= self._return_at


def _doubled(first: float, times: int, most: float = _LONGEST_RETURN_SECONDS) -> float:
    return min(first * (1 << min(times - 1, 16)), most)
