"""Samples become figures: rates, percentiles, errors by kind. Knows no request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qwen_deploy.load.request import Sample

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Spread:
    """In seconds; None where nothing was measured."""

    p50: float | None
    p95: float | None
    p99: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        ordered = sorted(values)
        return cls(*(_percentile(ordered, percent) for percent in PERCENTILES))


@dataclass(frozen=True, slots=True)
class Level:
    """What one number of requests at a time came to."""

    concurrency: int
    requests: int
    answered: int
    seconds: float
    requests_per_second: float
    tokens: int
    tokens_per_second: float
    prompt_tokens: int
    first_token: Spread
    inter_token: Spread
    end_to_end: Spread
    errors: dict[str, int]
    # Where a server counts no tokens, its pieces stand for them.
    counts_pieces: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def level(concurrency: int, samples: Sequence[Sample]) -> Level:
    answered = [one for one in samples if one.error is None]
    begins = min((one.asked_at for one in samples), default=0.0)
    seconds = max((one.ended_at for one in samples), default=0.0) - begins
    counts_pieces = any(one.tokens is None for one in answered)
    tokens = sum(one.pieces if one.tokens is None else one.tokens for one in answered)
    return Level(
        concurrency=concurrency,
        requests=len(samples),
        answered=len(answered),
        seconds=seconds,
        requests_per_second=len(answered) / seconds if seconds else 0.0,
        tokens=tokens,
        tokens_per_second=tokens / seconds if seconds else 0.0,
        prompt_tokens=sum(one.prompt_tokens or 0 for one in answered),
        first_token=Spread.of(one.first_at - one.asked_at for one in answered if one.first_at),
        inter_token=Spread.of(gap for one in answered for gap in one.gaps),
        end_to_end=Spread.of(one.ended_at - one.asked_at for one in answered),
        errors=dict(Counter(one.error for one in samples if one.error).most_common()),
        counts_pieces=counts_pieces,
    )


def _percentile(ordered: Sequence[float], percent: int) -> float | None:
    """The smallest value that at least `percent` of a hundred do not exceed (nearest rank)."""
    if not ordered:
        return None
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
