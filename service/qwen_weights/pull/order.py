"""What order.json says: what to bring where, within which limits, and with whom to share it. It
stays as it is while the transfer lives. Does not know sources."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import time
from pathlib import Path
from typing import Any

from qwen_weights import manifest as manifests
from qwen_weights.fields import Fields, load
from qwen_weights.manifest import Manifest
from qwen_weights.pull.rate import Rates
from qwen_weights.relay.share import Share
from qwen_weights.sources import Patience

NAME = "order.json"
SCHEMA = 1
_CLOCK = re.compile(r"([01]\d|2[0-3]):[0-5]\d")


@dataclass(frozen=True)
class Limits:
    connections: int = 4
    retry_seconds: float = 60  # without a single byte from anywhere
    reserve_bytes: int = 64 << 20  # a full disk stops more than a transfer
    patience: Patience = field(default_factory=Patience)
    rates: Rates = field(default_factory=Rates)


@dataclass(frozen=True)
class Order:
    root: Path
    manifests: tuple[Manifest, ...]
    limits: Limits = Limits()
    share: Share | None = None
    repair: bool = False
    sequence: tuple[str, ...] = ()

    @property
    def manifest_id(self) -> str:
        return manifests.manifest_id(self.manifests)


def read(directory: Path) -> Order:
    fields = load(directory / NAME)
    fields.allow(("schema", "root", "manifests", "limits"), ("share", "repair", "sequence"))
    fields.require("schema", SCHEMA)
    root = Path(fields.text("root"))
    if not root.is_absolute():
        fields.refuse("root", "should be an absolute path")
    return Order(
        root,
        _manifests(fields),
        _limits(Fields(fields.any("limits"), f"{fields.where}: limits")),
        _share(fields.any("share"), f"{fields.where}: share"),
        fields.flag("repair") if fields.has("repair") else False,
        tuple(fields.texts("sequence")) if fields.has("sequence") else (),
    )


def _manifests(fields: Fields) -> tuple[Manifest, ...]:
    rows = fields.rows("manifests")
    if not rows:
        fields.refuse("manifests", "should be a list with at least one manifest")
    parsed = tuple(manifests.parse(json.dumps(row)) for row in rows)
    if len({(one.model, one.revision) for one in parsed}) < len(parsed):
        fields.refuse("manifests", "each revision should be there once")
    return parsed


def _limits(fields: Fields) -> Limits:
    fields.allow(
        ("connections", "retry_seconds", "stall_seconds", "reserve_bytes"),
        ("rate", "night_rate", "night", "slow_bytes", "slow_seconds"),
    )
    return Limits(
        fields.count("connections", least=1),
        fields.number("retry_seconds"),
        fields.count("reserve_bytes"),
        _patience(fields),
        _rates(fields),
    )


def _patience(fields: Fields) -> Patience:
    stall = fields.number("stall_seconds", least=0.01)
    slow, seconds = Patience.slow_bytes, Patience.slow_seconds
    if fields.has("slow_bytes"):
        slow = fields.count("slow_bytes")
    if fields.has("slow_seconds"):
        seconds = fields.number("slow_seconds", least=0.01)
    return Patience(stall, slow, seconds)


def _rates(fields: Fields) -> Rates:
    """At night as by day unless it is said; 0 at night is without limit."""
    day = fields.number("rate", least=1) if fields.has("rate") else None
    night = fields.number("night_rate") or None if fields.has("night_rate") else day
    if not fields.has("night"):
        return Rates(day, night)
    ends = fields.texts("night")
    if len(ends) != 2 or not all(_CLOCK.fullmatch(end) for end in ends):
        fields.refuse("night", "should be two times such as 22:00 and 06:00")
    return Rates(day, night, *map(time.fromisoformat, ends))


def _share(value: Any, where: str) -> Share | None:
    if value is None:
        return None
    fields = Fields(value, where)
    fields.allow(("address", "port", "token", "idle_seconds"))
    return Share(
        fields.text("address"),
        fields.count("port"),
        fields.text("token"),
        fields.number("idle_seconds"),
    )
