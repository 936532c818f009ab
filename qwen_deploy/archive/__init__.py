"""A model in an archive on the operator's machine, inspected and served without unpacking it: the
same report as of a folder. Does not know hosts, hubs or how the bytes travel."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_deploy import manifest as manifests
from qwen_deploy import sums
from qwen_deploy.archive.kinds import Kind, kind_of
from qwen_deploy.archive.members import common_top, of_tar, of_zip
from qwen_deploy.archive.memory import Found, Memory
from qwen_deploy.archive.opened import (
    POINTER_BYTES,
    SMALL_BYTES,
    Opened,
    Place,
    RandomArchive,
    StreamArchive,
)
from qwen_deploy.archive.stream import Streams
from qwen_deploy.checkpoint import (
    READ,
    SUMS_NAME,
    Checkpoint,
    CheckpointRefused,
    select,
    some,
)
from qwen_deploy.content import Content
from qwen_deploy.hashes import Progress, Stamp
from qwen_deploy.manifest import Artifact, Manifest, Origin

_COMPRESSED = ("tar.gz", "tar.zst")
_LISTS = (manifests.NAME, SUMS_NAME)
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True, slots=True)
class ArchiveReport:
    """`is_stream` says that members are best read one after the other."""

    archive: Path
    manifest: Manifest
    members: Mapping[str, Content]
    is_stream: bool

    def contents(self) -> Mapping[str, Content]:
        return self.members


def inspect(
    archive: Path,
    *,
    model: str,
    cache_path: Path,
    progress: Progress | None = None,
    now_ns: Callable[[], int] = time.time_ns,
) -> ArchiveReport:
    """Raises CheckpointRefused at the first thing wrong. `progress` gets (bytes read, bytes to
    read), from several threads but one at a time."""
    archive = Path(os.path.abspath(archive.expanduser()))
    try:
        kind, stamp = kind_of(archive), Stamp.of(archive.stat())
        memory = Memory(cache_path.parent, now_ns)
        found = memory.get(archive, stamp, model)
        if found is None:
            found = _find(archive, kind, stamp, model, progress or (lambda done, total: None))
            _check_unchanged(archive, stamp)
            memory.put(archive, stamp, found)
        contents = _contents(archive, kind, stamp, found)
    except OSError as error:
        raise CheckpointRefused(f"{archive}: cannot be read: {error.strerror}") from error
    return ArchiveReport(archive, found.manifest, contents, kind in _COMPRESSED)


def _find(archive: Path, kind: Kind, stamp: Stamp, model: str, progress: Progress) -> Found:
    opened: Opened
    starts: Mapping[str, int] = {}
    if kind in _COMPRESSED:
        keeps = (*READ, *_LISTS)
        opened = stream = StreamArchive(archive, kind, stamp, keeps=keeps, progress=progress)
        starts = {name: place.start for name, place in stream.places.items()}
    else:
        opened = RandomArchive(archive, kind, stamp)
    judged = _Judged(archive, opened)
    judged.check()
    manifest = judged.manifest(model, progress)
    names = {artifact.path: judged.name(artifact.path) for artifact in manifest.artifacts}
    return Found(manifest, names, {path: starts[names[path]] for path in names if starts})


def _contents(archive: Path, kind: Kind, stamp: Stamp, found: Found) -> Mapping[str, Content]:
    if kind in _COMPRESSED:
        streams = Streams(archive, stamp, kind)
        return {
            one.path: Place(found.starts[one.path], one.size).content(streams)
            for one in found.manifest.artifacts
        }
    members = of_zip(archive, stamp) if kind == "zip" else of_tar(archive, stamp)
    return {path: members[name].content for path, name in found.members.items()}


def _check_unchanged(archive: Path, stamp: Stamp) -> None:
    if Stamp.of(archive.stat()) != stamp:
        raise CheckpointRefused(
            f"{archive} changed while it was read", hint="Wait until nothing writes into it"
        )


class _Judged:
    """The archive's members as files of a model, by their paths below its folder."""

    def __init__(self, archive: Path, opened: Opened) -> None:
        self._place = str(archive)
        self._opened = opened
        sizes = opened.sizes
        self._prefix = common_top(sizes)
        self._sizes = {name.removeprefix(self._prefix): size for name, size in sizes.items()}
        self._files = select(self._sizes)

    def name(self, path: str) -> str:
        return self._prefix + path

    def check(self) -> None:
        small = [path for path in self._files if self._sizes[path] <= POINTER_BYTES]
        pointers = [path for path in small if self._read(path).startswith(_LFS_POINTER)]
        if pointers:
            raise CheckpointRefused(
                f"{self._place} holds git-lfs pointers instead of {some(pointers)}",
                hint="Run git lfs pull where it was packed, and pack it again",
            )
        Checkpoint(self._place, self._files, self._read).check()

    def manifest(self, model: str, progress: Progress) -> Manifest:
        lists = {path: self._read(path) for path in _LISTS if path in self._sizes}
        recorded = sums.read(self._place, self._files, lists)
        artifacts = self._artifacts(progress)
        recorded.check(self._place, artifacts)
        try:
            return recorded.name(model, artifacts, Origin("archive"))
        except manifests.ManifestError as error:
            raise CheckpointRefused(f"{self._place}: {error}") from error

    def _artifacts(self, progress: Progress) -> Sequence[Artifact]:
        proven = self._opened.prove([self.name(path) for path in self._files], progress)
        by_path = {path: proven[self.name(path)] for path in self._files}
        broken = [f"{path} {one.fault}" for path, one in by_path.items() if one.fault]
        if broken:
            raise CheckpointRefused(
                f"{self._place}: {some(broken)}", hint="Copy or download the archive again"
            )
        return [Artifact(path, self._sizes[path], one.sha256) for path, one in by_path.items()]

    def _read(self, path: str) -> bytes:
        if self._sizes[path] > SMALL_BYTES:
            raise CheckpointRefused(f"{self._place}/{path} is too large: {self._sizes[path]} bytes")
        return self._opened.read(self.name(path))
