"""One peer that may give what this host lacks: what it said last, whether it lives, and why it is
passed over for now. Knows neither sockets nor the other peers."""

from __future__ import annotations

from dataclasses import dataclass

from qwen_weights.sources.peer import PeerSource, Standing

_ENDED = ("failed", "stopped")
_NOT_YET_FETCHING = ("checking", "waiting", "verifying")
_LAST_TROUBLE = 3
_FIRST_REST_SECONDS = 0.2
_MOST_DOUBLINGS = 6


@dataclass(frozen=True)
class Pace:
    """How relays are watched. The defaults suit links of 10 Mbit/s to 10 Gbit/s."""

    poll_seconds: float = 1.0
    dead_seconds: float = 3.5  # without an answer
    grace_seconds: float = 10.0  # until one that is starting, or starting again, is given up
    window_seconds: float = 4.0  # over which rates are compared
    patience_seconds: float = 3.0  # how long something must be so before it is acted on
    stall_seconds: float = 10.0
    retry_seconds: float = 60.0
    rest_seconds: float = 30.0  # after what did not help; doubled each time
    margin_bytes: int = 8 << 20  # relays that are closer to each other are equally far
    margin_seconds: float = 3.0
    probe_bytes: int = 4 << 20
    probe_seconds: float = 3.0


class Ancestor:
    """Changed under the lock of whoever owns it."""

    def __init__(self, source: PeerSource, pace: Pace, now: float) -> None:
        self.source = source
        self.standing = Standing()
        self.is_refused = False
        self.slow_until = now
        self._pace = pace
        self._known_at = now
        self._heard_at: float | None = None
        self._is_lost = False
        self._grown_at = now
        self._resting_until = now
        self._troubles = 0
        self._failed_at = 0.0
        self._times_slow = 0

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def total(self) -> int:
        return sum(self.standing.blobs.values())

    @property
    def margin(self) -> float:
        """Its own word is up to a poll old."""
        return max(self._pace.margin_bytes, self._pace.margin_seconds * self.standing.rate)

    def has(self, sha256: str) -> int:
        return self.standing.blobs.get(sha256, 0)

    def heard(self, standing: Standing, now: float) -> None:
        if standing.blobs != self.standing.blobs or standing.phase in _NOT_YET_FETCHING:
            self._grown_at = now
        self.standing = standing
        self._heard_at = now
        self._is_lost = False

    def failed(self, now: float) -> None:
        """A stream of it ended before its time: it is lost until it is heard again. One that never
        gives anything rests longer and longer, whatever it says of itself."""
        self._is_lost = True
        if now >= self._resting_until:
            self._troubles = self.troubles + 1
            rest = _FIRST_REST_SECONDS * 2 ** min(self._troubles, _MOST_DOUBLINGS)
            self._resting_until = now + rest
        self._failed_at = now

    @property
    def troubles(self) -> int:
        """Since it last gave anything."""
        return 0 if self.source.received_at > self._failed_at else self._troubles

    def left_as_slow(self, now: float) -> None:
        rest = self._pace.rest_seconds * 2 ** min(self._times_slow, _MOST_DOUBLINGS)
        self.slow_until = now + rest
        self._times_slow += 1

    def answers(self, now: float) -> bool:
        """A relay that is too busy to answer, and yet sends, is there too."""
        if self._heard_at is None or self._is_lost or self.is_refused:
            return False
        seen_at = max(self._heard_at, self.source.received_at)
        return now - seen_at < self._pace.dead_seconds and self.standing.phase not in _ENDED

    def is_usable(self, now: float) -> bool:
        return self.answers(now) and now >= self._resting_until

    def is_calm(self, now: float) -> bool:
        return self.is_usable(now) and now >= self.slow_until

    def is_still(self, now: float, seconds: float) -> bool:
        """It is there, but nothing has come to it, nor from it, for so long."""
        moved_at = max(self._grown_at, self.source.received_at)
        return self.standing.phase != "done" and now - moved_at > seconds

    def may_help(self, now: float, still_seconds: float) -> bool:
        """Worth waiting for before the WAN is read."""
        if self.is_refused or self.troubles >= _LAST_TROUBLE:
            return False
        if self._heard_at is not None and self.standing.phase in _ENDED:
            return False
        if not self.answers(now):
            return now - (self._heard_at or self._known_at) < self._pace.grace_seconds
        return not self.is_still(now, still_seconds)
