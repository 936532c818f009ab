"""Where weights lie below the root: partials by content, revisions by name, and how a revision
comes to be there whole or not at all. Does not know where bytes come from."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import manifest as manifests
from .errors import BadManifest, Changed, DiskFull, HostRefused, in_units
from .locks import open_locked
from .manifest import Artifact, Manifest
from .verify import has_all, is_file_of_size


class Store:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.partial_dir = root / "partial"
        self.models_dir = root / "models"

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
        for record in sorted(self.models_dir.glob(f"*/*/{manifests.NAME}")):
            there = recorded(record.parent)
            for other in there.artifacts if there else ():
                path = record.parent / other.path
                if other.sha256 == artifact.sha256 and is_file_of_size(path, artifact.size):
                    yield path

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

    def place(self, source: Path, manifest: Manifest, artifact: Artifact) -> None:
        """Gives a proven file its name in the staging folder."""
        target = self.staging_dir(manifest) / artifact.path
        make_dirs(target.parent)
        source.chmod(0o444)
        if source.parent == self.partial_dir:
            os.rename(source, target)
        else:
            target.unlink(missing_ok=True)
            os.link(source, target)

    def activate(self, manifest: Manifest) -> None:
        """Shows the whole revision under its final name, at once."""
        staging, final = self.staging_dir(manifest), self.final_dir(manifest)
        verified_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        write_durably(staging / manifests.NAME, manifest.to_json(verified_at=verified_at))
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


def recorded(directory: Path) -> Manifest | None:
    """The manifest beside the artifacts; none where it is absent or damaged."""
    try:
        return manifests.parse(directory.joinpath(manifests.NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, BadManifest):
        return None


def free_bytes(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def make_dirs(path: Path) -> None:
    """Readable by everyone whatever the umask: the service runs as another user."""
    if path.is_dir():
        return
    make_dirs(path.parent)
    path.mkdir(exist_ok=True)
    path.chmod(0o755)


def write_durably(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.new")
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.chmod(0o444)
    os.replace(beside, path)


def sync_dir(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
