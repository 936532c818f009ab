"""What lies below the root, and who needs it: releases by their links and records, and the transfer
that runs. Changes nothing."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_weights.errors import BadManifest, HostRefused, Stopped
from qwen_weights.manifest import REVISION, Manifest
from qwen_weights.pull import order as orders
from qwen_weights.pull.progress import NAME as STATUS
from qwen_weights.pull.wait import is_running, read_status
from qwen_weights.store import Store, recorded
from qwen_weights.store.locks import open_locked

WHEELS = "qwen-deploy--wheels"
RUN_DIR = Path("/run/qwen-deploy-weights")
RELEASES_DIR = Path("/opt/qwen-deploy/releases")
# What a transfer makes beside a revision; the lock ends with it, the others after a kill do not.
UNFINISHED = (".tmp", ".damaged", ".pruned")


@dataclass(frozen=True)
class Revision:
    """`manifest` is none where it cannot be read."""

    directory: Path
    manifest: Manifest | None
    used_by: tuple[str, ...]

    @property
    def is_wheels(self) -> bool:
        """Python packages of a bundle, which travel as models do."""
        return self._folder == WHEELS

    @property
    def model(self) -> str:
        return self.manifest.model if self.manifest else self._folder.replace("--", "/", 1)

    @property
    def _folder(self) -> str:
        return self.directory.parent.name


@dataclass(frozen=True)
class Transfer:
    """One whose process lives, be it that it only serves peers by now."""

    status: Mapping[str, Any]
    manifests: tuple[Manifest, ...]


def revisions(store: Store, needs: Mapping[Path, tuple[str, ...]]) -> Iterator[Revision]:
    for directory in sorted(store.models_dir.glob("*/*")):
        if REVISION.fullmatch(directory.name) and directory.is_dir():
            used_by = needs.get(directory.resolve(), ())
            yield Revision(directory, recorded(directory), used_by)


def missing(store: Store, needs: Mapping[Path, tuple[str, ...]]) -> Iterator[Revision]:
    """What releases need and nobody has here."""
    models = store.models_dir.resolve()
    for directory, used_by in sorted(needs.items()):
        is_ours = directory.parent.parent == models and REVISION.fullmatch(directory.name)
        if is_ours and not directory.is_dir():
            yield Revision(store.models_dir / directory.relative_to(models), None, used_by)


def needs(store: Store, releases: Path) -> dict[Path, tuple[str, ...]]:
    """The releases that need each folder of a revision, whether or not it is there."""
    found: dict[Path, tuple[str, ...]] = {}
    for release in sorted(releases.iterdir()) if releases.is_dir() else ():
        for directory in _needed_by(store, release):
            found[directory] = (*found.get(directory, ()), release.name)
    return found


def _needed_by(store: Store, release: Path) -> set[Path]:
    """Raises HostRefused where it cannot be told: a guess could cost a release its weights."""
    needed: set[Path] = set()
    link = release / "model"
    if link.is_symlink() or link.exists():
        needed.add(link.resolve())
    record = release / "release.json"
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        folder = store.models_dir / content["model"].replace("/", "--") / content["revision"]
        needed.add(folder.resolve())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        if not needed and (not release.is_dir() or any(release.iterdir())):
            raise HostRefused(
                f"{release} does not say which model it needs: {record.name} cannot be read",
                hint=f"remove {release} if no release is meant to be there",
            ) from None
    return needed


def running(run_dir: Path) -> Transfer | None:
    status = read_status(run_dir / STATUS)
    if not is_running(status):
        return None
    try:
        return Transfer(status, orders.read(run_dir).manifests)
    except BadManifest:
        return Transfer(status, ())


def unfinished(store: Store) -> Iterator[Path]:
    """Folders of revisions that no transfer has shown yet, or that were on their way out."""
    for path in sorted(store.models_dir.glob("*/*")):
        if path.suffix in UNFINISHED and REVISION.fullmatch(path.stem) and path.is_dir():
            yield path


def lock_path(directory: Path) -> Path:
    """Of a revision, or of what is unfinished of it."""
    stem = directory.stem if directory.suffix in UNFINISHED else directory.name
    return directory.with_name(f"{stem}.lock")


def is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    with suppress(Stopped):
        os.close(take_lock(path))
        return False
    return True


def take_lock(path: Path) -> int:
    """At once or not at all: raises Stopped where a transfer holds it."""
    is_late = threading.Event()
    is_late.set()
    return open_locked(path, is_late)


def files_below(path: Path) -> Iterator[Path]:
    if path.is_file() or path.is_symlink():
        yield path
    for folder, _, names in os.walk(path):
        yield from (Path(folder, name) for name in names)
