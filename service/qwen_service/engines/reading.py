"""Prompts that wait to be read and those being read: short ones together, a long one by itself.

Knows neither what is computed of them nor what becomes of them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

from qwen_service.engines.pace import EQUAL_TOKENS, FIRST_TOKENS, Pace
from qwen_service.engines.rows import Prefill, Row


class Reading:
    def __init__(self, begin: Callable[[list[Row]], Prefill], device: torch.device) -> None:
        self._begin = begin
        self._device = device
        self._queue: deque[Row] = deque()
        self._current: Prefill | None = None
        self._pace = Pace()

    @property
    def is_busy(self) -> bool:
        return bool(self._queue or self._current)

    def rows(self) -> Iterator[Row]:
        current = self._current.rows if self._current else ()
        return (row for row in (*self._queue, *current) if not row.is_gone)

    def held_tokens(self) -> int:
        return self._current.held_tokens if self._current else 0

    def add(self, row: Row) -> None:
        self._queue.append(row)

    def next(self) -> Prefill | None:
        if self._current and not self._current.live:
            self._current = None
        if self._current is None and (group := self._next_group()):
            self._current = self._begin(group)
        return self._current

    def end(self) -> None:
        self._current = None

    def read(self, prefill: Prefill, **wishes: Any) -> Any:
        began, width = time.monotonic(), prefill.width
        tokens = self._pace.tokens
        if prefill.rows[0].stands_alone:
            tokens = EQUAL_TOKENS.get(self._device.type, FIRST_TOKENS)
        outputs = prefill.read(tokens, **wishes)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        read = (prefill.width - width) * len(prefill.rows)
        self._pace.record(read, time.monotonic() - began)
        return outputs

    def _next_group(self) -> list[Row]:
        group: list[Row] = []
        longest = 0
        while self._queue:
            row = self._queue[0]
            longest = max(longest, len(row.tokens))
            is_alone = row.stands_alone or bool(group and group[0].stands_alone)
            if group and (is_alone or longest * (len(group) + 1) > self._pace.tokens):
                break
            self._queue.popleft()
            if not row.is_gone:
                group.append(row)
        return group
