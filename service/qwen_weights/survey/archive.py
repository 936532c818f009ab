"""An archive on this host: its files below the folder that holds the model. A compressed one is
read to its end at once, since nothing else tells what is in it. Does not know what a model is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from qwen_weights import archives, lfs, safetensors
from qwen_weights.archives import Member, damaged, unique
from qwen_weights.archives.passing import Pass, Unpack
from qwen_weights.checkpoint import CONFIG, LISTS, READ, is_weights, select, some
from qwen_weights.errors import NotAModel
from qwen_weights.sums import Expected
from qwen_weights.survey import LONGEST_TEXT_BYTES, Survey, Tell
from qwen_weights.survey.hashing import READ_BYTES, head_of, sha256_of_all


class ArchiveSurvey(Survey, Protocol):
    """Its members can be found again."""

    members: Mapping[str, Member]


def look(path: Path, tell: Tell, unpack: Unpack | None = None) -> ArchiveSurvey:
    kind = archives.kind_of(path)
    if kind in archives.COMPRESSED:
        return _PassSurvey(path, kind, tell, unpack)
    return _Survey(path, kind)


class _Below:
    """The members below the folder that holds the model."""

    kind = "archive"
    again = archives.COPY_AGAIN

    def __init__(self, path: Path, members: Mapping[str, Member]) -> None:
        self.prefix = prefix_of(path, members)
        self.place = f"{path}/{self.prefix}".rstrip("/")
        below = {name: one for name, one in members.items() if name.startswith(self.prefix)}
        self.members: Mapping[str, Member] = {
            name[len(self.prefix) :]: one for name, one in below.items()
        }
        self.sizes: Mapping[str, int] = {path: one.size for path, one in self.members.items()}
        self.expected: Mapping[str, Expected] = {}


class _Survey(_Below):
    def __init__(self, path: Path, kind: str) -> None:
        self._archive = archives.read(path, kind)
        super().__init__(path, self._archive.members)
        _refuse_pointers(self)

    def head(self, path: str, count: int) -> bytes:
        return head_of(self._archive.open(self.prefix + path, 0), count)

    def hashes(self, paths: Sequence[str], tell: Tell) -> dict[str, str]:
        sizes = {path: self.sizes[path] for path in paths}
        return sha256_of_all(sizes, lambda path: self._archive.checked(self.prefix + path), tell)


class _PassSurvey(_Below):
    def __init__(self, path: Path, kind: str, tell: Tell, unpack: Unpack | None) -> None:
        self._heads: dict[str, _Head] = {}
        self._hashes: dict[str, str] = {}
        super().__init__(path, self._read(path, Pass(path, kind, unpack), tell))
        _refuse_pointers(self)

    def head(self, path: str, count: int) -> bytes:
        return self._heads[self.prefix + path].content[:count]

    def hashes(self, paths: Sequence[str], tell: Tell) -> dict[str, str]:
        return {path: self._hashes[self.prefix + path] for path in paths}

    def _read(self, path: Path, reading: Pass, tell: Tell) -> dict[str, Member]:
        total = os.stat(path).st_size
        try:
            with ThreadPoolExecutor(1) as hasher:
                members = unique(path, self._members(path, reading, hasher, total, tell))
        finally:
            reading.close()
        return members

    def _members(
        self, path: Path, reading: Pass, hasher: ThreadPoolExecutor, total: int, tell: Tell
    ) -> Iterator[Member]:
        for member in reading:
            head = self._heads[member.name] = _Head(member)
            size = 0
            digest = _Digest(hasher)
            while content := digest.next_from(reading):
                head.take(content)
                size += len(content)
                tell(reading.position, total)
            if size != member.size:
                raise damaged(path, f"{member.name} ends too early")
            self._hashes[member.name] = digest.hexdigest()
            yield member


class _Digest:
    """Hashes what was read while the next part is unpacked: two cores instead of one."""

    def __init__(self, hasher: ThreadPoolExecutor) -> None:
        self._hasher = hasher
        self._digest = hashlib.sha256()
        self._buffers = [memoryview(bytearray(READ_BYTES)) for _ in range(2)]
        self._running: Future[None] | None = None

    def next_from(self, reading: Pass) -> memoryview:
        """What is returned may be read until the call after the next."""
        self._buffers.reverse()
        content = self._buffers[0][: reading.readinto(self._buffers[0])]
        self._wait()
        self._running = self._hasher.submit(self._digest.update, content)
        return content

    def hexdigest(self) -> str:
        self._wait()
        return self._digest.hexdigest()

    def _wait(self) -> None:
        if self._running:
            self._running.result()


class _Head:
    """The first bytes of a member, as many as a judgment may need."""

    def __init__(self, member: Member) -> None:
        name = member.name.rpartition("/")[2]
        self._is_weights = is_weights(name)
        is_text = name in (*READ, *LISTS) and member.size <= LONGEST_TEXT_BYTES
        self._wanted = member.size if is_text else lfs.LONGEST_POINTER_BYTES
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def content(self) -> bytes:
        return b"".join(self._parts)

    def take(self, content: memoryview) -> None:
        if self._is_weights and not self._size:
            self._wanted = max(safetensors.header_bytes(bytes(content[:8])) or 0, self._wanted)
        part = bytes(content[: self._wanted - self._size])
        if part:
            self._parts.append(part)
            self._size += len(part)


def prefix_of(path: Path, names: Iterable[str]) -> str:
    """The folder of the model within the archive: that of the config nearest to the top."""
    folders = {name.removesuffix(CONFIG) for name in names if _is_config(name)}
    if not folders:
        raise NotAModel(f"{path} has no {CONFIG}, so it is not a model")
    least = min(folder.count("/") for folder in folders)
    [first, *others] = sorted(folder for folder in folders if folder.count("/") == least)
    if others:
        raise NotAModel(
            f"{path} holds several models: {some([first, *others])}",
            hint="Unpack it and name the folder of one",
        )
    return first


def _is_config(name: str) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    return name.rpartition("/")[2] == CONFIG and not hidden


def _refuse_pointers(survey: Survey) -> None:
    longest = lfs.LONGEST_POINTER_BYTES
    small = [path for path in select(survey.sizes) if survey.sizes[path] <= longest]
    found = [path for path in small if lfs.pointer(survey.head(path, longest))]
    if found:
        raise NotAModel(
            f"{survey.place} holds git-lfs pointers instead of {some(found)}",
            hint="Run git lfs pull where it was packed, and pack it again",
        )
