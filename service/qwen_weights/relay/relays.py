"""The peers this host may read from, the nearest first: which of them live, which to read next, and
when to leave one for another. Does not read artifacts itself and judges no bytes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from qwen_weights.errors import WeightsError
from qwen_weights.manifest import Artifact
from qwen_weights.relay.ancestor import Ancestor, Pace
from qwen_weights.relay.detour import Detours, Lead, Moment
from qwen_weights.relay.probing import measure
from qwen_weights.sources import Interruption
from qwen_weights.sources.peer import PeerSource, PeerStream

# A probe shares the links with the streams that run, so what it reaches could be had.
_QUICKER = 1.5
_POLLED_EACH_TIME = 16


class Relays:
    """Asks its peers while entered. `held` says how many bytes of each content are on this host
    and can be relied on."""

    def __init__(
        self,
        held: Callable[[], Mapping[str, int]],
        total_bytes: int,
        *,
        warn: Callable[[str], None],
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._held = held
        self._total_bytes = total_bytes
        self._warn = warn
        self._pace = pace or Pace()
        self._clock = clock
        self._lock = threading.Lock()
        self._ancestors: list[Ancestor] = []
        self._pollers: list[_Poller] = []
        self._detours = Detours(self._pace)
        self._stray_since: float | None = None
        self._next_return_at = 0.0
        self._return_pause = self._pace.rest_seconds / 6
        self._is_entered = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="relays", daemon=True)

    def __enter__(self) -> Relays:
        with self._lock:
            self._is_entered = True
            pollers = list(self._pollers)
        for poller in pollers:
            poller.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with self._lock:
            pollers, self._pollers = self._pollers, []
        for poller in pollers:
            poller.end()
        self._thread.join()

    def replace(self, peers: Sequence[PeerSource]) -> None:
        """What is known of a peer that stays is kept."""
        now = self._clock()
        with self._lock:
            known = {ancestor.source: ancestor for ancestor in self._ancestors}
            self._ancestors = [known.get(one) or Ancestor(one, self._pace, now) for one in peers]
            if self._ended.is_set():
                return
            gone = [poller for poller in self._pollers if poller.source not in peers]
            new = [_Poller(self, one) for one in peers if one not in known]
            self._pollers = [one for one in self._pollers if one not in gone] + new
            to_start = new if self._is_entered else []
        for poller in to_start:
            poller.start()
        for poller in gone:
            poller.end()

    def pick(self, artifact: Artifact, offset: int) -> PeerSource | None:
        """None while no peer has anything to give, now or soon."""
        with self._lock:
            chosen = self._choose(artifact.sha256, offset, self._clock())
        return chosen.source if chosen else None

    def is_any_alive(self) -> bool:
        """Then the WAN is left alone, and what is not there yet is waited for."""
        now = self._clock()
        with self._lock:
            return any(one.may_help(now, self._still_seconds()) for one in self._ancestors)

    def is_ahead(self, artifact: Artifact, offset: int) -> bool:
        """A peer can give the next bytes at once, so that the WAN can be left."""
        now = self._clock()
        with self._lock:
            return any(
                one.is_usable(now) and one.has(artifact.sha256) > offset + one.margin
                for one in self._ancestors
            )

    def failed(self, source: PeerSource) -> None:
        """A stream of it could not be opened, or ended early."""
        with self._lock:
            for ancestor in self._of(source):
                ancestor.failed(self._clock())
            pollers = [poller for poller in self._pollers if poller.source is source]
        for poller in pollers:
            poller.ask_now()

    def refuse(self, source: PeerSource) -> None:
        """For the rest of the transfer."""
        with self._lock:
            for ancestor in self._of(source):
                ancestor.is_refused = True

    @property
    def poll_seconds(self) -> float:
        """Many peers are asked less often, but not so that they seem dead."""
        crowd = max(1.0, len(self._ancestors) / _POLLED_EACH_TIME)
        return min(self._pace.poll_seconds * crowd, self._pace.dead_seconds / 2)

    def poll(self, source: PeerSource) -> None:
        try:
            standing = source.standing()
        except Interruption:
            return
        except WeightsError as error:
            self.refuse(source)
            self._warn(str(error))
            return
        with self._lock:
            for ancestor in self._of(source):
                ancestor.heard(standing, self._clock())

    def review(self) -> None:
        """Leaves streams that give nothing, and tries another relay where one may be better."""
        now = self._clock()
        with self._lock:
            self._leave_dead(now)
            self._return_nearer(now)
            moment = self._moment(now)
            advised = self._detours.advise(moment) if moment else None
            better = next((one for one in self._ancestors if one.name == advised), None)
            own_rate = self._detours.rate() if better else 0.0
        if better is not None:
            self._try(better, own_rate)

    def _watch(self) -> None:
        while not self._ended.wait(self._pace.poll_seconds):
            self.review()

    def _of(self, source: PeerSource) -> list[Ancestor]:
        return [one for one in self._ancestors if one.source is source]

    def _still_seconds(self) -> float:
        """The further down a host is, the later it gives up on those above: not all at once."""
        return self._pace.retry_seconds * max(1, len(self._ancestors))

    def _choose(self, sha256: str, offset: int, now: float) -> Ancestor | None:
        """The nearest one that keeps up with this host, so that relays stay a chain."""
        still = self._still_seconds()
        usable = [
            one
            for one in self._ancestors
            if one.is_usable(now) and (one.has(sha256) > offset or not one.is_still(now, still))
        ]
        calm = [one for one in usable if one.is_calm(now)]
        held_bytes = sum(self._held().values())
        for one in calm:
            is_near = one.has(sha256) >= offset - one.margin
            if is_near and one.total >= held_bytes - one.margin:
                return one
        for some in (calm, usable):
            ahead = [one for one in some if one.has(sha256) > offset]
            if ahead:
                return ahead[0]
        return next(iter(calm or usable), None)

    def _chosen(self, stream: PeerStream, now: float) -> Ancestor | None:
        return self._choose(stream.artifact.sha256, stream.position, now)

    def _streams(self) -> list[tuple[Ancestor, PeerStream]]:
        return [(one, stream) for one in self._ancestors for stream in one.source.streams()]

    def _leave_dead(self, now: float) -> None:
        for one, stream in self._streams():
            has_more = one.has(stream.artifact.sha256) > stream.position
            is_stuck = has_more and now - stream.moved_at > self._pace.stall_seconds
            if is_stuck or not one.answers(now) or not self._chosen(stream, now):
                stream.abort()

    def _return_nearer(self, now: float) -> None:
        """To a relay that was dead, behind or slow and is so no longer: those further up have
        others to serve."""
        strays = [stream for one, stream in self._streams() if self._is_stray(one, stream, now)]
        self._stray_since = (self._stray_since or now) if strays else None
        if self._stray_since is None or now < self._next_return_at:
            return
        if now - self._stray_since >= self._pace.patience_seconds:
            self._next_return_at = now + self._return_pause
            self._return_pause = min(2 * self._return_pause, 4 * self._pace.rest_seconds)
            for stream in strays:
                stream.abort()

    def _is_stray(self, one: Ancestor, stream: PeerStream, now: float) -> bool:
        home = self._chosen(stream, now)
        return home is not None and self._ancestors.index(home) < self._ancestors.index(one)

    def _moment(self, now: float) -> Moment | None:
        streams = self._streams()
        if not streams:
            return None
        reading = {stream.artifact: stream.position for _, stream in streams}
        held_bytes = sum(self._held().values())
        return Moment(
            now,
            frozenset(one.name for one, _ in streams),
            held_bytes,
            self._total_bytes - held_bytes,
            tuple(_lead(one, reading, held_bytes) for one in self._ancestors if one.is_calm(now)),
        )

    def _try(self, better: Ancestor, own_rate: float) -> None:
        """A short read beside the running ones shows whether the other relay is quicker here."""
        wanted = max(
            (stream for _, stream in self._streams()),
            key=lambda stream: better.has(stream.artifact.sha256) - stream.position,
            default=None,
        )
        rate = measure(better.source, wanted, self._pace) if wanted else 0.0
        now = self._clock()
        with self._lock:
            if rate <= _QUICKER * own_rate:
                self._detours.did_not_help(now)
                return
            self._detours.helped(now)
            left = self._leave_for(better, now)
        if left:
            self._warn(f"{', '.join(left)}: too slow, reading from {better.name} instead")

    def _leave_for(self, better: Ancestor, now: float) -> list[str]:
        """Also those nearer than the better one, which wait for the same bytes."""
        nearer = self._ancestors[: self._ancestors.index(better)]
        left = []
        for one in self._ancestors:
            streams = one.source.streams()
            if one is not better and (streams or (one in nearer and one.is_calm(now))):
                one.left_as_slow(now)
                left.append(one.name)
                for stream in streams:
                    stream.abort()
        return left


class _Poller:
    """Asks one peer again and again, so that none of them waits for another."""

    def __init__(self, relays: Relays, source: PeerSource) -> None:
        self.source = source
        self._relays = relays
        self._wake = threading.Event()
        self._is_ended = False
        self._thread = threading.Thread(target=self._run, name=f"poll {source.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ask_now(self) -> None:
        self._wake.set()

    def end(self) -> None:
        self._is_ended = True
        self._wake.set()

    def _run(self) -> None:
        while not self._is_ended:
            self._wake.clear()
            self._relays.poll(self.source)
            if not self._is_ended:
                self._wake.wait(self._relays.poll_seconds)


def _lead(one: Ancestor, reading: Mapping[Artifact, int], held_bytes: int) -> Lead:
    return Lead(
        one.name,
        ahead_bytes=one.total - held_bytes,
        ready_bytes=sum(max(0, one.has(a.sha256) - at) for a, at in reading.items()),
        is_complete=all(one.has(a.sha256) == a.size for a in reading),
        margin=one.margin,
    )
