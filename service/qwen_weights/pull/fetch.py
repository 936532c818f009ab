"""One artifact from the pool into its partial: resumed, continued by whichever source can, proven.
Knows neither where the partial lies nor what kinds of sources there are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol

from qwen_weights.errors import ChecksumMismatch, WrongPiece
from qwen_weights.manifest import Artifact
from qwen_weights.pull.pool import Pool
from qwen_weights.pull.progress import Progress
from qwen_weights.pull.reading import Reader, Refused
from qwen_weights.pull.seat import Seat
from qwen_weights.sources import Interruption, Source
from qwen_weights.store.partial import Partial

# Compares the complete pieces of a partial with those of a better witness; raises WrongPiece.
Judge = Callable[[Artifact, Partial, Source], None]


class Shelf(Protocol):
    """Where peers read what grows here (shelf.py)."""

    def grows(self, sha256: str, descriptor: int, size: int) -> None: ...

    def reached(self, sha256: str, size: int) -> None: ...

    def rewound(self, sha256: str, size: int) -> None: ...


@dataclass
class _Attempt:
    """Who gave the bytes of a partial; None is an earlier transfer."""

    givers: set[Seat | None] = field(default_factory=set)
    stays: bool = False
    seat: Seat | None = None


class Fetcher:
    def __init__(
        self,
        pool: Pool,
        reader: Reader,
        shelf: Shelf,
        progress: Progress,
        *,
        judge: Judge | None = None,
    ) -> None:
        self._pool = pool
        self._reader = reader
        self._shelf = shelf
        self._progress = progress
        self._judge = judge

    def complete(self, artifact: Artifact, partial: Partial) -> None:
        self._reader.keep_going()
        self._take_kept(partial)
        if partial.size > artifact.size:
            self._go_back(artifact, partial, 0)
        attempt = _Attempt({None} if partial.size else set())
        self._shelf.grows(artifact.sha256, partial.descriptor, _unproven(artifact, partial))
        while True:
            self._fill(artifact, partial, attempt)
            if partial.sha256 == artifact.sha256:
                partial.sync()
                return
            attempt = self._blame(artifact, partial, attempt)

    def fetch_range(
        self, artifact: Artifact, first: int, end: int, write: Callable[[memoryview], None]
    ) -> None:
        """For repair: `write` raises WrongPiece where a piece is not as recorded."""
        while first < end:
            seat = self._pool.pick(artifact, first)
            try:
                with closing(self._reader.chunks(seat, artifact, first, end)) as chunks:
                    for content in chunks:
                        first += len(content)
                        self._progress.fetched(len(content))
                        write(content)
            except Interruption as interruption:
                self._pool.failed(seat, artifact, interruption)
            except WrongPiece as wrong:
                self._progress.kept(wrong.first_byte - first)
                first = wrong.first_byte
                self._pool.wrong(seat, artifact, ChecksumMismatch(f"{seat.name}: {wrong}"))
            except Refused:
                pass

    def _take_kept(self, partial: Partial) -> None:
        while count := partial.rehash():
            self._reader.keep_going()
            self._progress.kept(count)

    def _fill(self, artifact: Artifact, partial: Partial, attempt: _Attempt) -> None:
        while partial.size < artifact.size:
            stay = attempt.seat if attempt.stays else None
            seat = self._pool.pick(artifact, partial.size, stay=stay)
            if stay and seat is not stay:
                self._go_back(artifact, partial, 0)
                attempt.givers.clear()
            attempt.seat = seat
            try:
                self._receive(artifact, partial, attempt, seat)
            except Interruption as interruption:
                self._pool.failed(seat, artifact, interruption)
            except WrongPiece as wrong:
                self._go_back(artifact, partial, wrong.first_byte)
                if wrong.blames:
                    self._pool.refuse(seat, ChecksumMismatch(str(wrong)))
            except Refused:
                pass

    def _receive(self, artifact: Artifact, partial: Partial, attempt: _Attempt, seat: Seat) -> None:
        version = self._pool.version
        chunks = self._reader.chunks(seat, artifact, partial.size, artifact.size)
        with closing(chunks):
            for content in chunks:
                attempt.givers.add(seat)
                self._take(artifact, partial, content, seat)
                if not attempt.stays and self._pool.should_leave(
                    seat, artifact, partial.size, version
                ):
                    return

    def _take(self, artifact: Artifact, partial: Partial, content: memoryview, seat: Seat) -> None:
        known = len(partial.pieces)
        partial.append(content)
        self._progress.fetched(len(content))
        if self._judge and len(partial.pieces) > known:
            self._judge(artifact, partial, seat.source)
        self._shelf.reached(artifact.sha256, _unproven(artifact, partial))

    def _blame(self, artifact: Artifact, partial: Partial, attempt: _Attempt) -> _Attempt:
        """A single giver has to answer for it. Of several nobody knows which: the next attempt
        stays with one."""
        got = partial.sha256
        self._go_back(artifact, partial, 0)
        if len(attempt.givers) > 1:
            return _Attempt(stays=True)
        for giver in attempt.givers:
            if giver:
                message = (
                    f"{giver.name} sent other bytes than those of the manifest for "
                    f"{artifact.path}: expected sha256 {artifact.sha256}, got {got}"
                )
                self._pool.wrong(giver, artifact, ChecksumMismatch(message))
        return _Attempt(stays=attempt.stays)

    def _go_back(self, artifact: Artifact, partial: Partial, first_byte: int) -> None:
        start = first_byte - first_byte % partial.piece_bytes
        self._shelf.rewound(artifact.sha256, start)
        self._progress.kept(start - partial.size)
        partial.truncate(start)


def _unproven(artifact: Artifact, partial: Partial) -> int:
    """What peers may have before SHA-256 has proven the whole."""
    return max(0, min(partial.size, artifact.size - 1))
