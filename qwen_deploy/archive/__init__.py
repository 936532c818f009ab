"""A model in an archive on the operator's machine, inspected and served without unpacking it: the
same report as of a folder. Does not know hosts, hubs or how the bytes travel."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen_weights import archives
from qwen_weights.archives import Member
from qwen_weights.manifest import Manifest
from qwen_weights.sources import Interruption
from qwen_weights.survey import Tell, manifest_of
from qwen_weights.survey.archive import look
from qwen_weights.survey.folder import CHANGING

from qwen_deploy.archive.memory import Found, Memory
from qwen_deploy.archive.stream import StreamContent, Streams, unpack
from qwen_deploy.archive.zipped import ZipContent
from qwen_deploy.checkpoint import CheckpointRefused, refusals
from qwen_deploy.content import Content, FileContent
from qwen_deploy.hashes import Progress, Stamp


@dataclass(frozen=True, slots=True)
class ArchiveReport:
    """`sequence` is the order in which members are to be read, one after the other, if the archive
    is to be unpacked once only; empty where any order will do."""

    archive: Path
    manifest: Manifest
    members: Mapping[str, Content]
    sequence: tuple[str, ...]

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
        with refusals():
            kind, stamp = archives.kind_of(archive), Stamp.of(archive.stat())
            memory = Memory(cache_path.parent, now_ns)
            found = memory.get(archive, stamp, model)
            if found is None:
                found = _find(archive, model, progress or (lambda done, total: None))
                _check_unchanged(archive, stamp)
                memory.put(archive, stamp, found)
    except Interruption as error:
        raise CheckpointRefused(f"{archive}: {error}") from error
    except OSError as error:
        raise CheckpointRefused(f"{archive}: cannot be read: {error.strerror}") from error
    contents = _contents(archive, kind, stamp, found.members)
    sequence = _by_place(found.members) if kind in archives.COMPRESSED else ()
    return ArchiveReport(archive, found.manifest, contents, sequence)


def _find(archive: Path, model: str, tell: Tell) -> Found:
    survey = look(archive, tell, unpack)
    manifest = manifest_of(survey, model, model, tell)
    paths = [artifact.path for artifact in manifest.artifacts]
    return Found(manifest, {path: survey.members[path] for path in paths})


def _contents(
    archive: Path, kind: str, stamp: Stamp, members: Mapping[str, Member]
) -> Mapping[str, Content]:
    streams = Streams(archive, stamp, kind) if kind in archives.COMPRESSED else None

    def content(member: Member) -> Content:
        if member.first is None:
            return ZipContent(archive, stamp, member)
        if streams:
            return StreamContent(streams, member.first, member.size)
        return FileContent(archive, stamp, member.first, member.size)

    return {path: content(member) for path, member in members.items()}


def _by_place(members: Mapping[str, Member]) -> tuple[str, ...]:
    return tuple(sorted(members, key=lambda path: members[path].first or 0))


def _check_unchanged(archive: Path, stamp: Stamp) -> None:
    if Stamp.of(archive.stat()) != stamp:
        raise CheckpointRefused(f"{archive} changed while it was read", hint=CHANGING)
