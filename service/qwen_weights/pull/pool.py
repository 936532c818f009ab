"""The sources of a transfer, the best first: which one brings what comes next, and which are not
asked again. The list may change while it is used. Does not know files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from qwen_weights.errors import Stopped, WeightsError
from qwen_weights.manifest import Artifact
from qwen_weights.pull import hopeless
from qwen_weights.pull.progress import Progress
from qwen_weights.pull.seat import Seat
from qwen_weights.sources import Interruption, Source
from qwen_weights.sources.entries import Entry
from qwen_weights.sources.peer import PeerSource

_LOOK_SECONDS = 1.0
_RELAY_SECONDS = 0.2
_STAYS_THROUGH_FAILURES = 5


class Relays(Protocol):
    """The peers among the sources, which have rules of their own (relays.py)."""

    def pick(self, artifact: Artifact, offset: int) -> PeerSource | None: ...

    def is_any_alive(self) -> bool:
        """Then the WAN is left alone, even if nothing can be read now."""
        ...

    def is_ahead(self, artifact: Artifact, offset: int) -> bool:
        """A peer has the next bytes, so that the WAN can be left."""
        ...

    def failed(self, source: PeerSource) -> None: ...

    def refuse(self, source: PeerSource) -> None: ...

    def replace(self, peers: Sequence[PeerSource]) -> None: ...


class Pool:
    def __init__(
        self,
        make: Callable[[Entry], Source],
        progress: Progress,
        stop: threading.Event,
        *,
        retry_seconds: float,
        relays: Relays | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make = make
        self._progress = progress
        self._stop = stop
        self._retry_seconds = retry_seconds
        self._relays = relays
        self._clock = clock
        self._changed = threading.Condition()
        self._seats: tuple[Seat, ...] = ()
        self._is_closed = False
        self.version = 0  # of the list

    @property
    def sources(self) -> tuple[Source, ...]:
        with self._changed:
            return tuple(seat.source for seat in self._seats)

    def replace(self, entries: Sequence[Entry]) -> None:
        """Those that stay keep what is known of them; those that go end at once. Raises
        BadManifest, and then nothing has changed."""
        known = {seat.entry: seat for seat in self._seats}
        seats = tuple(known.get(one) or Seat(one, self._make(one)) for one in entries)
        if seats == self._seats:
            return
        with self._changed:
            left = [seat for seat in self._seats if seat not in seats]
            self._seats = seats
            self.version += 1
            self._changed.notify_all()
        if self._relays:
            self._relays.replace([peer for peer in (seat.peer for seat in seats) if peer])
        for seat in left if not self._is_closed else seats:
            seat.source.close()

    def pick(self, artifact: Artifact, offset: int, *, stay: Seat | None = None) -> Seat:
        """Waits until a source can be asked. `stay` is the one to go on with while it is there."""
        while True:
            self._check_stop()
            seat, pause = self._look(artifact, offset, stay)
            if seat:
                return seat
            self._rest(artifact, pause)

    def should_leave(self, seat: Seat, artifact: Artifact, offset: int, version: int) -> bool:
        """The list is another one, or a better source can be read again."""
        if version != self.version:
            return True
        if seat.peer:
            return False  # relays.py ends its streams
        if seat.source.is_wan and self._relays and self._relays.is_ahead(artifact, offset):
            return True
        now = self._clock()
        with self._changed:
            for better in self._in_order(artifact, offset):
                if better is seat:
                    return False
                if not better.pause_left(artifact, now) and better.can_return(artifact, now):
                    return True
        return False

    @contextmanager
    def reading(self, seat: Seat) -> Iterator[None]:
        with self._changed:
            seat.readers += 1
        try:
            yield
        finally:
            with self._changed:
                seat.readers -= 1

    def received(self, seat: Seat, artifact: Artifact, count: int) -> None:
        with self._changed:
            seat.received(artifact, count, self._clock())

    def failed(self, seat: Seat, artifact: Artifact, interruption: Interruption) -> None:
        if seat.peer and self._relays:
            self._relays.failed(seat.peer)
        with self._changed:
            seat.failed(artifact, interruption, self._clock())
            refusal = seat.refusal_of(artifact)
        if refusal:
            self._progress.warn(str(refusal))

    def wrong(self, seat: Seat, artifact: Artifact, error: WeightsError) -> None:
        """All of a file came from it and was not right."""
        if seat.peer:
            self.refuse(seat, error)
            return
        with self._changed:
            seat.wrong(artifact, error)
        self._progress.warn(str(error))

    def refuse(self, seat: Seat, error: WeightsError, artifact: Artifact | None = None) -> None:
        """For the artifact only, where one is given; a relay has all of them or none."""
        if seat.peer and self._relays:
            self._relays.refuse(seat.peer)
        with self._changed:
            if artifact is None or seat.peer:
                seat.refusal = error
            else:
                seat.refuse(artifact, error)
            is_only = len(self._seats) == 1
            self._changed.notify_all()
        if not is_only:  # else it is about to end the transfer
            self._progress.warn(str(error))

    def report(self) -> list[dict[str, Any]]:
        now = self._clock()
        with self._changed:
            return [seat.report(now) for seat in self._seats]

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for source in self.sources:
            source.close()

    def _in_order(self, artifact: Artifact, offset: int) -> list[Seat]:
        """Those that may be asked, apart from relays: what lies on this host before the WAN."""
        now = self._clock()
        able = [
            seat
            for seat in self._seats
            if not seat.peer and not seat.refusal_of(artifact) and seat.offers(artifact)
        ]
        return sorted(
            able,
            key=lambda seat: (
                seat.wrongs(artifact),
                seat.is_slow(artifact, now),
                seat.source.is_wan,
                bool(offset) and not seat.has_ranges(),
            ),
        )

    def _look(
        self, artifact: Artifact, offset: int, stay: Seat | None
    ) -> tuple[Seat | None, float]:
        """A source that can be asked now, or else after how many seconds to look again."""
        now = self._clock()
        with self._changed:
            able = self._in_order(artifact, offset)
        if stay in able and stay.failures(artifact) < _STAYS_THROUGH_FAILURES:
            return _first((stay,), artifact, now)
        near = [
            seat
            for seat in able
            if not (seat.source.is_wan or seat.wrongs(artifact) or seat.is_slow(artifact, now))
        ]
        seat, pause = _first(near, artifact, now)
        if seat:
            return seat, pause
        if self._relays:
            peer = self._seat_of(self._relays.pick(artifact, offset))
            if peer:
                return peer, 0.0
            if self._relays.is_any_alive():
                self._progress.touch()  # they wait as this host does
                return None, _RELAY_SECONDS
        return _first(able, artifact, now)

    def _seat_of(self, peer: PeerSource | None) -> Seat | None:
        with self._changed:
            found = (seat for seat in self._seats if seat.peer is peer and not seat.refusal)
            return next(found, None) if peer else None

    def _rest(self, artifact: Artifact, pause: float) -> None:
        with self._changed:
            seats = [seat for seat in self._seats if seat.offers(artifact)]
            if self._seats and all(seat.refusal_of(artifact) for seat in seats):
                raise hopeless.refused(artifact, seats, self._progress.reached())
            if not self._seats:
                self._progress.enter("waiting")
            still = self._progress.still_seconds()
            asked = max((seat.asked_seconds(artifact) for seat in seats), default=0.0)
            left = self._retry_seconds + asked - still
            if left <= 0:
                raise hopeless.gone(artifact, seats, still, self._progress.reached())
            if not self._is_closed:
                self._changed.wait(min(pause or _LOOK_SECONDS, left, _LOOK_SECONDS))

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Stopped(f"stopped; {self._progress.reached()}")


def _first(seats: Sequence[Seat], artifact: Artifact, now: float) -> tuple[Seat | None, float]:
    """A short pause of a better source is waited for, a long one is not."""
    pauses = [_LOOK_SECONDS]
    for seat in seats:
        pause = seat.pause_left(artifact, now)
        if not pause:
            return seat, 0.0
        pauses.append(pause)
        if seat.deserves_waiting(artifact):
            break
    return None, min(pauses)
