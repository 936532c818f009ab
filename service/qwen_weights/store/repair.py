"""Mends a revision that was whole once: finds what is wrong in it, fetches only those bytes, proves
them, and replaces each file at once. Does not know who brings the bytes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qwen_weights.disk import (
    copy_range,
    let_others_read,
    make_dirs,
    reflink_into,
    share_content,
    sync_dir,
    sync_file,
    write_at,
)
from qwen_weights.errors import ChecksumMismatch, WrongPiece
from qwen_weights.manifest import Artifact, Manifest
from qwen_weights.store import Store, damage, inspection, pieces
from qwen_weights.store.inspection import Problem, Range, hashes_of, joined, piece_of, sha256_of
from qwen_weights.store.locks import open_locked
from qwen_weights.store.pieces import RunningHashes, new_digest
from qwen_weights.store.verify import renew
from qwen_weights.survey.hashing import cores


class FetchRange(Protocol):
    """Hands every byte from `first` to `end` to `write`, in order.

    Where `write` raises WrongPiece, it goes on at that byte with another source."""

    def __call__(
        self, artifact: Artifact, first: int, end: int, write: Callable[[memoryview], None]
    ) -> None: ...


@dataclass(frozen=True)
class Means:
    """What a repair works with. `keep_going` may raise to end it; what is done then stays done."""

    fetch_range: FetchRange
    keep_going: Callable[[], None]
    stop: threading.Event
    reserve_bytes: int
    jobs: int = cores()


class Repair:
    """The caller holds the lock of the revision."""

    def __init__(self, store: Store, manifest: Manifest, means: Means) -> None:
        self._store = store
        self._manifest = manifest
        self._means = means
        self._final = store.final_dir(manifest)
        self._recorded = pieces.load(self._final)
        self._problems: tuple[Problem, ...] = ()
        self._learned: dict[str, tuple[str, ...]] = {}

    def find(self) -> int:
        """Reads everything; the count of bytes that are not as proven. Raises Changed where the
        folder belongs to other artifacts."""
        self._store.holds(self._manifest)
        self._problems = inspection.problems(
            self._final,
            self._manifest,
            quick=False,
            jobs=self._means.jobs,
            keep_going=self._means.keep_going,
            learned=self._learned,
        )
        return sum(end - first for problem in self._problems for first, end in problem.ranges)

    def mend(self) -> tuple[str, ...]:
        """All that was found; returns what a person must see to."""
        by_path = {artifact.path: artifact for artifact in self._manifest.artifacts}
        for problem in self._problems:
            if problem.path in by_path:
                self._mend(by_path[problem.path], problem)
        if any(problem.path == pieces.NAME for problem in self._problems):
            self._record_anew()
        pieces.note(self._final, self._learned)
        damage.forget(self._final)
        renew(self._final, self._manifest)
        return tuple(
            f"{self._final}/{problem} and was left there: remove it by hand"
            for problem in self._problems
            if problem.path not in (*by_path, pieces.NAME)
        )

    def _mend(self, artifact: Artifact, problem: Problem) -> None:
        path = self._final / artifact.path
        others = tuple(self._names_of(path, artifact))
        with self._beside(artifact) as (beside, descriptor):
            if not self._take_copy(artifact, path, beside):
                self._make(_Damaged(artifact, path, problem.ranges), beside, descriptor)
                beside.chmod(0o444)
            sync_file(beside)
            make_dirs(path.parent)
            for name in (*others, path):
                self._replace(name, beside)
            beside.unlink()

    @contextmanager
    def _beside(self, artifact: Artifact) -> Iterator[tuple[Path, int]]:
        """A file of its own beside the partials, which are starts of files and have no gaps."""
        beside = self._store.partial_dir / f"{artifact.sha256}.repair"
        descriptor = open_locked(beside, self._means.stop)
        try:
            yield beside, descriptor
        finally:
            os.close(descriptor)

    def _names_of(self, path: Path, artifact: Artifact) -> Iterator[Path]:
        """Where else the damaged file lies: revisions share content by links."""
        if not path.exists() or path.is_symlink():
            return
        damaged = path.stat()
        for name in self._store.names(artifact):
            if name != path and name.exists() and os.path.samestat(name.lstat(), damaged):
                yield name

    def _replace(self, name: Path, beside: Path) -> None:
        """At once: whoever has the damaged file open keeps it, the next one gets this."""
        link = beside.with_suffix(".link")
        link.unlink(missing_ok=True)
        os.link(beside, link)
        os.replace(link, name)
        sync_dir(name.parent)

    def _take_copy(self, artifact: Artifact, path: Path, beside: Path) -> bool:
        """A sound copy in another revision costs nothing."""
        for copy in self._store.copies(artifact):
            if path.exists() and os.path.samestat(copy.stat(), path.stat()):
                continue
            with suppress(FileNotFoundError):  # a revision may be shown or removed meanwhile
                hashes = hashes_of(copy, self._means.keep_going)
                if hashes.sha256 == artifact.sha256 and share_content(copy, beside):
                    let_others_read(beside)
                    pieces.note(self._final, {artifact.sha256: hashes.all})
                    return True
        return False

    def _make(self, damaged: _Damaged, beside: Path, descriptor: int) -> None:
        artifact = damaged.artifact
        if self._recorded.of(artifact.sha256, artifact.size):
            self._patch(damaged, beside, descriptor)
            if sha256_of(beside, self._means.keep_going) == artifact.sha256:
                return
            # Every piece is as recorded, so the record is what is wrong.
            os.ftruncate(descriptor, 0)
        self._fetch_whole(artifact, beside, descriptor)

    def _patch(self, damaged: _Damaged, beside: Path, descriptor: int) -> None:
        """The good pieces of the damaged file, and only the others from a source."""
        artifact, digests = damaged.artifact, self._digests(damaged.artifact)
        bad = {bounds for bounds in digests if damaged.has_bad(bounds)}
        missing = self._wrong(beside, digests)
        if damaged.path.is_file():
            with open(damaged.path, "rb", buffering=0) as file:
                if len(missing) == len(digests) and reflink_into(file.fileno(), descriptor):
                    missing = bad
                self._require_room(missing)
                for first, end in sorted(missing - bad):
                    copy_range(file.fileno(), descriptor, first, end, self._means.keep_going)
            missing &= bad
        self._require_room(missing)
        os.ftruncate(descriptor, artifact.size)
        for first, end in joined(tuple(sorted(missing))):
            writer = _Writer(descriptor, artifact.path, first, digests)
            self._means.fetch_range(artifact, first, end, writer.write)

    def _digests(self, artifact: Artifact) -> dict[Range, str]:
        digests = self._recorded.of(artifact.sha256, artifact.size) or ()
        return dict(self._recorded.ranges(digests, artifact.size))

    def _wrong(self, beside: Path, digests: dict[Range, str]) -> set[Range]:
        """What an earlier repair put there and could not end is as good as new."""
        if not beside.stat().st_size:
            return set(digests)
        going = self._means.keep_going
        return {bounds for bounds, one in digests.items() if piece_of(beside, bounds, going) != one}

    def _fetch_whole(self, artifact: Artifact, beside: Path, descriptor: int) -> None:
        hashes = hashes_of(beside, self._means.keep_going)
        if hashes.size > artifact.size:
            hashes = RunningHashes()
            os.ftruncate(descriptor, 0)
        self._require_room([(hashes.size, artifact.size)])

        def append(content: memoryview) -> None:
            write_at(descriptor, content, hashes.size)
            hashes.update(content)

        self._means.fetch_range(artifact, hashes.size, artifact.size, append)
        if hashes.sha256 != artifact.sha256:
            os.ftruncate(descriptor, 0)
            raise ChecksumMismatch(
                f"{artifact.path} was brought with other bytes than the manifest says: "
                f"expected sha256 {artifact.sha256}, got {hashes.sha256}"
            )
        pieces.note(self._final, {artifact.sha256: hashes.all})

    def _require_room(self, ranges: Iterable[Range]) -> None:
        need = sum(end - first for first, end in ranges)
        self._store.require_room(need, self._means.reserve_bytes)

    def _record_anew(self) -> None:
        for artifact in self._manifest.artifacts:
            hashes = hashes_of(self._final / artifact.path, self._means.keep_going)
            pieces.note(self._final, {artifact.sha256: hashes.all})


@dataclass(frozen=True)
class _Damaged:
    artifact: Artifact
    path: Path
    ranges: tuple[Range, ...]

    def has_bad(self, bounds: Range) -> bool:
        return any(first < bounds[1] and bounds[0] < end for first, end in self.ranges)


class _Writer:
    """Takes the bytes of a range in order and judges each piece as it ends."""

    def __init__(self, descriptor: int, path: str, first: int, digests: dict[Range, str]) -> None:
        self._descriptor = descriptor
        self._path = path
        self._expected = {bounds[0]: (bounds[1], digest) for bounds, digest in digests.items()}
        self._begin(first)

    def _begin(self, first: int) -> None:
        self._first = self._position = first
        self._digest = new_digest()

    def write(self, content: memoryview) -> None:
        while content:
            end, expected = self._expected[self._first]
            part = content[: end - self._position]
            write_at(self._descriptor, part, self._position)
            self._digest.update(part)
            self._position += len(part)
            content = content[len(part) :]
            if self._position == end:
                self._judge(end, expected)

    def _judge(self, end: int, expected: str) -> None:
        first, is_right = self._first, self._digest.hexdigest() == expected
        self._begin(end if is_right else first)
        if not is_right:
            raise WrongPiece(
                first, f"{self._path} came with other bytes than were proven at {first}-{end - 1}"
            )
