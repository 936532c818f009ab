"""A compressed tar: one stream, whose members can only be reached by reading what is in front of
them. Does not know what they are for."""

from __future__ import annotations

import gzip
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from qwen_deploy.archive.kinds import BLOCK_BYTES, Kind
from qwen_deploy.archive.members import check_end, check_unchanged, tar_files, unique
from qwen_deploy.hashes import Stamp

_READ_BYTES = 1 << 20
# Packed with --long, an archive asks for a window of up to 2 GiB.
_MOST_WINDOW_BYTES = 1 << 31
_MOST_IDLE = 4


class Forward(io.RawIOBase):
    """The decompressed bytes; what is skipped is read."""

    def __init__(self, path: Path, kind: Kind) -> None:
        self._raw = io.FileIO(path)
        self._content = _decompressor(kind, self._raw)
        self._position = 0
        self.last = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    @property
    def raw_position(self) -> int:
        """Bytes of the archive that were read so far."""
        return self._raw.tell()

    def read(self, size: int = -1) -> bytes:
        self.last = self._content.read(_READ_BYTES if size < 0 else size)
        self._position += len(self.last)
        return self.last

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < self._position:
            raise io.UnsupportedOperation("it only leads forward")
        while self._position < offset:
            if not self.read(min(_READ_BYTES, offset - self._position)):
                break
        return self._position

    def close(self) -> None:
        self._content.close()
        self._raw.close()
        super().close()


def _decompressor(kind: Kind, raw: io.FileIO) -> BinaryIO:
    if kind == "tar.gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    import zstandard

    window = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW_BYTES)
    return io.BufferedReader(window.stream_reader(raw, read_across_frames=True))


@dataclass(frozen=True, slots=True)
class Passing:
    """A member while it passes: readable until the next one comes."""

    name: str
    size: int
    start: int
    file: BinaryIO


def walk(path: Path, stream: Forward) -> Iterator[Passing]:
    """Ends with an error unless the archive is whole; reading a member can end with one too."""
    with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r:") as archive:
        for name, info in unique(path, tar_files(path, archive)):
            file = archive.extractfile(info)
            yield Passing(name, info.size, info.offset_data, cast(BinaryIO, file))
        check_end(path, stream.last[-BLOCK_BYTES:])
        while stream.read():  # to the checksum of the compression
            pass


@dataclass(slots=True)
class Streams:
    """Readers that stand somewhere in the archive, so that the next member need not begin at its
    start."""

    path: Path
    stamp: Stamp
    kind: Kind
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
        stream.seek(position)
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
