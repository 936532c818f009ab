"""The start of an artifact, kept on disk between transfers, and its running SHA-256. Does not know
where the rest comes from."""

from __future__ import annotations

import hashlib
import os

_PIECE_BYTES = 1 << 20


class Partial:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._start()

    def _start(self) -> None:
        self.size = 0
        self._digest = hashlib.sha256()

    def rehash(self) -> int:
        """Takes the next piece of what an earlier transfer left into the hash, which is never
        taken on trust; 0 when that was all."""
        piece = os.pread(self._descriptor, _PIECE_BYTES, self.size)
        self._digest.update(piece)
        self.size += len(piece)
        return len(piece)

    def append(self, piece: bytes) -> None:
        written = 0
        while written < len(piece):
            written += os.pwrite(self._descriptor, piece[written:], self.size + written)
        self._digest.update(piece)
        self.size += len(piece)

    def discard(self) -> None:
        os.ftruncate(self._descriptor, 0)
        self._start()

    def sync(self) -> None:
        os.fsync(self._descriptor)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()
