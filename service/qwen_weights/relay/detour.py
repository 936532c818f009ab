"""When a host that reads from a relay had better read from another: judged by how far each has
come, measured over some seconds. Knows no sockets and no clock; it only advises a try."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qwen_weights.relay.ancestor import Pace

# Another gains on this host by that much of this host's own rate: less is noise.
_GAIN = 0.25
# Less than that is over before a move has paid.
_WORTH_SECONDS = 5.0


@dataclass(frozen=True)
class Lead:
    """How far one relay is, compared with this host."""

    name: str
    ahead_bytes: int  # in all
    ready_bytes: int  # of what this host reads now
    is_complete: bool  # it has all of what this host reads now
    margin: float


@dataclass(frozen=True)
class Moment:
    """What was so at one time; `leads` of calm relays, the nearest first."""

    at: float
    in_use: frozenset[str]
    held_bytes: int
    missing_bytes: int
    leads: Sequence[Lead]


class Detours:
    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._moments: deque[Moment] = deque()
        self._since: dict[str, float] = {}
        self._next_try_at = 0.0
        self._fruitless = 0

    def rate(self) -> float:
        """Of this host, over the window."""
        first, last = self._moments[0], self._moments[-1]
        seconds = last.at - first.at
        return (last.held_bytes - first.held_bytes) / seconds if seconds > 0 else 0.0

    def advise(self, moment: Moment) -> str | None:
        """The name of a relay that might be quicker, if it is time to try one."""
        moments = self._moments
        moments.append(moment)
        while len(moments) > 1 and moment.at - moments[1].at >= self._pace.window_seconds:
            moments.popleft()
        gaining = {lead.name for lead in moment.leads if self._gains(lead, moment)}
        self._since = {name: self._since.get(name, moment.at) for name in gaining}
        better = [
            lead for lead in moment.leads if lead.name in gaining and moment.in_use != {lead.name}
        ]
        if not better or moment.at < self._next_try_at:
            return None
        nearest = better[0].name
        waited = moment.at - self._since[nearest]
        return nearest if waited >= self._turn(nearest, moment) else None

    def _turn(self, name: str, moment: Moment) -> float:
        """Whoever stands right behind the gap goes first: those further down may be helped by
        that, and one relay can not serve them all."""
        nearer = moment.leads[: [lead.name for lead in moment.leads].index(name)]
        held_up = [lead for lead in nearer if lead.ahead_bytes < lead.margin]
        return self._pace.patience_seconds * max(1, len(held_up))

    def helped(self, now: float) -> None:
        self._fruitless = 0
        self._begin_again(now + self._pace.rest_seconds / 3)

    def did_not_help(self, now: float) -> None:
        """The own link is the limit, as far as one can see: asked less and less often."""
        pause = self._pace.rest_seconds * 2 ** min(self._fruitless, 5)
        self._fruitless += 1
        self._begin_again(now + pause)

    def _begin_again(self, next_try_at: float) -> None:
        self._next_try_at = next_try_at
        self._since = {}
        self._moments.clear()

    def _gains(self, lead: Lead, moment: Moment) -> bool:
        then = self._moments[0]
        seconds = moment.at - then.at
        before = _by_name(then.leads).get(lead.name)
        if before is None or seconds < self._pace.window_seconds:
            return False
        own = moment.held_bytes - then.held_bytes
        if own <= 0:
            return lead.ready_bytes > 0
        if min(lead.ahead_bytes, lead.ready_bytes) < lead.margin:
            return False
        if moment.missing_bytes / (own / seconds) < _WORTH_SECONDS:
            return False
        return lead.is_complete or lead.ahead_bytes - before.ahead_bytes > _GAIN * own


def _by_name(leads: Sequence[Lead]) -> Mapping[str, Lead]:
    return {lead.name: lead for lead in leads}
