"""Sources whose answers are written down. Knows neither the pool nor how bytes are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from qwen_weights.manifest import Artifact, Manifest
from qwen_weights.sources import ByteStream, Interruption
from qwen_weights.sources.entries import Entry
from qwen_weights.store.pieces import PIECE_BYTES

CONTENT = bytes(range(256)) * 40
ARTIFACT = Artifact("model.safetensors", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
OTHER = Artifact("other.safetensors", 4, hashlib.sha256(b"rest").hexdigest())
MANIFEST = Manifest("Qwen/Tiny", "a" * 40, (ARTIFACT,))
assert len(CONTENT) < PIECE_BYTES

Answer = Callable[[int], ByteStream]


class Stream:
    """Gives at most 1000 bytes at a time; ends with a failure where `fails`."""

    def __init__(
        self, content: bytes, total: int | None, *, offset: int = 0, fails: bool = False
    ) -> None:
        self.total = total
        self.offset = offset
        self._content = content
        self._fails = fails

    def readinto(self, buffer: memoryview) -> int:
        count = min(len(buffer), len(self._content), 1000)
        buffer[:count] = self._content[:count]
        self._content = self._content[count:]
        if not count and self._fails:
            raise Interruption("connection reset by peer")
        return count

    def close(self) -> None:
        pass


class Script:
    """`asked` are the offsets it was asked for; beyond its answers it is not there."""

    def __init__(self, name: str, *answers: Answer, is_wan: bool = True) -> None:
        self.name = name
        self.is_wan = is_wan
        self.has_ranges = True
        self.asked: list[int] = []
        self.is_closed = False
        self._answers = iter(answers)

    def offers(self, artifact: Artifact) -> bool:
        return True

    def open(self, artifact: Artifact, offset: int, end: int | None = None) -> ByteStream:
        self.asked.append(offset)
        answer = next(self._answers, None)
        if answer is None or self.is_closed:
            raise Interruption("connection refused")
        return answer(offset)

    def close(self) -> None:
        self.is_closed = True

    @property
    def entry(self) -> Entry:
        return Entry("http", self.name, wan=self.is_wan)


def rest(offset: int) -> ByteStream:
    return Stream(CONTENT[offset:], len(CONTENT), offset=offset)


def some(offset: int) -> ByteStream:
    return Stream(CONTENT[offset : offset + 3000], len(CONTENT), offset=offset)


def some_then_reset(offset: int) -> ByteStream:
    return Stream(CONTENT[offset : offset + 3000], len(CONTENT), offset=offset, fails=True)


def from_the_start(offset: int) -> ByteStream:
    return Stream(CONTENT, len(CONTENT))


def wrong(offset: int) -> ByteStream:
    return Stream(b"\xff" * (len(CONTENT) - offset), None, offset=offset)


def some_wrong(offset: int) -> ByteStream:
    return Stream(b"\xff" * 3000, len(CONTENT), offset=offset)


def shorter(offset: int) -> ByteStream:
    return Stream(b"", len(CONTENT) - 1, offset=offset)


def raising(error: Exception) -> Answer:
    def answer(offset: int) -> ByteStream:
        raise error

    return answer
