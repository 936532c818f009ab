"""Keys and values of rows that share a length, in storage with room for tokens to come.

Knows tensors alone. A further token is written in place; storage is copied only to gather rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicLayer


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """transformers' growing layer, which would copy all of itself at every token."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.used = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = (
                states.new_zeros(*states.shape[:2], self.capacity, states.shape[3])
                for states in (key_states, value_states)
            )
        begin, self.used = self.used, self.used + key_states.shape[-2]
        self.keys[:, :, begin : self.used] = key_states
        self.values[:, :, begin : self.used] = value_states
        return self.keys[:, :, : self.used], self.values[:, :, : self.used]

    def get_seq_length(self) -> int:
        return self.used

    def put(self, slot: int, other: RoomyLayer, row: int) -> None:
        """Another's row in place of one here, both ending at the same place."""
        begin = self.used - other.used
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            mine[slot, :, :begin] = 0
            mine[slot, :, begin : self.used] = theirs[row, :, : other.used]


Part = tuple[Cache, Sequence[int]]


def new_cache(layers: int, capacity: int) -> Cache:
    return Cache(layers=[RoomyLayer(capacity) for _ in range(layers)])


def gathered(parts: Sequence[Part], *, width: int, capacity: int) -> Cache:
    """These rows of these caches, the last `width` of each; what is gathered is given up."""
    layers = []
    for index in range(len(parts[0][0].layers)):
        layers.append(
            _gathered([(cache.layers[index], rows) for cache, rows in parts], width, capacity)
        )
        # Layer by layer: old and new never lie in memory whole beside each other.
        for cache, _ in parts:
            cache.layers[index] = None
    return Cache(layers=layers)


def _gathered(
    parts: Sequence[tuple[RoomyLayer, Sequence[int]]], width: int, capacity: int
) -> RoomyLayer:
    new = RoomyLayer(capacity)
    first = parts[0][0]
    new.lazy_initialization(first.keys, first.values)
    keys = [(layer.keys, layer.used, rows) for layer, rows in parts]
    values = [(layer.values, layer.used, rows) for layer, rows in parts]
    new.keys, new.values = (_copied(states, width, capacity) for states in (keys, values))
    new.used = width
    return new


def _copied(
    parts: Sequence[tuple[Tensor, int, Sequence[int]]], width: int, capacity: int
) -> Tensor:
    first = parts[0][0]
    total = sum(len(rows) for _, _, rows in parts)
    new = first.new_zeros(total, first.shape[1], capacity, first.shape[3])
    at = 0
    for states, used, rows in parts:
        kept = min(width, used)
        source = states[:, :, used - kept : used]
        for row in rows:
            new[at, :, width - kept : width] = source[row]
            at += 1
    return new
