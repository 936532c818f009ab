"""What comes of asking a source: the artifacts, and from where hosts read them. Does not know how a
source is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_weights.manifest import Manifest

from qwen_deploy.content import Shareable

UNVERIFIED = "unverified"  # begins the note on what nobody has proven


@dataclass(frozen=True, slots=True, repr=False)
class Upstream:
    """One entry of sources.json on hosts, which may hold a token."""

    entry: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Upstream({self.name}: {self.entry.get('url') or self.entry.get('path')})"

    @property
    def name(self) -> str:
        return str(self.entry["name"])

    def only(self, paths: Sequence[str]) -> Upstream:
        """The same for some of the artifacts."""
        return Upstream({**self.entry, "paths": sorted(paths)})


@dataclass(frozen=True, slots=True)
class Pinned:
    """`upstreams` are what hosts read themselves, the best first; `share` is what this machine
    serves through a tunnel, in a `sequence` where that matters; `notes` are for the operator."""

    manifest: Manifest
    upstreams: tuple[Upstream, ...]
    share: Shareable | None
    notes: tuple[str, ...] = ()
    sequence: tuple[str, ...] = ()
