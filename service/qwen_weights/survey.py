"""What a folder or an archive holds, for whoever judges and names it: the protocol of both, and the
reading of many files over all cores. Does not know what a model is."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Protocol

from .archives import Stream
from .inspection import cores
from .sums import Expected

READ_BYTES = 1 << 20
Tell = Callable[[int, int], None]


class Survey(Protocol):
    """`sizes` of all files below the model's folder; `expected` is what their names say."""

    kind: str
    place: str
    prefix: str
    sizes: Mapping[str, int]
    expected: Mapping[str, Expected]

    def head(self, path: str, count: int) -> bytes: ...

    def hashes(self, paths: Iterable[str], tell: Tell) -> dict[str, str]: ...


def sha256_of_all(
    sizes: Mapping[str, int], open_file: Callable[[str], Stream], tell: Tell
) -> dict[str, str]:
    """The largest first, each on a core of its own."""
    tally = Tally(sum(sizes.values()), tell)
    ordered = sorted(sizes, key=lambda path: -sizes[path])
    pool = ThreadPoolExecutor(cores())
    try:
        futures = [pool.submit(_sha256_of, open_file, path, tally) for path in ordered]
        return {path: future.result() for path, future in zip(ordered, futures)}  # noqa: B905
    finally:
        tally.is_over = True
        pool.shutdown(cancel_futures=True)


def _sha256_of(open_file: Callable[[str], Stream], path: str, tally: Tally) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(READ_BYTES))
    with closing(open_file(path)) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
            tally.add(count)
    return digest.hexdigest()


def head_of(stream: Stream, count: int) -> bytes:
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
