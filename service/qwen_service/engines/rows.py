"""Rows of tokens that share one cache and one forward: prompts being read, answers being written.

Knows tensors, not requests and not how much memory there is. Rows end at the same place and are
padded on the left; a row that left keeps its place until another needs it or all are gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from qwen_service.engines.cache import gathered, new_cache
from qwen_service.engines.sampling import Sampler


@dataclass(slots=True, eq=False)
class Row:
    key: str
    tokens: Sequence[int]
    # None in a model of embeddings.
    sampler: Sampler | None = None
    # Tokens in the cache, and the one that goes in next.
    length: int = 0
    token: int = 0
    is_gone: bool = False

    @property
    def stands_alone(self) -> bool:
        return self.sampler is not None and self.sampler.stands_alone

    @property
    def prompt_length(self) -> int:
        """Of the prompt alone, where a part of the answer is read again with it."""
        return self.sampler.prompt_length if self.sampler else len(self.tokens)


class Group:
    def __init__(self, model: Any, rows: list[Row], mask: Tensor, cache: Cache) -> None:
        self.model = model
        self.rows = rows
        # As wide as the cache's storage; its first `width` columns are filled.
        self.mask = mask
        self.cache = cache
        self.width = 0

    @property
    def live(self) -> list[int]:
        return [index for index, row in enumerate(self.rows) if not row.is_gone]

    @property
    def held_tokens(self) -> int:
        """What the cache takes, padding and room to grow included."""
        return self.mask.numel()

    def forward(self, ids: Tensor, positions: Tensor, **wishes: Any) -> Any:
        self.width += ids.shape[1]
        return self.model(
            input_ids=ids,
            attention_mask=self.mask[:, : self.width],
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **wishes,
            **self.row_inputs(),
        )

    def row_inputs(self) -> dict[str, Tensor]:
        """What the first generation must know of each row beside its positions."""
        if not getattr(self.model, "takes_prompt_lengths", False):
            return {}
        lengths = [row.prompt_length for row in self.rows]
        return {"prompt_lengths": torch.tensor(lengths, device=self.mask.device)}


class Prefill(Group):
    """Prompts on their way into the cache, a bounded part a step."""

    def __init__(self, model: Any, rows: list[Row], device: torch.device) -> None:
        length = max(len(row.tokens) for row in rows)
        padded = [[0] * (length - len(row.tokens)) + list(row.tokens) for row in rows]
        mask = [[False] * (length - len(row.tokens)) + [True] * len(row.tokens) for row in rows]
        layers = model.config.get_text_config().num_hidden_layers
        super().__init__(model, rows, torch.tensor(mask, device=device), new_cache(layers, length))
        self.ids = torch.tensor(padded, device=device)
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)

    def read(self, tokens: int, **wishes: Any) -> Any:
        """Reads on, about so many tokens of all rows together."""
        columns = max(tokens // len(self.rows), 1)
        part = slice(self.width, self.width + columns)
        outputs = self.forward(self.ids[:, part], self.positions[:, part], **wishes)
        for row in self.rows:
            row.length = max(0, len(row.tokens) - (self.ids.shape[1] - self.width))
        return outputs

    @property
    def is_read(self) -> bool:
        return self.width == self.ids.shape[1]


class Running(Group):
    """Rows that grow by a token a step."""

    @classmethod
    def begin(cls, prefill: Prefill) -> Running:
        running = cls(prefill.model, prefill.rows, prefill.mask, prefill.cache)
        running.width = prefill.width
        return running

    @property
    def longest(self) -> int:
        return max((row.length for row in self.rows if not row.is_gone), default=0)

    @property
    def is_full(self) -> bool:
        return self.width == self.mask.shape[1]

    def extend(self) -> Tensor:
        """Logits of the live rows."""
        device = self.mask.device
        live = self.live
        ids = torch.tensor([[row.token] for row in self.rows], device=device)
        positions = torch.tensor([[row.length] for row in self.rows], device=device)
        # A row that left is computed too, with nothing of it shown to anyone.
        self.mask[:, self.width] = True
        logits: Tensor = self.forward(ids, positions, logits_to_keep=1).logits[:, -1]
        for index in live:
            self.rows[index].length += 1
        return logits if len(live) == len(self.rows) else logits[live]

    def gather(self, others: Sequence[Group], *, room: int) -> None:
        """Live rows of all groups, as wide as the longest and with room for so many tokens."""
        groups = [self, *others]
        kept = [(group, group.live) for group in groups if group.live]
        rows = [group.rows[index] for group, live in kept for index in live]
        width = max(row.length for row in rows)
        self.cache = gathered(
            [(group.cache, live) for group, live in kept], width=width, capacity=width + room
        )
        self.rows = rows
        self.width = width
        lengths = torch.tensor([row.length for row in rows], device=self.mask.device)
        columns = torch.arange(width + room, device=self.mask.device)
        self.mask = (columns >= width - lengths.unsqueeze(1)) & (columns < width)

    def take_in(self, other: Prefill) -> bool:
        """Puts another's rows where rows have left; False where there are too few places."""
        free = [index for index, row in enumerate(self.rows) if row.is_gone]
        arriving = other.live
        if len(free) < len(arriving) or other.width > self.width:
            return False
        for slot, index in zip(free, arriving, strict=False):
            for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
                mine.put(slot, theirs, index)
            self.rows[slot] = other.rows[index]
            self.mask[slot, : self.width - other.width] = False
            self.mask[slot, self.width - other.width : self.width] = other.mask[index]
        return True
