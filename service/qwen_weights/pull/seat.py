"""One source in the list of a transfer: what it gave, when it may be asked again, and what it is
not asked for any more. Does not know the other sources."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any

from qwen_weights.errors import Missing, WeightsError
from qwen_weights.manifest import Artifact
from qwen_weights.sources import Interruption, Source, Stubborn, TooSlow
from qwen_weights.sources.entries import Entry
from qwen_weights.sources.peer import PeerSource

_RATE_SECONDS = 10.0
_WRONG_TWICE = 2
_STUBBORN_TIMES = 5
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
# Until a source that failed is preferred again although another one is being read.
_FIRST_RETURN_SECONDS = 30.0
_LONGEST_RETURN_SECONDS = 900.0
# A server may ask for more patience than the transfer has, but not for any.
_LONGEST_ASKED_SECONDS = 600.0


class Seat:
    """Not safe by itself: the pool's lock guards it."""

    def __init__(self, entry: Entry, source: Source) -> None:
        self.entry = entry
        self.source = source
        self.name = source.name
        self.peer = source if isinstance(source, PeerSource) else None
        self.readers = 0
        self.refusal: WeightsError | None = None
        # What befalls one artifact alone, and what befalls the source: of the latter every byte
        # shows that it is over.
        self._trouble = Trouble()
        self._troubles: defaultdict[str, Trouble] = defaultdict(Trouble)
        self._refusals: dict[str, WeightsError] = {}
        self._wrong: dict[str, int] = {}
        self._bytes = 0
        self._samples: deque[tuple[float, int]] = deque()

    def offers(self, artifact: Artifact) -> bool:
        paths = self.entry.paths
        return (paths is None or artifact.path in paths) and self.source.offers(artifact)

    def refusal_of(self, artifact: Artifact) -> WeightsError | None:
        return self.refusal or self._refusals.get(artifact.sha256)

    def refuse(self, artifact: Artifact, error: WeightsError) -> None:
        self._refusals[artifact.sha256] = error

    def wrong(self, artifact: Artifact, error: WeightsError) -> None:
        """Once may be the wire's fault."""
        count = self._wrong[artifact.sha256] = self.wrongs(artifact) + 1
        if count >= _WRONG_TWICE:
            self.refuse(artifact, error)

    def wrongs(self, artifact: Artifact) -> int:
        return self._wrong.get(artifact.sha256, 0)

    def has_ranges(self) -> bool:
        return bool(getattr(self.source, "has_ranges", True))

    def received(self, artifact: Artifact, count: int, now: float) -> None:
        self._bytes += count
        self._trouble.received()
        self._troubles[artifact.sha256].received()
        if not self._samples or now - self._samples[-1][0] > 0.5:
            self._samples.append((now, self._bytes))

    def failed(self, artifact: Artifact, interruption: Interruption, now: float) -> None:
        self._trouble.failed(interruption, now)
        trouble = self._troubles[artifact.sha256]
        trouble.failed(interruption, now)
        if isinstance(interruption, Stubborn) and trouble.failures >= _STUBBORN_TIMES:
            self.refuse(
                artifact, Missing(f"{self.name} does not give {artifact.path}: {interruption}")
            )

    def pause_left(self, artifact: Artifact, now: float) -> float:
        return max(trouble.pause_left(now) for trouble in self._both(artifact))

    def deserves_waiting(self, artifact: Artifact) -> bool:
        return all(trouble.deserves_waiting() for trouble in self._both(artifact))

    def is_slow(self, artifact: Artifact, now: float) -> bool:
        return self._troubles[artifact.sha256].is_slow(now)

    def can_return(self, artifact: Artifact, now: float) -> bool:
        return all(trouble.can_return(now) for trouble in self._both(artifact))

    def failures(self, artifact: Artifact) -> int:
        return self._troubles[artifact.sha256].failures

    def asked_seconds(self, artifact: Artifact) -> float:
        return max(trouble.asked_seconds for trouble in self._both(artifact))

    def complaint(self, artifact: Artifact) -> str | None:
        return self._troubles[artifact.sha256].complaint or self._trouble.complaint

    def _both(self, artifact: Artifact) -> tuple[Trouble, Trouble]:
        return self._trouble, self._troubles[artifact.sha256]

    def report(self, now: float) -> dict[str, Any]:
        refused = self.refusal or next(iter(self._refusals.values()), None)
        return {
            "name": self.name,
            "bytes": self._bytes,
            "rate": round(self._rate(now)),
            "state": self._state(now),
            "error": str(refused) if refused else self._complaint(),
        }

    def _state(self, now: float) -> str:
        if self.refusal:
            return "refused"
        if self.readers:
            return "reading"
        return "paused" if self._trouble.pause_left(now) else "idle"

    def _complaint(self) -> str | None:
        return self._trouble.complaint if self._trouble.failures else None

    def _rate(self, now: float) -> float:
        while len(self._samples) > 1 and now - self._samples[0][0] > _RATE_SECONDS:
            self._samples.popleft()
        if not self._samples:
            return 0.0
        since, count = self._samples[0]
        seconds = now - since
        return (self._bytes - count) / seconds if seconds > 0 else 0.0


class Trouble:
    """How it fares: failures since the last byte, when it may be asked again, and when to come
    back to it from another one."""

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
