"""Proves a folder against the manifest beside it, offline. Does not know how it came there."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import manifest as manifests
from .errors import BadManifest, Missing
from .manifest import Artifact, Manifest

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Problem:
    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def load(directory: Path) -> Manifest:
    path = directory / manifests.NAME
    try:
        return manifests.parse(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise Missing(f"{path} is missing: nothing says what the folder should hold") from None
    except UnicodeDecodeError:
        raise BadManifest(f"{path} is not UTF-8 text") from None


def problems(directory: Path, manifest: Manifest, *, quick: bool, jobs: int) -> tuple[Problem, ...]:
    """Sizes and names at once; the content too unless `quick`, hashed on `jobs` cores."""

    def judge(artifact: Artifact) -> Problem | None:
        return _judge(directory, artifact, quick=quick)

    largest_first = sorted(manifest.artifacts, key=lambda artifact: -artifact.size)
    with ThreadPoolExecutor(jobs) as pool:
        judged = [problem for problem in pool.map(judge, largest_first) if problem]
    listed = {artifact.path for artifact in manifest.artifacts} | {manifests.NAME}
    extra = (Problem(path, "is not in the manifest") for path in _files(directory, listed))
    return tuple(sorted((*judged, *extra), key=lambda problem: problem.path))


def sha256_of(path: Path, on_piece: Callable[[], None] | None = None) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_PIECE_BYTES))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if on_piece:
                on_piece()
    return digest.hexdigest()


def cores() -> int:
    return len(os.sched_getaffinity(0))


def has_all(directory: Path, manifest: Manifest) -> bool:
    """By names and sizes: a folder gets its final name only after every byte was proven."""
    return all(is_file_of_size(directory / a.path, a.size) for a in manifest.artifacts)


def is_file_of_size(path: Path, size: int) -> bool:
    """A regular file itself: a link could lead anywhere tomorrow."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def _judge(directory: Path, artifact: Artifact, *, quick: bool) -> Problem | None:
    path = directory / artifact.path
    if not os.path.lexists(path):
        return Problem(artifact.path, "is missing")
    if path.is_symlink() or not path.is_file():
        return Problem(artifact.path, "is not a regular file")
    try:
        size = path.stat().st_size
        if size != artifact.size:
            return Problem(artifact.path, f"expected {artifact.size} bytes, got {size}")
        got = artifact.sha256 if quick else sha256_of(path)
    except OSError as error:
        return Problem(artifact.path, f"cannot be read: {error.strerror}")
    if got != artifact.sha256:
        return Problem(artifact.path, f"expected sha256 {artifact.sha256}, got {got}")
    return None


def _files(directory: Path, listed: set[str]) -> Iterator[str]:
    for folder, folders, names in os.walk(directory):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*names, *links):
            path = os.path.relpath(os.path.join(folder, name), directory)
            if path not in listed:
                yield path
