"""How quickly bytes may come from the WAN, by day and by night: one bucket for all streams. Does
not know what they are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from datetime import time as TimeOfDay

# What a stream may take at once, and what a pause saves up.
_BURST_SECONDS = 0.2
_LEAST_BYTES = 1 << 10


@dataclass(frozen=True)
class Rates:
    """Bytes a second, by the host's own clock; None is without limit."""

    day: float | None = None
    night: float | None = None
    begin: TimeOfDay = TimeOfDay(22)
    end: TimeOfDay = TimeOfDay(6)

    def at(self, moment: TimeOfDay) -> float | None:
        if self.begin <= self.end:
            is_night = self.begin <= moment < self.end
        else:
            is_night = moment >= self.begin or moment < self.end
        return self.night if is_night else self.day


class Limiter:
    """Streams ask before they read, and are made to wait; a read that got less pays for less."""

    def __init__(
        self,
        rates: Rates,
        stop: threading.Event,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._rates = rates
        self._stop = stop
        self._clock = clock
        self._now = now
        self._lock = threading.Lock()
        self._credit = 0.0
        self._paid_at = clock()

    def allow(self, wanted: int) -> int:
        """How many bytes may be read now, after such a wait as the rate makes necessary; none
        once it is stopped."""
        while True:
            with self._lock:
                rate = self._rates.at(self._now().time())
                if rate is None:
                    return wanted
                self._earn(rate)
                most = max(int(rate * _BURST_SECONDS), _LEAST_BYTES)
                if self._credit > 0:
                    allowed = min(wanted, most)
                    self._credit -= allowed
                    return allowed
                seconds = -self._credit / rate + _BURST_SECONDS / 4
            if self._stop.wait(seconds):
                return 0

    def give_back(self, count: int) -> None:
        with self._lock:
            self._credit += count

    def _earn(self, rate: float) -> None:
        now = self._clock()
        self._credit = min(self._credit + (now - self._paid_at) * rate, rate * _BURST_SECONDS)
        self._paid_at = now
