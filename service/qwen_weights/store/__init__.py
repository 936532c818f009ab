"""Where weights lie below the root: partials by content, revisions by name, and how a revision
comes to be there whole or not at all. Does not know where bytes come from."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from qwen_weights import manifest as manifests
from qwen_weights.disk import (
    free_bytes,
    is_file_of_size,
    let_others_read,
    make_dirs,
    share_content,
    sync_dir,
    sync_file,
    write_durably,
)
from qwen_weights.errors import BadManifest, Changed, DiskFull, HostRefused, in_units
from qwen_weights.manifest import Artifact, Manifest
from qwen_weights.store import pieces
from qwen_weights.store.inspection import has_all, hashes_of, pieces_of
from qwen_weights.store.locks import open_locked
from qwen_weights.store.verify import now
from qwen_weights.survey.known import Stamp

Elsewhere = Callable[[Artifact], "Path | None"]


class Store:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.partial_dir = root / "partial"
        self.models_dir = root / "models"
        self._noting = threading.Lock()

    def final_dir(self, manifest: Manifest) -> Path:
        return self.models_dir / manifest.model.replace("/", "--") / manifest.revision

    def staging_dir(self, manifest: Manifest) -> Path:
        return self.final_dir(manifest).with_name(f"{manifest.revision}.tmp")

    def partial_path(self, artifact: Artifact) -> Path:
        return self.partial_dir / f"{artifact.sha256}.part"

    @contextmanager
    def lock(self, manifest: Manifest, stop: threading.Event) -> Iterator[None]:
        """One transfer of a revision at a time; the next one waits and finds the result."""
        final = self.final_dir(manifest)
        make_dirs(self.partial_dir)
        make_dirs(final.parent)
        path = final.with_name(f"{manifest.revision}.lock")
        descriptor = open_locked(path, stop)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            os.close(descriptor)

    def holds(self, manifest: Manifest) -> bool:
        """The revision is there, whole by names and sizes."""
        final = self.final_dir(manifest)
        there = recorded(final)
        if there is not None and there.artifacts != manifest.artifacts:
            raise Changed(
                f"{final} already holds other artifacts under the revision {manifest.revision}"
            )
        return there is not None and has_all(final, manifest)

    def record_proof(self, manifest: Manifest) -> None:
        """What a revision that is there was proven against, where the manifest knows more."""
        final = self.final_dir(manifest)
        there = recorded(final)
        if there is None or _strength(there) >= _strength(manifest):
            return
        told = replace(there, origin=manifest.origin, proof=manifest.proof)
        write_durably(final / manifests.NAME, told.to_json())

    def stage(self, manifest: Manifest) -> None:
        """Prepares the folder that becomes the revision; what it proved before stays."""
        staging = self.staging_dir(manifest)
        there = recorded(staging)
        if there is None or there.artifacts != manifest.artifacts:
            if staging.exists():
                shutil.rmtree(staging)
            make_dirs(staging)
            write_durably(staging / manifests.NAME, manifest.to_json())

    def is_staged(self, manifest: Manifest, artifact: Artifact) -> bool:
        """Only proven files are ever moved into the staging folder."""
        return is_file_of_size(self.staging_dir(manifest) / artifact.path, artifact.size)

    def copies(self, artifact: Artifact) -> Iterator[Path]:
        """Files of any revision that should hold the content of the artifact."""
        for path in self.names(artifact):
            if is_file_of_size(path, artifact.size):
                yield path

    def names(self, artifact: Artifact) -> Iterator[Path]:
        """Where any revision should have the content of the artifact."""
        for record in sorted(self.models_dir.glob(f"*/*/{manifests.NAME}")):
            there = recorded(record.parent)
            for other in there.artifacts if there else ():
                if other.sha256 == artifact.sha256:
                    yield record.parent / other.path

    def missing_bytes(self, wanted: Iterable[Manifest], elsewhere: Elsewhere) -> int:
        """What the disk must take: neither what is there, nor what a link will do for.

        `elsewhere` names the file of another folder of this host, where there is one."""
        contents = {
            artifact.sha256: (manifest, artifact)
            for manifest in wanted
            for artifact in manifest.artifacts
        }
        return sum(
            artifact.size - self.kept_bytes(artifact)
            for manifest, artifact in contents.values()
            if not self._needs_no_room(manifest, artifact, elsewhere)
        )

    def _needs_no_room(self, manifest: Manifest, artifact: Artifact, elsewhere: Elsewhere) -> bool:
        if self.is_staged(manifest, artifact) or next(self.copies(artifact), None) is not None:
            return True
        path = elsewhere(artifact)
        return path is not None and path.stat().st_dev == self.partial_dir.stat().st_dev

    def kept_bytes(self, artifact: Artifact) -> int:
        try:
            return min(self.partial_path(artifact).stat().st_size, artifact.size)
        except FileNotFoundError:
            return 0

    def require_room(self, need_bytes: int, reserve_bytes: int) -> None:
        """On the file system that will hold the weights, before anything is written to it."""
        if self.partial_dir.stat().st_dev != self.models_dir.stat().st_dev:
            raise HostRefused(
                f"{self.partial_dir} and {self.models_dir} are on different file systems, "
                f"so that no file can be moved between them: mount {self.root} as a whole"
            )
        free = free_bytes(self.partial_dir)
        if need_bytes and need_bytes + reserve_bytes > free:
            raise DiskFull(
                f"the disk of {self.root} is too small: need {in_units(need_bytes)} more, "
                f"{in_units(free)} are free and {in_units(reserve_bytes)} of them must stay so"
            )

    def place(
        self, partial: Path, manifest: Manifest, artifact: Artifact, digests: tuple[str, ...]
    ) -> None:
        """Gives a proven partial its name in the staging folder; `digests` are its pieces', none
        where they are to be recorded later."""
        partial.chmod(0o444)
        self._move_in(partial, manifest, artifact, digests)

    def adopt(
        self, path: Path, manifest: Manifest, artifact: Artifact, keep_going: Callable[[], None]
    ) -> bool:
        """Takes a file that lies on this host, without a second copy; the caller holds the lock of
        its partial. False where it has other bytes or can only be copied."""
        beside = self.partial_dir / f"{artifact.sha256}.link"
        try:
            if not share_content(path.resolve(strict=True), beside):
                return False
            # Only now: whatever the name leads to later, this is what was proven.
            hashes = hashes_of(beside, keep_going)
            if hashes.sha256 != artifact.sha256:
                return False
            let_others_read(beside)
            sync_file(beside)
            self._move_in(beside, manifest, artifact, hashes.all)
            return True
        except FileNotFoundError:  # a copy moves when another transfer shows its revision
            return False
        finally:
            beside.unlink(missing_ok=True)

    def _move_in(
        self, path: Path, manifest: Manifest, artifact: Artifact, digests: tuple[str, ...]
    ) -> None:
        staging = self.staging_dir(manifest)
        make_dirs((staging / artifact.path).parent)
        if digests:
            with self._noting:
                pieces.note(staging, {artifact.sha256: digests})
        os.rename(path, staging / artifact.path)
        # Renaming one name of a file to another name of it leaves both.
        path.unlink(missing_ok=True)

    def activate(self, manifest: Manifest) -> None:
        """Shows the whole revision under its final name, at once."""
        staging, final = self.staging_dir(manifest), self.final_dir(manifest)
        proven = replace(manifest, verified_at=now())
        write_durably(staging / manifests.NAME, proven.to_json())
        for folder in (staging, *(path for path in staging.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
            sync_dir(folder)
        if final.exists():  # damaged: its sound files were linked, the rest goes
            damaged = final.with_name(f"{manifest.revision}.damaged")
            shutil.rmtree(damaged, ignore_errors=True)
            os.rename(final, damaged)
            os.rename(staging, final)
            shutil.rmtree(damaged)
        else:
            os.rename(staging, final)
        sync_dir(final.parent)

    def record_pieces(
        self, manifest: Manifest, proven: Mapping[str, Stamp], keep_going: Callable[[], None]
    ) -> None:
        """What is not recorded yet: of artifacts that were `proven` a moment ago, by path, if
        nobody wrote to them since; of others, as after a kill, they are proven with it."""
        final = self.final_dir(manifest)
        found: dict[str, tuple[str, ...]] = {}
        there = pieces.load(final)
        for artifact in manifest.artifacts:
            if there.of(artifact.sha256, artifact.size) is None:
                path, stamp = final / artifact.path, proven.get(artifact.path)
                digests = _digests(path, artifact, stamp, keep_going)
                found |= {artifact.sha256: digests} if digests else {}
        with self._noting:
            pieces.note(final, found)


def _digests(
    path: Path, artifact: Artifact, stamp: Stamp | None, keep_going: Callable[[], None]
) -> tuple[str, ...] | None:
    """Of its pieces; none where it is not, or not known to be, as it was proven."""
    if stamp is None or Stamp.of(path.stat()) != stamp:
        hashes = hashes_of(path, keep_going)
        return hashes.all if hashes.sha256 == artifact.sha256 else None
    found = pieces_of(path, artifact.size, keep_going)
    return found if Stamp.of(path.stat()) == stamp else None


def recorded(directory: Path) -> Manifest | None:
    """The manifest beside the artifacts; none where it is absent or damaged."""
    try:
        return manifests.parse(directory.joinpath(manifests.NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, BadManifest):
        return None


def _strength(manifest: Manifest) -> int:
    return -manifests.PROOFS.index(manifest.proof or "none")
