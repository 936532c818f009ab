"""Files read and hashed over all cores. Does not know what they are for."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import closing
from typing import TypeVar

from qwen_weights.sources import ByteStream
from qwen_weights.survey import Tell

READ_BYTES = 1 << 20
_Item = TypeVar("_Item", bound=Hashable)
_Result = TypeVar("_Result")


def sha256_of_all(
    sizes: Mapping[str, int], open_file: Callable[[str], ByteStream], tell: Tell
) -> dict[str, str]:
    """The largest first, each on a core of its own."""
    tally = Tally(sum(sizes.values()), tell)
    ordered = sorted(sizes, key=lambda path: -sizes[path])
    return over_all_cores(ordered, lambda path: _sha256_of(open_file, path, tally), tally)


def over_all_cores(
    items: Sequence[_Item], work: Callable[[_Item], _Result], tally: Tally
) -> dict[_Item, _Result]:
    # Imported here: whoever finds all in a cache needs none.
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(cores())
    try:
        return dict(zip(items, pool.map(work, items)))  # noqa: B905
    finally:
        tally.is_over = True
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    return len(os.sched_getaffinity(0))


def _sha256_of(open_file: Callable[[str], ByteStream], path: str, tally: Tally) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(READ_BYTES))
    with closing(open_file(path)) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
            tally.add(count)
    return digest.hexdigest()


def head_of(stream: ByteStream, count: int) -> bytes:
    buffer = memoryview(bytearray(count))
    position = 0
    with closing(stream):
        while position < count and (got := stream.readinto(buffer[position:])):
            position += got
    return bytes(buffer[:position])


class Tally:
    """What the threads have read together. An error must not wait for the end of a large file."""

    def __init__(self, total: int, tell: Tell) -> None:
        self._done, self._total = 0, total
        self._tell = tell
        self._lock = threading.Lock()
        self.is_over = False

    def add(self, count: int) -> None:
        if self.is_over:
            raise InterruptedError
        with self._lock:
            self._done += count
            self._tell(self._done, self._total)
