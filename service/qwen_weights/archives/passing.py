"""A compressed tar, read once from its start: its members in the order in which they lie. Does not
know which of them are wanted."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol, cast

from qwen_weights.archives import (
    TAR_BLOCK_BYTES,
    Member,
    check_end,
    damage_of,
    damaged,
    tar_member,
)
from qwen_weights.errors import HostRefused

_READ_BYTES = 1 << 20
# Packed with --long, an archive asks for a window of up to 2 GiB.
_ZSTD = ("zstd", "-dcq", "--long=31")


class Decompressor(Protocol):
    def read(self, limit: int) -> bytes: ...

    def close(self) -> None: ...


Unpack = Callable[[Path, io.FileIO], Decompressor]


class Pass:
    """One reading; `unpack` is for zstd. Each member is yielded once, and can be read until the
    next one is asked for."""

    def __init__(self, path: Path, kind: str, unpack: Unpack | None = None) -> None:
        self._path = path
        self._raw = io.FileIO(path)
        self._file: IO[bytes] | None = None
        try:
            opened = _gzip(self._raw) if kind == "tar.gz" else (unpack or _Zstd)(path, self._raw)
            self._content = _Tail(opened)
        except BaseException:
            self._raw.close()
            raise
        try:
            with damage_of(path):
                self._tar = _tar(self._content)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Member]:
        """Ends with an error unless the archive is whole."""
        with damage_of(self._path):
            for info in self._tar:
                member = tar_member(self._path, info)
                if member:
                    self._file = self._tar.extractfile(info)
                    yield member
            check_end(self._path, self._content.block_at(self._tar.offset))
            while self._content.read(_READ_BYTES):  # to the check sums of the compression
                pass

    def readinto(self, buffer: memoryview) -> int:
        """Of the member that was yielded last."""
        assert self._file is not None
        with damage_of(self._path):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    @property
    def position(self) -> int:
        """Bytes of the archive that were read so far."""
        return os.lseek(self._raw.fileno(), 0, os.SEEK_CUR)

    def close(self) -> None:
        self._content.close()
        self._raw.close()


class _Tail:
    """Passes bytes on and keeps the last of them, to look at how the tar ended."""

    def __init__(self, decompressor: Decompressor) -> None:
        self._decompressor = decompressor
        self._chunks: deque[bytes] = deque(maxlen=2)
        self._size = 0

    def read(self, limit: int) -> bytes:
        chunk = self._decompressor.read(limit)
        if chunk:
            self._chunks.append(chunk)
            self._size += len(chunk)
        return chunk

    def block_at(self, position: int) -> bytes:
        kept = b"".join(self._chunks)
        first = position - (self._size - len(kept))
        return kept[first : first + TAR_BLOCK_BYTES] if first >= 0 else b""

    def close(self) -> None:
        self._decompressor.close()


def _tar(content: _Tail) -> tarfile.TarFile:
    file = cast("IO[bytes]", content)
    return tarfile.open(fileobj=file, mode="r|", bufsize=_READ_BYTES)


def _gzip(raw: io.FileIO) -> Decompressor:
    return cast(Decompressor, gzip.GzipFile(fileobj=raw))


class _Zstd:
    """The host's program: Python has learned zstd only lately. It reads the same open file, whose
    position therefore tells how far it is."""

    def __init__(self, path: Path, raw: io.FileIO) -> None:
        if shutil.which(_ZSTD[0]) is None:
            raise HostRefused(
                f"{path} is compressed by zstd, and this host has no zstd program",
                hint="apt-get install zstd",
            )
        self._path = path
        self._process = subprocess.Popen(
            _ZSTD, stdin=raw, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def read(self, limit: int) -> bytes:
        assert self._process.stdout is not None
        content = self._process.stdout.read(limit)
        if not content:
            self._end()
        return content

    def _end(self) -> None:
        if self._process.returncode is not None:
            return
        _, errors = self._process.communicate()
        if self._process.returncode:
            said = errors.decode(errors="replace").strip().splitlines() or ["zstd failed"]
            raise damaged(self._path, said[-1])

    def close(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe:
                pipe.close()
