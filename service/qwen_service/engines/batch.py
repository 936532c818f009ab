"""The running batch of a model that writes: who is read, who is extended, what memory they take.

Knows rows and their tokens, not requests: texts, stop strings and limits are judged above. A batch
of fixed slots over a static cache can take this one's place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from qwen_service.engine import Logprob
from qwen_service.engines.logprobs import Vocabulary
from qwen_service.engines.reading import Reading
from qwen_service.engines.rows import Prefill, Row, Running
from qwen_service.engines.sampling import choose
from qwen_service.inference.model import Chosen, StepFailed

# Storage grows by so many tokens a row at a time, and a row joins only where that much is left.
ROOM_TOKENS = 64
# Rows that left are computed on until they are this share of all.
IDLE_SHARE = 0.25


class GrowingBatch:
    def __init__(
        self,
        model: Any,
        *,
        device: torch.device,
        most_rows: int,
        kv_tokens: int,
        vocabulary: Vocabulary,
    ) -> None:
        self._model = model
        self._device = device
        self._most_rows = most_rows
        self._kv_tokens = kv_tokens
        self._vocabulary = vocabulary
        self._reading = Reading(lambda rows: Prefill(model, rows, device), device)
        self._running: Running | None = None
        # Rows that must not be touched by company, a group each; they take turns.
        self._alone: deque[Running] = deque()

    def has_room(self, length: int) -> bool:
        lengths = [length, *self._lengths()]
        if len(lengths) == 1:
            return True
        wanted = len(lengths) * (max(lengths) + ROOM_TOKENS)
        return len(lengths) <= self._most_rows and wanted <= self._kv_tokens

    def fits(self) -> bool:
        lengths = self._lengths()
        return len(lengths) < 2 or len(lengths) * max(lengths) <= self._kv_tokens

    def _lengths(self) -> list[int]:
        """Of every row's cache after the next step."""
        extended = [group.rows[it].length + 1 for group in self._groups() for it in group.live]
        return [*extended, *(len(row.tokens) for row in self._reading.rows())]

    def _groups(self) -> list[Running]:
        return [*([self._running] if self._running else []), *self._alone]

    def held_tokens(self) -> int:
        held = sum(group.held_tokens for group in self._groups())
        return held + self._reading.held_tokens()

    def add(self, row: Row) -> None:
        self._reading.add(row)

    def remove(self, key: str) -> None:
        for row in self._rows():
            if row.key == key:
                row.is_gone = True

    def _rows(self) -> Iterator[Row]:
        yield from self._reading.rows()
        for group in self._groups():
            yield from group.rows

    def extend(self) -> list[Chosen]:
        running = self._running
        if running is None or not running.live:
            self._running = None
            return []
        try:
            if running.is_full or self._is_idle(running):
                running.gather((), room=self._room(running.longest))
            return self._extended(running)
        except Exception as error:
            self._running = None
            raise self._failed(running.rows, error) from error

    def extend_alone(self) -> list[Chosen]:
        """One a turn: however many there are, the others wait for one step more."""
        while self._alone and not self._alone[0].live:
            self._alone.popleft()
        if not self._alone:
            return []
        group = self._alone[0]
        try:
            if group.is_full:
                group.gather((), room=self._room(group.longest))
            chosen = self._extended(group)
        except Exception as error:
            self._alone.popleft()
            raise self._failed(group.rows, error) from error
        self._alone.rotate(-1)
        return chosen

    def _extended(self, group: Running) -> list[Chosen]:
        rows = [group.rows[index] for index in group.live]
        return self._chosen(rows, group.extend())

    def _is_idle(self, running: Running) -> bool:
        idle = len(running.rows) - len(running.live)
        return idle > IDLE_SHARE * len(running.rows) and not self._reading.is_busy

    def _room(self, longest: int, *, arriving: int = 0) -> int:
        """Tokens that each row may grow by before the next copy; at least the next one."""
        each = self._kv_tokens // max(len(self._lengths()) + arriving, 1)
        return max(1, min(ROOM_TOKENS, each - longest))

    def prefill(self) -> list[Chosen]:
        prefill = self._reading.next()
        if prefill is None:
            return []
        try:
            self._shrink()
            outputs = self._reading.read(prefill, logits_to_keep=1)
            if not prefill.is_read:
                return []
            live = prefill.live
            chosen = self._chosen([prefill.rows[index] for index in live], outputs.logits[live, -1])
        except Exception as error:
            self._reading.end()
            raise self._failed(prefill.rows, error) from error
        self._reading.end()
        self._join(prefill)
        return chosen

    def _shrink(self) -> None:
        """Gives up places of rows that left, and room to grow, where a prompt needs them now."""
        if self.held_tokens() <= self._kv_tokens:
            return
        self._alone = deque(group for group in self._alone if group.live)
        if self._running and not self._running.live:
            self._running = None
        for group in self._groups():
            group.gather((), room=self._room(group.longest))

    def _join(self, prefill: Prefill) -> None:
        if not prefill.live:
            return
        if prefill.rows[0].stands_alone:
            self._alone.append(Running.begin(prefill))
            return
        running = self._running
        if running is None or not running.live:
            self._running = Running.begin(prefill)
            return
        try:
            if not running.take_in(prefill):
                longest = max(running.longest, *(row.length for row in prefill.rows))
                room = self._room(longest, arriving=len(prefill.live))
                running.gather([prefill], room=room)
        except Exception as error:
            self._running = None
            raise self._failed([*running.rows, *prefill.rows], error) from error

    def _chosen(self, rows: Sequence[Row], logits: Tensor) -> list[Chosen]:
        samplers = [row.sampler for row in rows if row.sampler]
        # A greatest that is no number gives away every row with NaN in it, at no cost.
        sane = logits.amax(-1).isfinite()
        picked = choose(samplers, logits)
        tokens, are_sane = torch.stack([picked, sane.to(picked.dtype)]).tolist()
        logprobs = self._vocabulary.logprobs(
            logits, picked, [sampler.logprobs for sampler in samplers]
        )
        return [
            _judged(row, token if is_sane else None, logprob)
            for row, token, is_sane, logprob in zip(rows, tokens, are_sane, logprobs, strict=True)
        ]

    def _failed(self, rows: Sequence[Row], error: Exception) -> StepFailed:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        alive = [row.key for row in rows if not row.is_gone]
        return StepFailed(alive, f"{type(error).__name__}: {error}")


def _judged(row: Row, token: int | None, logprob: Logprob | None) -> Chosen:
    sampler = row.sampler
    assert sampler is not None
    if token is None:
        return Chosen(row.key, None)
    row.token = token
    sampler.accept(token)
    guide = sampler.guide
    if guide is None:
        return Chosen(row.key, token, logprob)
    return Chosen(row.key, token, logprob, is_last=guide.is_over, refusal=guide.refusal)
