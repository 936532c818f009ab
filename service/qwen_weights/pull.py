"""A whole transfer: what is missing, whether it fits, who brings it, and its activation. Does not
know command lines, signals or HTTP."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import Stopped
from .fetch import Fetcher
from .locks import open_locked
from .manifest import Artifact, Manifest
from .partial import Partial
from .progress import Progress
from .sources import Source
from .store import Store
from .verify import sha256_of

_LOOKS_FOR_COPIES = 3


@dataclass(frozen=True)
class Limits:
    connections: int = 4
    retry_seconds: float = 60
    reserve_bytes: int = 64 << 20  # a full disk stops more than a transfer


class Transfer:
    def __init__(
        self,
        manifest: Manifest,
        store: Store,
        source: Source,
        *,
        limits: Limits,
        progress: Progress,
        stop: threading.Event,
    ) -> None:
        self._manifest = manifest
        self._store = store
        self._source = source
        self._limits = limits
        self._progress = progress
        self._stop = stop
        self._fetcher = Fetcher(source, progress, stop, retry_seconds=limits.retry_seconds)

    def run(self) -> None:
        """The caller holds the revision's lock."""
        if not self._store.holds(self._manifest):
            self._store.require_room(self._missing_bytes(), self._limits.reserve_bytes)
            self._store.stage(self._manifest)
            self._obtain_all()
            self._progress.enter("verifying")
            self._store.activate(self._manifest)
        self._progress.whole()

    def _contents(self) -> list[tuple[Artifact, ...]]:
        """The artifacts, those of equal content together, the largest first."""
        by_content: dict[str, tuple[Artifact, ...]] = {}
        for artifact in self._manifest.artifacts:
            by_content[artifact.sha256] = (*by_content.get(artifact.sha256, ()), artifact)
        return sorted(by_content.values(), key=lambda same: -same[0].size)

    def _missing_bytes(self) -> int:
        return sum(
            first.size - self._store.kept_bytes(first)
            for first, *_ in self._contents()
            if next(self._store.copies(first), None) is None
        )

    def _obtain_all(self) -> None:
        pool = ThreadPoolExecutor(self._limits.connections, thread_name_prefix="fetch")
        try:
            futures = [pool.submit(self._obtain, same) for same in self._contents()]
            ended, _ = wait(futures, return_when=FIRST_EXCEPTION)
            _raise_first(ended)
        finally:
            # Also on an error: nothing may write once the lock is gone.
            self._stop.set()
            self._source.close()
            pool.shutdown(cancel_futures=True)

    def _obtain(self, same: tuple[Artifact, ...]) -> None:
        missing = [a for a in same if not self._store.is_staged(self._manifest, a)]
        for artifact in missing:
            self._obtain_one(artifact)
        staged = len(same) - len(missing)
        self._progress.kept(staged * same[0].size)
        self._progress.files(staged)

    def _obtain_one(self, artifact: Artifact) -> None:
        with self._partial(artifact) as (path, partial):
            if self._link_copy(artifact):
                self._progress.kept(artifact.size)
                path.unlink()
            else:
                self._fetcher.complete(artifact, partial)
                self._store.place(path, self._manifest, artifact)
        self._progress.files(1)

    @contextmanager
    def _partial(self, artifact: Artifact) -> Iterator[tuple[Path, Partial]]:
        """Locked: another revision may want the same content at the same time."""
        path = self._store.partial_path(artifact)
        descriptor = open_locked(path, self._stop)
        try:
            yield path, Partial(descriptor)
        finally:
            os.close(descriptor)

    def _link_copy(self, artifact: Artifact) -> bool:
        """A copy may move while it is read, when another transfer shows its revision."""
        for _ in range(_LOOKS_FOR_COPIES):
            with suppress(FileNotFoundError):
                for copy in self._store.copies(artifact):
                    if sha256_of(copy, self._fetcher.keep_going) == artifact.sha256:
                        self._store.place(copy, self._manifest, artifact)
                        return True
                return False
        return False


def _raise_first(ended: set[Future[None]]) -> None:
    """The cause rather than the threads that were stopped because of it."""
    errors = [error for error in (future.exception() for future in ended) if error]
    causes = [error for error in errors if not isinstance(error, Stopped)]
    for error in causes or errors:
        raise error
