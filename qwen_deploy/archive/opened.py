"""An archive's members, whatever its kind: their sizes, the small ones as a whole, the proof of the
large ones. Does not know which of them make a model."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from qwen_deploy import hashes, safetensors
from qwen_deploy.archive.kinds import Kind, damage_of, damaged
from qwen_deploy.archive.members import Member, of_tar, of_zip
from qwen_deploy.archive.stream import Forward, Passing, StreamContent, Streams, walk
from qwen_deploy.checkpoint import is_weights
from qwen_deploy.content import Content
from qwen_deploy.hashes import Progress, Reading, Stamp

SMALL_BYTES = 64 << 20
POINTER_BYTES = 1024
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Proven:
    """`fault` is what keeps a file of weights from being whole."""

    sha256: str
    fault: str | None


class Opened(Protocol):
    """By the names that the archive gives."""

    @property
    def sizes(self) -> Mapping[str, int]: ...

    def read(self, name: str) -> bytes: ...

    def prove(self, names: Sequence[str], progress: Progress) -> Mapping[str, Proven]: ...

    def content(self, name: str) -> Content: ...


class RandomArchive:
    """Its members can be read in any order."""

    def __init__(self, path: Path, kind: Kind, stamp: Stamp) -> None:
        self._path = path
        self._members = of_zip(path, stamp) if kind == "zip" else of_tar(path, stamp)

    @property
    def sizes(self) -> Mapping[str, int]:
        return {name: member.size for name, member in self._members.items()}

    def read(self, name: str) -> bytes:
        member = self._members[name]
        with damage_of(self._path), member.checked.open(0) as file:
            return _Hashing(file, member.size).read()

    def prove(self, names: Sequence[str], progress: Progress) -> Mapping[str, Proven]:
        largest_first = sorted(names, key=lambda name: -self._members[name].size)
        reading = Reading(sum(self._members[name].size for name in names), progress)

        def prove(name: str) -> Proven:
            return self._prove(name, self._members[name], reading)

        return hashes.each(largest_first, prove, reading)

    def content(self, name: str) -> Content:
        return self._members[name].content

    def _prove(self, name: str, member: Member, reading: Reading) -> Proven:
        with damage_of(self._path), member.checked.open(0) as opened:
            file = _Hashing(opened, member.size)
            fault = (
                safetensors.fault_of(cast(BinaryIO, file), member.size)
                if is_weights(name)
                else None
            )
            while piece := file.read(_PIECE_BYTES):
                reading.advance(len(piece))
            if file.left:
                raise damaged(self._path, f"{name} is shorter than announced")
            return Proven(file.sha256, fault)


def _fault(name: str, size: int, file: BinaryIO) -> str | None:
    return safetensors.fault_of(file, size) if is_weights(name) else None


class StreamArchive:
    """Read as a whole when it is opened, since nothing is known of it before its end. `keeps` are
    the last parts of the names of small members whose content matters."""

    def __init__(
        self, path: Path, kind: Kind, stamp: Stamp, *, keeps: Sequence[str], progress: Progress
    ) -> None:
        self._keeps = keeps
        self._kept: dict[str, bytes] = {}
        self._proven: dict[str, Proven] = {}
        self.places: dict[str, Place] = {}
        with damage_of(path), Forward(path, kind) as stream, ThreadPoolExecutor(1) as pool:
            for member in walk(path, stream):
                self.places[member.name] = Place(member.start, member.size)
                self._proven[member.name] = self._prove(member, pool)
                progress(stream.raw_position, stamp.size)
        self._streams = Streams(path, stamp, kind)

    @property
    def sizes(self) -> Mapping[str, int]:
        return {name: place.size for name, place in self.places.items()}

    def read(self, name: str) -> bytes:
        return self._kept[name]

    def prove(self, names: Sequence[str], progress: Progress) -> Mapping[str, Proven]:
        return {name: self._proven[name] for name in names}

    def content(self, name: str) -> Content:
        return self.places[name].content(self._streams)

    def _prove(self, member: Passing, pool: ThreadPoolExecutor) -> Proven:
        file = _Hashing(member.file, member.size, _Behind(pool))
        is_named = member.name.rpartition("/")[2] in self._keeps and member.size <= SMALL_BYTES
        head: BinaryIO = cast(BinaryIO, file)
        if is_named or member.size <= POINTER_BYTES:
            self._kept[member.name] = file.read()
            head = io.BytesIO(self._kept[member.name])
        fault = _fault(member.name, member.size, head)
        while file.read(_PIECE_BYTES):
            pass
        return Proven(file.sha256, fault)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member lies in the stream."""

    start: int
    size: int

    def content(self, streams: Streams) -> Content:
        return StreamContent(streams, self.start, self.size)


class _Digest(Protocol):
    def update(self, piece: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


class _Behind:
    """Adds up on another core what this one has decompressed, which takes as long."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._digest = hashlib.sha256()
        self._last: Future[None] | None = None

    def update(self, piece: bytes, /) -> None:
        self._wait()
        self._last = self._pool.submit(self._digest.update, piece)

    def hexdigest(self) -> str:
        self._wait()
        return self._digest.hexdigest()

    def _wait(self) -> None:
        if self._last:
            self._last.result()


class _Hashing(io.RawIOBase):
    """A reader of so many bytes, which adds up what passes."""

    def __init__(self, file: BinaryIO, size: int, digest: _Digest | None = None) -> None:
        self._file = file
        self._digest = digest or hashlib.sha256()
        self.left = size

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(self.left if size < 0 else min(size, self.left))
        self._digest.update(piece)
        self.left -= len(piece)
        return piece

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()
