"""A model of embeddings: texts read in parts like prompts, then pooled to one vector each.

Knows the layout of sentence-transformers' checkpoints; rows are those of a batch that never writes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen_service.engine import EngineError
from qwen_service.engines.reading import Reading
from qwen_service.engines.rows import Prefill, Row
from qwen_service.inference.model import Chosen, StepFailed, Vector

MODULES = "modules.json"
POOLINGS = {
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
}


@dataclass(frozen=True, slots=True)
class Pooling:
    kind: str
    normalizes: bool

    @classmethod
    def from_folder(cls, directory: Path) -> Pooling | None:
        """None where the checkpoint is none of embeddings."""
        if not (directory / MODULES).is_file():
            return None
        kind, normalizes = None, False
        for module in json.loads((directory / MODULES).read_text()):
            name = str(module["type"]).rpartition(".")[2]
            if name == "Pooling":
                config = json.loads((directory / module["path"] / "config.json").read_text())
                kind = _kind(config)
            elif name == "Normalize":
                normalizes = True
            elif name != "Transformer":
                raise EngineError(f"{MODULES} asks for {name}, which is not supported")
        if kind is None:
            raise EngineError(f"{MODULES} names no pooling")
        return cls(kind, normalizes)


def _kind(config: dict[str, Any]) -> str:
    asked = [
        name for name, value in config.items() if name.startswith("pooling_") and value is True
    ]
    if len(asked) != 1 or asked[0] not in POOLINGS:
        raise EngineError(f"the pooling {' and '.join(asked) or 'of none'} is not supported")
    return POOLINGS[asked[0]]


class PooledPrefill(Prefill):
    """Sums up what the pooling needs of each part as it is read."""

    pooled: Tensor | None = None

    def pool(self, hidden: Tensor, kind: str) -> None:
        part = slice(self.width - hidden.shape[1], self.width)
        mask, positions = self.mask[:, part], self.positions[:, part]
        if kind == "last":
            # Padded on the left: the last token of each row is the last of all.
            self.pooled = hidden[:, -1].float()
            return
        wanted = mask if kind == "mean" else mask & (positions == 0)
        part_sum = (hidden.float() * wanted.unsqueeze(-1)).sum(1)
        self.pooled = part_sum if self.pooled is None else self.pooled + part_sum

    def vectors(self, pooling: Pooling) -> Tensor:
        assert self.pooled is not None
        vectors = self.pooled
        if pooling.kind == "mean":
            vectors = vectors / self.mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(vectors) if pooling.normalizes else vectors


class EmbeddingBatch:
    def __init__(
        self,
        model: Any,
        *,
        device: torch.device,
        most_rows: int,
        kv_tokens: int,
        pooling: Pooling,
    ) -> None:
        self._most_rows = most_rows
        self._kv_tokens = kv_tokens
        self._pooling = pooling
        self._reading = Reading(lambda rows: PooledPrefill(model, rows, device), device)

    def has_room(self, length: int) -> bool:
        lengths = [length, *(len(row.tokens) for row in self._reading.rows())]
        wanted = len(lengths) * max(lengths)
        return len(lengths) == 1 or (len(lengths) <= self._most_rows and wanted <= self._kv_tokens)

    def fits(self) -> bool:
        return True

    def held_tokens(self) -> int:
        return self._reading.held_tokens()

    def add(self, row: Row) -> None:
        self._reading.add(row)

    def remove(self, key: str) -> None:
        for row in self._reading.rows():
            if row.key == key:
                row.is_gone = True

    def extend(self) -> list[Chosen]:
        return []

    def extend_alone(self) -> list[Chosen]:
        return []

    def prefill(self) -> Sequence[Vector]:
        prefill = self._reading.next()
        if prefill is None:
            return []
        assert isinstance(prefill, PooledPrefill)
        try:
            outputs = self._reading.read(prefill)
            prefill.pool(outputs.last_hidden_state, self._pooling.kind)
            if not prefill.is_read:
                return []
            vectors = prefill.vectors(self._pooling).tolist()
        except Exception as error:
            self._reading.end()
            alive = [row.key for row in prefill.rows if not row.is_gone]
            raise StepFailed(alive, f"{type(error).__name__}: {error}") from error
        self._reading.end()
        return [Vector(prefill.rows[index].key, tuple(vectors[index])) for index in prefill.live]
