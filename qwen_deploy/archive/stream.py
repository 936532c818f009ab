"""A compressed tar: one stream, whose members can only be reached by reading what is in front of
them. Does not know what they are for."""

from __future__ import annotations

import gzip
import io
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from qwen_deploy.content import check_unchanged
from qwen_deploy.hashes import Stamp

if TYPE_CHECKING:
    import zstandard

_READ_BYTES = 1 << 20
# Packed with --long, an archive asks for a window of up to 2 GiB.
_MOST_WINDOW_BYTES = 1 << 31
_MOST_IDLE = 4


def unpack(path: Path, raw: io.FileIO) -> BinaryIO:
    """What zstd compressed; the host's agent has only a program for it."""
    import zstandard

    window = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW_BYTES)
    return io.BufferedReader(_Sound(window.stream_reader(raw, read_across_frames=True)))


class _Sound(io.RawIOBase):
    """Says of damage what gzip says of it."""

    def __init__(self, content: zstandard.ZstdDecompressionReader) -> None:
        self._content = content

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import zstandard

        try:
            return self._content.readinto(buffer)
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from error

    def close(self) -> None:
        self._content.close()  # type: ignore[no-untyped-call]
        super().close()


class Forward(io.RawIOBase):
    """The decompressed bytes; what is skipped is read. Whoever forgets it closes it."""

    def __init__(self, path: Path, kind: str) -> None:
        self._raw = io.FileIO(path)
        is_gzip = kind == "tar.gz"
        self._content = gzip.GzipFile(fileobj=self._raw) if is_gzip else unpack(path, self._raw)
        self._position = 0

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes:
        content = self._content.read(_READ_BYTES if size < 0 else size)
        self._position += len(content)
        return content

    def skip_to(self, position: int) -> None:
        while self._position < position:
            if not self.read(min(_READ_BYTES, position - self._position)):
                break

    def close(self) -> None:
        self._content.close()
        self._raw.close()
        super().close()


@dataclass(slots=True)
class Streams:
    """Readers that stand somewhere in the archive, so that the next member need not begin at its
    start."""

    path: Path
    stamp: Stamp
    kind: str
    _idle: list[Forward] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, position: int) -> Forward:
        check_unchanged(self.path, self.stamp)
        with self._lock:
            before = [one for one in self._idle if one.tell() <= position]
            nearest = max(before, key=Forward.tell, default=None)
            if nearest:
                self._idle.remove(nearest)
        stream = nearest or Forward(self.path, self.kind)
        stream.skip_to(position)
        return stream

    def give(self, stream: Forward) -> None:
        with self._lock:
            self._idle.append(stream)
            surplus = self._idle[:-_MOST_IDLE]
            del self._idle[:-_MOST_IDLE]
        for one in surplus:
            one.close()


@dataclass(frozen=True, slots=True)
class StreamContent:
    streams: Streams
    start: int
    size: int

    def open(self, offset: int) -> BinaryIO:
        return cast(BinaryIO, _Reader(self.streams, self.start + offset))


class _Reader(io.RawIOBase):
    def __init__(self, streams: Streams, position: int) -> None:
        self._streams = streams
        self._stream = streams.take(position)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._stream.read(size)

    def close(self) -> None:
        if not self.closed:
            self._streams.give(self._stream)
        super().close()
