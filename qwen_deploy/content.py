"""The bytes of one artifact on this machine: a file, a part of one, or in memory. Knows neither
models nor who reads them."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from qwen_deploy.hashes import Stamp


class ContentChanged(Exception):
    """It is not what was inspected; the text says so in words for the reader."""


class Content(Protocol):
    @property
    def size(self) -> int: ...

    def open(self, offset: int) -> BinaryIO:
        """A reader that stands at `offset` and is closed by whoever asked; it may reach beyond the
        content's end. Raises ContentChanged, or OSError."""
        ...


class Shareable(Protocol):
    """Artifacts that this machine serves."""

    def contents(self) -> Mapping[str, Content]:
        """By the artifact's path."""
        ...


def check_unchanged(path: Path, stamp: Stamp) -> None:
    try:
        is_same = Stamp.of(path.stat()) == stamp
    except OSError as error:
        raise ContentChanged("it cannot be read any more") from error
    if not is_same:
        raise ContentChanged("it was changed after it was inspected")


@dataclass(frozen=True, slots=True)
class FileContent:
    """A whole file, or a part of one: a member of an archive that is not compressed. `stamp` is
    always that of the whole file."""

    path: Path
    stamp: Stamp
    start: int = 0
    length: int | None = None

    @property
    def size(self) -> int:
        return self.stamp.size if self.length is None else self.length

    def open(self, offset: int) -> BinaryIO:
        try:
            file = io.FileIO(self.path)
        except OSError as error:
            raise ContentChanged("it cannot be read any more") from error
        if Stamp.of(os.fstat(file.fileno())) != self.stamp:
            file.close()
            raise ContentChanged("it was changed after it was inspected")
        file.seek(self.start + offset)
        return file


@dataclass(frozen=True, slots=True, repr=False)
class MemoryContent:
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def open(self, offset: int) -> BinaryIO:
        reader = io.BytesIO(self.data)
        reader.seek(offset)
        return reader


@dataclass(frozen=True, slots=True)
class MemoryFiles:
    """Small files that a listing brought along."""

    files: Mapping[str, bytes]

    def contents(self) -> Mapping[str, Content]:
        return {path: MemoryContent(data) for path, data in self.files.items()}
