"""Who reads from whom, when several hosts get the same weights. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwen_weights.manifest import Manifest

from qwen_deploy.remote import Session

FanOut = Literal["auto", "tree", "none"]
# Nearest first; the first host of all is always among them.
NEAREST = 4


@dataclass(frozen=True, slots=True)
class Member:
    """`manifests` is what it is to have, or has. `holds` says that everything lies there already,
    `reaches` that it can read what all read; `entries` are sources that only this host has
    (sources.json)."""

    session: Session
    address: str
    manifests: tuple[Manifest, ...]
    holds: bool = False
    reaches: bool = True
    entries: tuple[Mapping[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return self.session.host.name


def ancestors(names: Sequence[str], fan_out: FanOut) -> dict[str, tuple[str, ...]]:
    """From whom each host reads, the best first; the first host, or each one, reads the hub."""
    if fan_out == "none" or len(names) < 2:
        return dict.fromkeys(names, ())
    step = 1 if fan_out == "auto" else 2
    lines: dict[int, tuple[int, ...]] = {0: ()}
    for at in range(1, len(names)):
        parent = (at - 1) // step
        lines[at] = (parent, *lines[parent])
    return {
        names[at]: tuple(names[one] for one in dict.fromkeys((*line[:NEAREST], *line[-1:])))
        for at, line in lines.items()
    }


def ordered(members: Sequence[Member]) -> tuple[Member, ...]:
    """Those that hold everything first, then those that reach a source by themselves."""
    rank = sorted(members, key=lambda one: (not one.holds, not one.entries, not one.reaches))
    holders = [one for one in rank if one.holds][:NEAREST]
    return (*holders, *(one for one in rank if not one.holds))
