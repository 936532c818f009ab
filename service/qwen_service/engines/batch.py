"""Rows of one running batch over a cache that grows: join, leave and one token a step.

Knows tensors and rows, not requests: texts, stop strings and limits are judged above. Rows are
padded on the left; a batch of fixed slots over a static cache can take this one's place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from qwen_service.engines.sampling import Sampler
from qwen_service.inference import Chosen, StepFailed

# Bounds one step, and so how long running rows wait for those that join.
PREFILL_TOKENS = 512


@dataclass(slots=True)
class Row:
    key: str
    prompt: Sequence[int]
    sampler: Sampler
    # Tokens in the cache, and the one that goes in next.
    length: int = 0
    token: int = 0


class Rows:
    """Rows that share one cache and so one padded length."""

    def __init__(self, model: Any, rows: list[Row], mask: Tensor, cache: DynamicCache) -> None:
        self.model = model
        self.rows = rows
        self.mask = mask
        self.cache = cache

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        outputs = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = outputs.logits[:, -1]
        return logits

    def extend(self) -> list[Chosen]:
        device = self.mask.device
        ids = torch.tensor([[row.token] for row in self.rows], device=device)
        positions = torch.tensor([[row.length] for row in self.rows], device=device)
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        logits = self.forward(ids, self.mask, positions)
        for row in self.rows:
            row.length += 1
        return choose(self.rows, logits)

    def join(self, other: Rows) -> None:
        length = max(self.mask.shape[1], other.mask.shape[1])
        self.mask = torch.cat([_widened(rows.mask, length, dim=1) for rows in (self, other)])
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            for name in ("keys", "values"):
                parts = [_widened(getattr(layer, name), length, dim=2) for layer in (mine, theirs)]
                setattr(mine, name, torch.cat(parts))
        self.rows = [*self.rows, *other.rows]

    def keep(self, kept: Sequence[int]) -> None:
        """Drops all other rows, and the padding that only they needed."""
        self.rows = [self.rows[index] for index in kept]
        indices = torch.tensor(kept, device=self.mask.device)
        length = max(row.length for row in self.rows)
        self.mask = self.mask[indices, -length:]
        for layer in self.cache.layers:
            for name in ("keys", "values"):
                states = getattr(layer, name)
                setattr(layer, name, states[indices.to(states.device), :, -length:])


def _widened(states: Tensor, length: int, *, dim: int) -> Tensor:
    missing = length - states.shape[dim]
    after = states.dim() - 1 - dim
    return torch.nn.functional.pad(states, (0, 0) * after + (missing, 0))


class Prefill(Rows):
    """Prompts on their way into the cache, a bounded part a step."""

    def __init__(self, model: Any, rows: list[Row], device: torch.device) -> None:
        length = max(len(row.prompt) for row in rows)
        padded = [[0] * (length - len(row.prompt)) + list(row.prompt) for row in rows]
        mask = [[0] * (length - len(row.prompt)) + [1] * len(row.prompt) for row in rows]
        super().__init__(model, rows, torch.tensor(mask, device=device), DynamicCache())
        self.ids = torch.tensor(padded, device=device)
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self.read = 0

    def extend(self) -> list[Chosen]:
        """Reads on; the last part gives every row its first token."""
        end = min(self.read + PREFILL_TOKENS, self.ids.shape[1])
        part = slice(self.read, end)
        logits = self.forward(self.ids[:, part], self.mask[:, :end], self.positions[:, part])
        self.read = end
        if not self.is_read:
            return []
        for row in self.rows:
            row.length = len(row.prompt)
        return choose(self.rows, logits)

    @property
    def is_read(self) -> bool:
        return self.read == self.ids.shape[1]


def choose(rows: Sequence[Row], logits: Tensor) -> list[Chosen]:
    greatest, greedy = logits.max(dim=-1)
    tokens = [
        greedy[index]
        if row.sampler.is_greedy and not row.sampler.has_penalties
        else row.sampler.choose(logits[index])
        for index, row in enumerate(rows)
    ]
    # A greatest that is no number gives away every row with NaN in it, at no cost.
    sane = greatest.isfinite()
    numbers = torch.stack([*tokens, *sane.to(greedy.dtype)]).tolist()
    for row, token in zip(rows, numbers, strict=False):
        row.token = token
    return [
        Chosen(row.key, row.token if is_sane else None)
        for row, is_sane in zip(rows, numbers[len(rows) :], strict=True)
    ]


class GrowingBatch:
    def __init__(self, model: Any, *, device: torch.device, most_rows: int) -> None:
        self._model = model
        self._device = device
        self._most_rows = most_rows
        self._queue: deque[Row] = deque()
        self._prefill: Prefill | None = None
        self._running: Rows | None = None
        self._gone: set[str] = set()

    def has_room(self) -> bool:
        return len(self._keys()) < self._most_rows

    def add(self, row: Row) -> None:
        self._queue.append(row)

    def remove(self, key: str) -> None:
        # Taken out with the next step: several that leave at once cost one copy of the cache.
        if key in self._keys():
            self._gone.add(key)

    def _keys(self) -> set[str]:
        groups = (self._running, self._prefill)
        rows = [*self._queue, *(row for group in groups if group for row in group.rows)]
        return {row.key for row in rows} - self._gone

    def extend(self) -> list[Chosen]:
        self._compact()
        if self._running is None:
            return []
        try:
            return self._running.extend()
        except Exception as error:
            rows, self._running = self._running.rows, None
            raise self._failed(rows, error) from error

    def prefill(self) -> list[Chosen]:
        self._compact()
        if self._prefill is None and self._queue:
            self._prefill = Prefill(self._model, self._next_group(), self._device)
        if self._prefill is None:
            return []
        prefill = self._prefill
        try:
            chosen = prefill.extend()
        except Exception as error:
            self._prefill = None
            raise self._failed(prefill.rows, error) from error
        if prefill.is_read:
            self._prefill = None
            self._join(prefill)
        return [choice for choice in chosen if choice.key not in self._gone]

    def _next_group(self) -> list[Row]:
        """Short prompts are read together, a long one by itself."""
        group = [self._queue.popleft()]
        longest = len(group[0].prompt)
        while self._queue:
            longest = max(longest, len(self._queue[0].prompt))
            if longest * (len(group) + 1) > PREFILL_TOKENS:
                break
            group.append(self._queue.popleft())
        return group

    def _join(self, read: Prefill) -> None:
        running, self._running = self._running, None
        joined = Rows(self._model, read.rows, read.mask, read.cache)
        if running:
            try:
                running.join(joined)
            except Exception as error:
                raise self._failed([*running.rows, *joined.rows], error) from error
        self._running = running or joined

    def _compact(self) -> None:
        if not self._gone:
            return
        self._queue = deque(row for row in self._queue if row.key not in self._gone)
        if self._prefill and all(row.key in self._gone for row in self._prefill.rows):
            self._prefill = None
        if self._running:
            rows = self._running.rows
            kept = [index for index, row in enumerate(rows) if row.key not in self._gone]
            if not kept:
                self._running = None
            elif len(kept) < len(rows):
                self._running.keep(kept)
        # Rows among others that are still being read leave once they are read.
        reading = {row.key for row in self._prefill.rows} if self._prefill else set()
        self._gone &= reading

    def _failed(self, rows: Sequence[Row], error: Exception) -> StepFailed:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        alive = [row.key for row in rows if row.key not in self._gone]
        return StepFailed(alive, f"{type(error).__name__}: {error}")
