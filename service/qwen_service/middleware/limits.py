"""How often each key may ask: as many requests a minute as its line says. Knows no HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from qwen_service.middleware.auth import Key


@dataclass(slots=True)
class _Bucket:
    per_minute: int
    tokens: float
    filled_at: float


class RateLimits:
    """A bucket a key: full it holds a minute's requests, and it fills evenly."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def take(self, key: Key) -> float:
        """Counts one request; seconds until the next one may come where this one may not."""
        most = key.requests_per_minute
        if most is None:
            self._buckets.pop(key.name, None)
            return 0.0
        now = self._clock()
        bucket = self._buckets.get(key.name)
        if bucket is None or bucket.per_minute != most:
            bucket = self._buckets[key.name] = _Bucket(most, float(most), now)
        grown = (now - bucket.filled_at) * most / 60
        bucket.tokens = min(float(most), bucket.tokens + grown)
        bucket.filled_at = now
        if bucket.tokens >= 1:
            bucket.tokens -= 1
            return 0.0
        return (1 - bucket.tokens) * 60 / most
