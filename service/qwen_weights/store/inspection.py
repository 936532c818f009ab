"""What is wrong with the files of a folder, read over all cores: by pieces where those are
recorded, else by SHA-256. Does not know how the files came there or what follows."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from qwen_weights import disk
from qwen_weights import manifest as manifests
from qwen_weights.errors import BadManifest, Missing
from qwen_weights.manifest import Artifact, Manifest
from qwen_weights.store import pieces
from qwen_weights.store.pieces import PIECE_BYTES, Pieces, RunningHashes

_READ_BYTES = 1 << 20
Range = tuple[int, int]
Judged = Callable[[], "Problem | None"]


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Problem:
    """`ranges` are the bytes that are not as proven, each up to its end."""

    path: str
    what: str
    ranges: tuple[Range, ...] = ()

    def __str__(self) -> str:
        named = ", ".join(f"{first}-{end - 1}" for first, end in self.ranges)
        return f"{self.path}: {self.what}" + (f"; bytes {named}" if named else "")


def load(directory: Path) -> Manifest:
    path = directory / manifests.NAME
    try:
        return manifests.parse(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise Missing(f"{path} is missing: nothing says what the folder should hold") from None
    except UnicodeDecodeError:
        raise BadManifest(f"{path} is not UTF-8 text") from None


def problems(
    directory: Path,
    manifest: Manifest,
    *,
    quick: bool,
    jobs: int,
    keep_going: Callable[[], None] = _nothing,
    learned: dict[str, tuple[str, ...]] | None = None,
) -> tuple[Problem, ...]:
    """Names and sizes; the content too unless `quick`, on `jobs` cores.

    `keep_going` is called for every read, and may raise to end it all. `learned` takes the pieces
    of what is proven and has none recorded, by SHA-256."""
    pool = ThreadPoolExecutor(jobs)
    recorded = None if quick else pieces.load(directory)
    inspection = _Inspection(directory, recorded, pool, keep_going, learned)
    # What cannot be divided goes first, so that nothing large is left for one core at the end.
    ordered = sorted(manifest.artifacts, key=lambda a: (inspection.divides(a), -a.size))
    try:
        judged = [inspection.start(artifact) for artifact in ordered]
        found = [problem for problem in (judge() for judge in judged) if problem]
    finally:
        pool.shutdown(cancel_futures=True)
    return tuple(sorted((*found, *strangers(directory, manifest)), key=lambda one: one.path))


class _Inspection:
    def __init__(
        self,
        directory: Path,
        recorded: Pieces | None,
        pool: Executor,
        keep_going: Callable[[], None],
        learned: dict[str, tuple[str, ...]] | None,
    ) -> None:
        self._directory = directory
        self._recorded = recorded
        self._pool = pool
        self._keep_going = keep_going
        self._learned = learned

    def divides(self, artifact: Artifact) -> bool:
        recorded = self._recorded
        return recorded is not None and recorded.of(artifact.sha256, artifact.size) is not None

    def start(self, artifact: Artifact) -> Judged:
        """Gives the work to the pool; what it returns waits for the result."""
        path, whole = self._directory / artifact.path, _whole(artifact)
        if not os.path.lexists(path):
            return _known(Problem(artifact.path, "is missing", whole))
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            return _known(Problem(artifact.path, "is not a regular file", whole))
        expected = self._recorded and self._recorded.of(artifact.sha256, artifact.size)
        if self._recorded and expected:
            return self._by_pieces(artifact, path, status.st_size, expected, self._recorded)
        if status.st_size != artifact.size:
            return _known(Problem(artifact.path, _sizes(artifact, status.st_size), whole))
        return self._by_sha256(artifact, path) if self._recorded else _known(None)

    def _by_sha256(self, artifact: Artifact, path: Path) -> Judged:
        future = self._pool.submit(
            hashes_of, path, self._keep_going, with_pieces=self._learned is not None
        )

        def judge() -> Problem | None:
            whole = _whole(artifact)
            try:
                got = future.result()
            except OSError as error:
                return Problem(artifact.path, f"cannot be read: {error.strerror}", whole)
            if got.sha256 == artifact.sha256:
                if self._learned is not None:
                    self._learned[artifact.sha256] = got.all
                return None
            what = f"expected sha256 {artifact.sha256}, got {got.sha256}"
            return Problem(artifact.path, what, whole)

        return judge

    def _by_pieces(
        self, artifact: Artifact, path: Path, size: int, expected: tuple[str, ...], recorded: Pieces
    ) -> Judged:
        futures = [
            (self._pool.submit(piece_of, path, bounds, self._keep_going), bounds, digest)
            for bounds, digest in recorded.ranges(expected, artifact.size)
        ]

        def judge() -> Problem | None:
            bad = tuple(bounds for future, bounds, digest in futures if future.result() != digest)
            if size != artifact.size:
                return Problem(artifact.path, _sizes(artifact, size), joined(bad))
            return self._arbitrate(artifact, path, joined(bad)) if bad else None

        return judge

    def _arbitrate(self, artifact: Artifact, path: Path, bad: tuple[Range, ...]) -> Problem | None:
        """The record of the pieces may be what is damaged; SHA-256 has the last word."""
        try:
            if sha256_of(path, self._keep_going) == artifact.sha256:
                what = f"is wrong about {artifact.path}, whose SHA-256 is right"
                return Problem(pieces.NAME, what)
        except OSError as error:
            return Problem(artifact.path, f"cannot be read: {error.strerror}", bad)
        return Problem(artifact.path, "has other bytes than were proven", bad)


def _whole(artifact: Artifact) -> tuple[Range, ...]:
    return ((0, artifact.size),) if artifact.size else ()


def _known(problem: Problem | None) -> Judged:
    return lambda: problem


def _sizes(artifact: Artifact, got: int) -> str:
    return f"expected {artifact.size} bytes, got {got}"


def joined(ranges: tuple[Range, ...]) -> tuple[Range, ...]:
    """Ranges in order, those that touch as one."""
    made: list[Range] = []
    for first, end in ranges:
        if made and made[-1][1] == first:
            made[-1] = (made[-1][0], end)
        else:
            made.append((first, end))
    return tuple(made)


def piece_of(path: Path, bounds: Range, keep_going: Callable[[], None]) -> str | None:
    """The hash of one piece; none where the file ends earlier or the disk cannot read it."""
    digest, (position, end) = pieces.new_digest(), bounds
    try:
        with open(path, "rb", buffering=0) as file:
            for content in _reads(file.fileno(), position, end, keep_going):
                digest.update(content)
                position += len(content)
    except OSError:
        return None
    return digest.hexdigest() if position == end else None


def pieces_of(path: Path, size: int, keep_going: Callable[[], None]) -> tuple[str, ...] | None:
    """The hashes of all pieces; none where the disk cannot read one."""
    bounds = [(first, min(first + PIECE_BYTES, size)) for first in range(0, size, PIECE_BYTES)]
    digests = [digest for one in bounds if (digest := piece_of(path, one, keep_going))]
    return tuple(digests) if len(digests) == len(bounds) else None


def sha256_of(path: Path, keep_going: Callable[[], None] = _nothing) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        for content in _reads(file.fileno(), 0, None, keep_going):
            digest.update(content)
    return digest.hexdigest()


def hashes_of(
    path: Path, keep_going: Callable[[], None] = _nothing, *, with_pieces: bool = True
) -> RunningHashes:
    hashes = RunningHashes(with_pieces=with_pieces)
    with open(path, "rb", buffering=0) as file:
        for content in _reads(file.fileno(), 0, None, keep_going):
            hashes.update(content)
    return hashes


def _reads(
    descriptor: int, position: int, end: int | None, keep_going: Callable[[], None]
) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_READ_BYTES))
    while end is None or position < end:
        keep_going()
        limit = _READ_BYTES if end is None else min(_READ_BYTES, end - position)
        count = os.preadv(descriptor, [buffer[:limit]], position)
        if not count:
            return
        position += count
        yield buffer[:count]


def has_all(directory: Path, manifest: Manifest) -> bool:
    """By names and sizes: a folder gets its final name only after every byte was proven."""
    return all(disk.is_file_of_size(directory / a.path, a.size) for a in manifest.artifacts)


def strangers(directory: Path, manifest: Manifest) -> Iterator[Problem]:
    """What nobody has proven."""
    own = (*manifests.OWN_NAMES, *(disk.unfinished(name) for name in manifests.OWN_NAMES))
    listed = {artifact.path for artifact in manifest.artifacts} | set(own)
    for folder, folders, names in os.walk(directory):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*names, *links):
            path = os.path.relpath(os.path.join(folder, name), directory)
            if path not in listed:
                yield Problem(path, "is not in the manifest")
