"""A part of a file on this host as a stream. Does not know what lies around it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from qwen_weights.sources import Interruption


class RegionStream:
    """From `offset` of the `size` bytes that begin at `first`."""

    def __init__(
        self,
        path: Path,
        first: int,
        size: int,
        offset: int,
        end: int | None,
        is_over: Callable[[], bool],
    ) -> None:
        self.offset = offset
        self.total: int | None = size
        self._position = first + offset
        self._end = first + (size if end is None else min(end, size))
        self._is_over = is_over
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def readinto(self, buffer: memoryview) -> int:
        if self._is_over():
            raise Interruption("it was closed")
        limit = min(len(buffer), self._end - self._position)
        if limit <= 0:
            return 0
        try:
            count = os.preadv(self._descriptor, [buffer[:limit]], self._position)
        except OSError as error:
            raise Interruption(f"cannot be read: {error.strerror}") from error
        self._position += count
        return count

    def close(self) -> None:
        os.close(self._descriptor)
