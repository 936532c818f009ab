"""From where the hosts will read their weights: the sources as the hosts themselves find them, by
reach and speed. Changes nothing and starts nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwen_weights.manifest import Manifest

from qwen_deploy import commands, parallel
from qwen_deploy.chain import FanOut, Member, ancestors, ordered
from qwen_deploy.config import Deployment
from qwen_deploy.errors import QwenDeployError, Refused
from qwen_deploy.facts import Facts
from qwen_deploy.remote import Session
from qwen_deploy.sources import Pinned, Upstream
from qwen_deploy.weights import Order, packed

# A hard link is the same file; only some file systems can share the content of two.
SHARED = " (shared with it, not copied: do not write into its files)"
TOKEN_FILES = ("huggingface", "modelscope")


@dataclass(frozen=True, slots=True)
class Reading:
    """What one host found of one source; `rate` in bytes a second. One that says no, which is
    final, or that it is busy, is reached all the same; it `wants_token` where another one might
    help."""

    name: str
    rate: float
    error: str | None = None
    is_reached: bool = True
    is_final: bool = False
    wants_token: bool = False


@dataclass(frozen=True, slots=True)
class Supply:
    """`pinned` with its sources in the order of use. `local` are entries of sources.json that only
    one host has, `readings` what the hosts found of the common ones, `lends_network` that they read
    through this machine's network, because theirs leads to none, `limit` bytes a second."""

    pinned: Pinned
    local: Mapping[str, tuple[Mapping[str, Any], ...]]
    readings: Mapping[str, tuple[Reading, ...]]
    lends_network: bool = False
    limit: int | None = None

    @property
    def is_reached(self) -> bool:
        """Some host found a source, or needs none of those that all share."""
        found = [one.is_reached for told in self.readings.values() for one in told]
        return any(found) or not found

    @property
    def is_denied(self) -> bool:
        """Every source says no to every host."""
        found = [one.is_final for told in self.readings.values() for one in told]
        return bool(found) and all(found)

    def member(
        self, session: Session, facts: Facts, manifests: tuple[Manifest, ...], *, holds: bool
    ) -> Member:
        name = session.host.name
        reaches = any(one.is_reached for one in self.readings.get(name, ()))
        return Member(
            session,
            facts.address or session.host.address,
            manifests,
            holds=holds,
            reaches=reaches or not self.pinned.upstreams,
            entries=self.local.get(name, ()),
        )

    def rate(self, host: str) -> float | None:
        """Of the best source that this host reaches, as far as it may."""
        rates = [one.rate for one in self.readings.get(host, ()) if one.error is None]
        best = max(rates, default=None)
        return min(best, self.limit) if best and self.limit else best

    def routes(self, members: Sequence[Member], fan_out: FanOut) -> dict[str, Route]:
        line = ordered(members)
        before = ancestors([one.name for one in line], fan_out)
        head_rate = next((self.rate(one.name) for one in line if not one.holds), None)
        return {
            one.name: self._route(one, before[one.name], head_rate) for one in line if not one.holds
        }

    def _route(self, member: Member, before: Sequence[str], head_rate: float | None) -> Route:
        if member.entries:
            entry = member.entries[0]
            return Route(f"from {entry['name']}{SHARED if entry['kind'] == 'folder' else ''}", None)
        if before:
            return Route(f"from {before[0]}", head_rate, is_limit=self._is_limit(head_rate))
        if self.pinned.upstreams:
            way = " through this machine" if self.lends_network else ""
            name = self.pinned.upstreams[0].name
            rate = self.rate(member.name)
            return Route(f"from {name}{way}", rate, is_limit=self._is_limit(rate))
        return Route("from this machine", None)

    def _is_limit(self, rate: float | None) -> bool:
        return rate is not None and rate == self.limit


@dataclass(frozen=True, slots=True)
class Route:
    """In words, and how quick: bytes a second, measured where they are not the limit."""

    text: str
    rate: float | None
    is_limit: bool = False

    @property
    def place(self) -> str:
        return self.text.removeprefix("from ")

    def eta_seconds(self, missing_bytes: int) -> float | None:
        return missing_bytes / self.rate if self.rate else None


def look(
    sessions: Sequence[Session],
    deployment: Deployment,
    pinned: Pinned,
    local: Mapping[str, tuple[Mapping[str, Any], ...]],
) -> Supply:
    """Asks every session's host what it reaches."""
    if not pinned.upstreams or not sessions:
        return Supply(pinned, local, {})
    order = Order((pinned.manifest,), deployment.weights)
    stdin = packed(order, [one.entry for one in pinned.upstreams])

    def ask(session: Session) -> tuple[Reading, ...]:
        done = session.run(commands.agent(["probe", "--dir", "."]), root=True, stdin=stdin)
        if not done.ok:
            return (Reading("the probe", 0.0, done.stderr.strip() or "it failed", False),)
        told = json.loads(done.stdout)["sources"]
        return tuple(
            Reading(
                one["name"],
                one["rate"] or 0.0,
                one["error"],
                one["reached"],
                one["final"],
                wants_token=one.get("kind") == "auth",
            )
            for one in told
        )

    asked = parallel.each(sessions, ask)
    readings: dict[str, tuple[Reading, ...]] = {}
    for session, result in zip(sessions, asked, strict=True):
        if isinstance(result, QwenDeployError):
            raise result
        readings[session.host.name] = result
    limit, _ = deployment.weights.rates
    return Supply(_best_first(pinned, readings), local, readings, limit=limit)


def _best_first(pinned: Pinned, readings: Mapping[str, tuple[Reading, ...]]) -> Pinned:
    """By the best rate that any host measured; what nobody reaches comes last."""
    rates: dict[str, float] = {}
    for reading in (one for found in readings.values() for one in found if one.error is None):
        rates[reading.name] = max(reading.rate, rates.get(reading.name, 0.0))

    def rank(upstream: Upstream) -> float:
        return -rates.get(upstream.name, -1.0)

    return replace(pinned, upstreams=tuple(sorted(pinned.upstreams, key=rank)))


class SourcesUnreachable(Refused):
    """No source answers this host, or none lets it in."""

    exit_code = 4


def refusal(session: Session, found: Supply) -> Refused:
    host = session.host.name
    readings = found.readings.get(host, ())
    secret = [one for one in readings if one.wants_token]
    is_out_of_reach = bool(secret) or not any(one.is_reached for one in readings)
    kind = SourcesUnreachable if is_out_of_reach else Refused
    return kind(
        f"`{host}` gets the weights from none of their sources",
        host=host,
        state=f"{host} was not changed",
        evidence=tuple(f"{one.name}: {one.error}" for one in readings)[:5],
        origin=f"asked from {host}",
        hint=_token_hint(secret[0].name)
        if secret
        else "name another one: --weights, or `model: source` in qwen-deploy.yml",
    )


def _token_hint(source: str) -> str:
    keys = [f"weights/{hub}_token_file" for hub in TOKEN_FILES if source in (hub, "git-lfs")]
    keys = keys or [f"weights/{hub}_token_file" for hub in TOKEN_FILES]
    return f"ask for access there, and name a file with your token: {' or '.join(keys)}"
