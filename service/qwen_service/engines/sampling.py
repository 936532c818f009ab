"""The choice of a row's next token: the model's defaults, what a request wishes, its own chance.

Rows are drawn together for speed, but no number of one enters another's.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwen_service.engine import Sampling
from qwen_service.engines.grammar import Guide

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
    """All of one answer that its next token depends on, beside the logits."""

    def __init__(
        self,
        sampling: Sampling,
        defaults: Defaults,
        prompt: Sequence[int],
        guide: Guide | None = None,
    ) -> None:
        def chosen(wish: float | None, default: float) -> float:
            return default if wish is None else wish

        self.temperature = chosen(sampling.temperature, defaults.temperature)
        self.top_p = chosen(sampling.top_p, defaults.top_p)
        self.top_k = int(chosen(sampling.top_k, defaults.top_k))
        self.min_p = chosen(sampling.min_p, defaults.min_p)
        self.logprobs = sampling.logprobs
        self.prompt_length = len(prompt)
        self.guide = guide
        self.repetition = chosen(sampling.repetition_penalty, defaults.repetition_penalty)
        self.presence = sampling.presence_penalty
        self.frequency = sampling.frequency_penalty
        self._bias = sampling.logit_bias
        self._seed = sampling.seed
        self._random = random.Random(sampling.seed)
        # Tokens of the prompt and the answer, each once; those of the answer and how often.
        self.seen = array("q", sorted(set(prompt)) if self.repetition != 1.0 else ())
        self._is_seen = set(self.seen)
        self.counted = array("q")
        self.counts = array("f")
        self._places: dict[int, int] = {}

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_TEMPERATURE

    @property
    def stands_alone(self) -> bool:
        """Whether the same must come again: company changes the last digits, and so some tokens."""
        return self._seed is not None and not self.is_greedy

    @property
    def is_plain(self) -> bool:
        return not (self.seen or self.counted or self._bias or self.guide)

    def chance(self) -> float:
        return self._random.random()

    def accept(self, token: int) -> None:
        if self.repetition != 1.0 and token not in self._is_seen:
            self._is_seen.add(token)
            self.seen.append(token)
        if self.presence or self.frequency:
            if token not in self._places:
                self._places[token] = len(self.counted)
                self.counted.append(token)
                self.counts.append(0.0)
            self.counts[self._places[token]] += 1.0
        if self.guide:
            self.guide.accept(token)

    def edit(self, scores: Tensor) -> None:
        """The bias, and what the constraint forbids, into one row of scores."""
        if self._bias:
            tokens = torch.tensor([token for token, _ in self._bias], device=scores.device)
            scores[tokens] += scores.new_tensor([bias for _, bias in self._bias])
        if self.guide and (allowed := self.guide.allowed()) is not None:
            is_allowed = torch.frombuffer(allowed, dtype=torch.uint8).to(scores.device)
            scores[: len(allowed)].masked_fill_(is_allowed == 0, -torch.inf)
            scores[len(allowed) :] = -torch.inf


def choose(samplers: Sequence[Sampler], logits: Tensor) -> Tensor:
    """One token for each row of logits."""
    if all(sampler.is_greedy and sampler.is_plain for sampler in samplers):
        return logits.argmax(-1)
    scores = logits.to(torch.float32, copy=True)
    _penalize(samplers, scores)
    for row, sampler in enumerate(samplers):
        sampler.edit(scores[row])
    tokens = scores.argmax(-1)
    for rows in _alike(samplers, scores.shape[-1]):
        tokens[torch.tensor(rows, device=tokens.device)] = _drawn(
            [samplers[row] for row in rows],
            scores if len(rows) == len(samplers) else scores[rows],
        )
    return tokens


def _penalize(samplers: Sequence[Sampler], scores: Tensor) -> None:
    """Of all rows at once; the repetition penalty looks at the prompt too, the others do not."""
    if any(sampler.seen for sampler in samplers):
        places = _places([sampler.seen for sampler in samplers], scores.device)
        penalty = _column([sampler.repetition for sampler in samplers], scores)[places[0], 0]
        old = scores[places]
        scores[places] = torch.where(old > 0, old / penalty, old * penalty)
    if any(sampler.counted for sampler in samplers):
        places = _places([sampler.counted for sampler in samplers], scores.device)
        counts = torch.cat(
            [torch.frombuffer(it.counts, dtype=torch.float) for it in samplers if it.counts]
        )
        presence = _column([sampler.presence for sampler in samplers], scores)[places[0], 0]
        frequency = _column([sampler.frequency for sampler in samplers], scores)[places[0], 0]
        scores[places] -= frequency * counts.to(scores.device) + presence


def _places(tokens: Sequence[array[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and token of each."""
    lengths = torch.tensor([len(row) for row in tokens])
    rows = torch.arange(len(tokens)).repeat_interleave(lengths)
    flat = torch.cat([torch.frombuffer(row, dtype=torch.long) for row in tokens if row])
    return rows.to(device), flat.to(device)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    # A wish may be more than float32 holds.
    column = torch.tensor(values, dtype=torch.float64, device=like.device)
    return column.float().unsqueeze(1)


def _alike(samplers: Sequence[Sampler], vocabulary: int) -> list[list[int]]:
    """Rows that are sampled the same way; another's top_k must not change what one sees."""
    groups: dict[tuple[int, bool], list[int]] = {}
    for row, sampler in enumerate(samplers):
        if not sampler.is_greedy:
            top_k = sampler.top_k if 0 < sampler.top_k < vocabulary else 0
            groups.setdefault((top_k, sampler.top_p < 1.0), []).append(row)
    return list(groups.values())


def _drawn(samplers: Sequence[Sampler], scores: Tensor) -> Tensor:
    first = samplers[0]
    temperatures = _column([sampler.temperature for sampler in samplers], scores)
    scores = (scores - scores.amax(-1, keepdim=True)) / temperatures
    tokens: Tensor | None = None
    if 0 < first.top_k < scores.shape[-1]:
        scores, tokens = scores.topk(first.top_k)
    elif first.top_p < 1.0:
        scores, tokens = scores.sort(descending=True)
    odds = scores.softmax(-1)
    if first.top_p < 1.0:
        # The most likely token stays, however small top_p is.
        before = odds.cumsum(-1) - odds
        top_p = _column([sampler.top_p for sampler in samplers], scores)
        odds = torch.where((before < top_p) | (before <= 0), odds, 0.0)
    if any(sampler.min_p > 0.0 for sampler in samplers):
        least = _column([sampler.min_p for sampler in samplers], scores)
        least = least * odds.amax(-1, keepdim=True)
        odds = torch.where(odds >= least, odds, 0.0)
    sums = odds.cumsum(-1)
    # One number a token, drawn on the CPU: the same on every device.
    points = sums[:, -1:] * _column([sampler.chance() for sampler in samplers], scores)
    # Rounding must not lead past the last token that has any odds.
    last = torch.searchsorted(sums, sums[:, -1:].contiguous())
    index = torch.searchsorted(sums, points, right=True).minimum(last)
    index = index.clamp(max=sums.shape[-1] - 1)
    return (index if tokens is None else tokens.gather(-1, index)).squeeze(1)
