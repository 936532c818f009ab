"""The start of an artifact, kept on disk between transfers, and its running hashes. Does not know
where the rest comes from."""

from __future__ import annotations

import os

from qwen_weights.disk import write_at
from qwen_weights.errors import DiskFull, in_units
from qwen_weights.store.pieces import PIECE_BYTES, RunningHashes

_READ_BYTES = 1 << 20


class Partial:
    """`reserve_bytes` of its file system stay free. Pieces cost half as much again as SHA-256, and
    only peers want them at once."""

    def __init__(
        self,
        descriptor: int,
        *,
        reserve_bytes: int = 0,
        piece_bytes: int = PIECE_BYTES,
        with_pieces: bool = True,
    ) -> None:
        self.descriptor = descriptor
        self._reserve_bytes = reserve_bytes
        self._hashes = RunningHashes(piece_bytes, with_pieces=with_pieces)

    @property
    def size(self) -> int:
        return self._hashes.size

    @property
    def sha256(self) -> str:
        return self._hashes.sha256

    @property
    def pieces(self) -> tuple[str, ...]:
        """Of what is complete, where they are made; another thread may ask."""
        return self._hashes.complete

    @property
    def all_pieces(self) -> tuple[str, ...]:
        """Once nothing more follows."""
        return self._hashes.all

    @property
    def piece_bytes(self) -> int:
        return self._hashes.piece_bytes

    def rehash(self) -> int:
        """Takes the next part of what an earlier transfer left into the hashes, which are never
        taken on trust; 0 when that was all."""
        content = os.pread(self.descriptor, _READ_BYTES, self.size)
        self._hashes.update(content)
        return len(content)

    def append(self, content: memoryview) -> None:
        self._check_room(len(content))
        write_at(self.descriptor, content, self.size)
        self._hashes.update(content)

    def truncate(self, size: int) -> int:
        """Back to the start of the piece in which that byte lies, which is returned."""
        size = self._hashes.truncate(size)
        os.ftruncate(self.descriptor, size)
        return size

    def sync(self) -> None:
        os.fsync(self.descriptor)

    def _check_room(self, count: int) -> None:
        if not self._reserve_bytes:
            return
        status = os.fstatvfs(self.descriptor)
        free = status.f_bavail * status.f_frsize
        if free < self._reserve_bytes + count:
            raise DiskFull(
                f"full up to its reserve: {in_units(free)} are free and "
                f"{in_units(self._reserve_bytes)} of them must stay so"
            )
