"""How one row chooses its next token: its own penalties, filters and random numbers.

Knows nothing of other rows, so a seeded answer does not depend on its company.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwen_service.engine import Sampling

# Below this, dividing by the temperature leaves nothing but the greatest.
GREEDY_TEMPERATURE = 1e-4


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the model's generation_config.json asks for."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float

    @classmethod
    def from_config(cls, config: Any) -> Defaults:
        def or_else(value: float | None, neutral: float) -> float:
            return neutral if value is None else value

        return cls(
            temperature=or_else(config.temperature, 1.0) if config.do_sample else 0.0,
            top_p=or_else(config.top_p, 1.0),
            top_k=int(or_else(config.top_k, 0)),
            min_p=or_else(config.min_p, 0.0),
            repetition_penalty=or_else(config.repetition_penalty, 1.0),
        )


class Sampler:
    def __init__(self, sampling: Sampling, defaults: Defaults, prompt: Sequence[int]) -> None:
        def chosen(wish: float | None, default: float) -> float:
            return default if wish is None else wish

        self._temperature = chosen(sampling.temperature, defaults.temperature)
        self._top_p = chosen(sampling.top_p, defaults.top_p)
        self._top_k = int(chosen(sampling.top_k, defaults.top_k))
        self._min_p = chosen(sampling.min_p, defaults.min_p)
        self._repetition = chosen(sampling.repetition_penalty, defaults.repetition_penalty)
        self._presence = sampling.presence_penalty
        self._frequency = sampling.frequency_penalty
        self._random = random.Random(sampling.seed)
        self._prompt = prompt
        self._seen: Tensor | None = None
        self._counts: Tensor | None = None

    @property
    def is_greedy(self) -> bool:
        return self._temperature < GREEDY_TEMPERATURE

    @property
    def has_penalties(self) -> bool:
        return self._repetition != 1.0 or self._presence != 0.0 or self._frequency != 0.0

    def choose(self, logits: Tensor) -> Tensor:
        """One token for one row of logits, as a scalar on their device."""
        scores = logits.float()
        if self.has_penalties:
            scores = self._penalized(scores)
        token = scores.argmax() if self.is_greedy else self._drawn(scores)
        if self._seen is not None and self._counts is not None:
            self._seen.index_fill_(0, token.view(1), True)
            self._counts.index_add_(0, token.view(1), self._counts.new_ones(1))
        return token

    def _penalized(self, scores: Tensor) -> Tensor:
        if self._seen is None or self._counts is None:
            self._counts = torch.zeros_like(scores)
            self._seen = torch.zeros_like(scores, dtype=torch.bool)
            self._seen[torch.tensor(self._prompt, device=scores.device)] = True
        # The repetition penalty looks at the prompt too, the other two at the answer alone.
        repeated = torch.where(scores > 0, scores / self._repetition, scores * self._repetition)
        scores = torch.where(self._seen, repeated, scores)
        return scores - self._frequency * self._counts - self._presence * (self._counts > 0)

    def _drawn(self, scores: Tensor) -> Tensor:
        scores = (scores - scores.max()) / self._temperature
        tokens: Tensor | None = None
        if 0 < self._top_k < scores.numel():
            scores, tokens = scores.topk(self._top_k)
        elif self._top_p < 1.0:
            scores, tokens = scores.sort(descending=True)
        odds = scores.softmax(-1)
        if self._top_p < 1.0:
            # The most likely token stays, however small top_p is.
            before = odds.cumsum(-1) - odds
            odds = torch.where((before < self._top_p) | (before <= 0), odds, 0.0)
        if self._min_p > 0.0:
            odds = torch.where(odds >= self._min_p * odds.max(), odds, 0.0)
        sums = odds.cumsum(-1)
        # One number a token, drawn on the CPU: the same on every device.
        point = sums[-1] * self._random.random()
        index = torch.searchsorted(sums, point.view(1), right=True).clamp(max=sums.numel() - 1)
        return (index if tokens is None else tokens[index]).squeeze(0)
