"""What an order asks for, one revision after the other: what is missing, whether it fits, who
brings it, and its activation. Does not know command lines, signals or sources."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qwen_weights.errors import DiskFull, Stopped, WeightsError
from qwen_weights.manifest import Artifact, Manifest
from qwen_weights.pull.account import Account
from qwen_weights.pull.fetch import Fetcher
from qwen_weights.pull.order import Order
from qwen_weights.pull.pool import Pool
from qwen_weights.pull.progress import Progress
from qwen_weights.pull.reading import Reader
from qwen_weights.relay.shelf import Shelf
from qwen_weights.sources import Interruption
from qwen_weights.sources.archive import ArchiveSource
from qwen_weights.sources.folder import FolderSource
from qwen_weights.store import Store, damage, repair
from qwen_weights.store.locks import open_locked, release
from qwen_weights.store.partial import Partial
from qwen_weights.survey.known import Stamp


@dataclass(frozen=True)
class Parts:
    """Who works for a transfer."""

    store: Store
    pool: Pool
    reader: Reader
    fetcher: Fetcher
    shelf: Shelf
    account: Account
    progress: Progress
    stop: threading.Event


class Transfer:
    def __init__(self, order: Order, parts: Parts) -> None:
        self._order = order
        self._limits = order.limits
        self._store = parts.store
        self._pool = parts.pool
        self._reader = parts.reader
        self._fetcher = parts.fetcher
        self._shelf = parts.shelf
        self._account = parts.account
        self._progress = parts.progress
        self._stop = parts.stop
        self._proven: dict[str, dict[str, Stamp]] = {}

    def run(self) -> None:
        try:
            for at, manifest in enumerate(self._order.manifests):
                self._progress.begin(manifest, self._store.final_dir(manifest))
                with self._store.lock(manifest, self._stop):
                    self._bring(manifest, self._order.manifests[at:])
            self._progress.whole()
        except BaseException:
            self._shelf.end()  # whoever reads here looks elsewhere
            raise

    def record_pieces(self) -> None:
        """Once nobody waits any more: so that damage can be found within a file one day."""
        with suppress(Stopped, OSError):
            for manifest in self._order.manifests if self._order.share is None else ():
                with self._store.lock(manifest, self._stop):
                    proven = self._proven.get(manifest.revision, {})
                    self._store.record_pieces(manifest, proven, self._reader.keep_going)

    def _bring(self, manifest: Manifest, remaining: Sequence[Manifest]) -> None:
        final = self._store.final_dir(manifest)
        self._proven[manifest.revision] = {}
        if final.is_dir() and (self._order.repair or damage.known(final) is not None):
            self._mend(manifest)
        elif self._store.holds(manifest):
            self._store.record_proof(manifest)
            self._progress.kept(manifest.total_bytes)
            self._progress.files(len(manifest.artifacts))
        else:
            need = self._store.missing_bytes(remaining, self._local_path)
            self._store.require_room(need, self._limits.reserve_bytes)
            self._store.stage(manifest)
            self._account.learn(self._store.staging_dir(manifest))
            self._obtain_all(manifest)
            self._progress.enter("verifying")
            self._store.activate(manifest)
        self._account.learn(final)
        for artifact in manifest.artifacts:
            self._shelf.rests(artifact.sha256, final / artifact.path)

    def _mend(self, manifest: Manifest) -> None:
        means = repair.Means(
            self._fetcher.fetch_range,
            self._reader.keep_going,
            self._stop,
            self._limits.reserve_bytes,
        )
        mending = repair.Repair(self._store, manifest, means)
        bad_bytes = mending.find()
        self._progress.kept(manifest.total_bytes - bad_bytes)
        for warning in mending.mend():
            self._progress.warn(warning)
        self._progress.files(len(manifest.artifacts))

    def _obtain_all(self, manifest: Manifest) -> None:
        contents = _contents(manifest)
        for artifact in self._reading_order([same[0] for same in contents.values()]):
            self._obtain(manifest, contents.pop(artifact.sha256))
        executor = ThreadPoolExecutor(self._limits.connections, thread_name_prefix="fetch")
        try:
            futures = [
                executor.submit(self._obtain, manifest, same)
                for same in sorted(contents.values(), key=lambda same: -same[0].size)
            ]
            ended, _ = wait(futures, return_when=FIRST_EXCEPTION)
            _raise_first(ended)
        except BaseException:
            # Nothing may write once the lock is gone.
            self._stop.set()
            self._pool.close()
            raise
        finally:
            executor.shutdown(cancel_futures=True)

    def _reading_order(self, artifacts: Sequence[Artifact]) -> Iterator[Artifact]:
        """A compressed archive is read in its own order, here or on the operator's machine. What
        follows where it breaks is for any source to bring, or for the pool to say why not."""
        by_path = {artifact.path: artifact for artifact in artifacts}
        yield from (by_path[path] for path in self._order.sequence if path in by_path)
        if self._order.sequence:
            return
        source = next(iter(self._pool.sources), None)
        order = source.reading_order(artifacts) if isinstance(source, ArchiveSource) else None
        with suppress(WeightsError, Interruption):
            yield from order or ()

    def _obtain(self, manifest: Manifest, same: tuple[Artifact, ...]) -> None:
        """Artifacts of equal content, one after the other: the next ones link to the first."""
        for artifact in same:
            path = self._store.staging_dir(manifest) / artifact.path
            if self._store.is_staged(manifest, artifact):
                self._progress.kept(artifact.size)
            else:
                self._obtain_one(manifest, artifact)
            self._shelf.rests(artifact.sha256, path)
            self._progress.files(1)

    def _obtain_one(self, manifest: Manifest, artifact: Artifact) -> None:
        """Locked: another revision may want the same content at the same time."""
        path = self._store.partial_path(artifact)
        descriptor = open_locked(path, self._stop)
        try:
            if self._adopt(manifest, artifact):
                path.unlink()
                return
            partial = Partial(
                descriptor,
                reserve_bytes=self._limits.reserve_bytes,
                with_pieces=self._order.share is not None,
            )
            self._account.grows(artifact.sha256, partial)
            self._fetcher.complete(artifact, partial)
            self._store.place(path, manifest, artifact, partial.all_pieces)
            self._account.rests(artifact.sha256, partial.all_pieces)
            placed = self._store.staging_dir(manifest) / artifact.path
            self._proven[manifest.revision][artifact.path] = Stamp.of(placed.stat())
        except DiskFull as error:
            reached = self._progress.reached()
            raise DiskFull(f"the disk of {self._store.root} is {error}; {reached}") from error
        finally:
            release(descriptor)

    def _adopt(self, manifest: Manifest, artifact: Artifact) -> bool:
        """What lies on this host already, in another revision or a folder, is linked."""
        for path in (*self._store.copies(artifact), *self._local_paths(artifact)):
            if self._store.adopt(path, manifest, artifact, self._reader.keep_going):
                self._progress.kept(artifact.size)
                self._account.learn(self._store.staging_dir(manifest))
                return True
        return False

    def _local_paths(self, artifact: Artifact) -> Iterator[Path]:
        for source in self._pool.sources:
            path = source.local_path(artifact) if isinstance(source, FolderSource) else None
            if path:
                yield path

    def _local_path(self, artifact: Artifact) -> Path | None:
        return next(self._local_paths(artifact), None)


def _contents(manifest: Manifest) -> dict[str, tuple[Artifact, ...]]:
    """The artifacts by content."""
    found: dict[str, tuple[Artifact, ...]] = {}
    for artifact in manifest.artifacts:
        found[artifact.sha256] = (*found.get(artifact.sha256, ()), artifact)
    return found


def _raise_first(ended: set[Future[None]]) -> None:
    """The cause rather than the threads that were stopped because of it."""
    errors = [error for error in (future.exception() for future in ended) if error]
    causes = [error for error in errors if not isinstance(error, Stopped)]
    for error in causes or errors:
        raise error
