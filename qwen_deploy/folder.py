"""A model folder on the operator's machine: is it whole, and what is in it. Does not know hosts,
hubs or how the files travel."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from qwen_deploy import hashes, safetensors, sums
from qwen_deploy import manifest as manifests
from qwen_deploy.checkpoint import (
    SUMS_NAME,
    Checkpoint,
    CheckpointRefused,
    is_wanted,
    is_weights,
    select,
    some,
)
from qwen_deploy.content import Content, FileContent
from qwen_deploy.hashes import Progress, Stamp
from qwen_deploy.manifest import Artifact, Manifest, Origin
from qwen_deploy.sums import Expected, Recorded

FolderRefused = CheckpointRefused
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LFS_POINTER_BYTES = 1024
_LFS_OBJECT = re.compile(rb"^oid sha256:([0-9a-f]{64})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class FolderReport:
    """`stamps` go with the manifest's artifacts, so that a later change can be noticed. `objects`
    are files in which git-lfs keeps the content of pointers."""

    folder: Path
    manifest: Manifest
    stamps: tuple[Stamp, ...]
    objects: Mapping[str, Path] = field(default_factory=dict)

    def contents(self) -> Mapping[str, Content]:
        paths = [artifact.path for artifact in self.manifest.artifacts]
        return {
            path: FileContent(self.objects.get(path, self.folder / path), stamp)
            for path, stamp in zip(paths, self.stamps, strict=True)
        }


def default_cache_path() -> Path:
    """A cache and no state: without it the folder is only read once more."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "qwen-deploy" / "hashes.json"


def inspect(
    folder: Path, *, model: str, cache_path: Path, progress: Progress | None = None
) -> FolderReport:
    """Everything that can be known without a GPU; raises FolderRefused at the first thing wrong.

    `progress` gets (bytes read, bytes to read), from several threads but one at a time."""
    folder = Path(os.path.abspath(folder.expanduser()))
    files = _files(folder)
    try:
        objects = _objects(folder, files)
        places = {path: objects.get(path, folder / path) for path in files}
        _check_model(folder, places)
        stamps = {path: Stamp.of(place.stat()) for path, place in places.items()}
        full = {places[path]: stamp for path, stamp in stamps.items()}
        found = hashes.sha256_of_all(full, cache_path=cache_path, progress=progress)
        recorded = _recorded(folder, files, objects)
    except OSError as error:
        raise FolderRefused(f"{error.filename}: cannot be read: {error.strerror}") from error
    except hashes.FileChanged as error:
        raise FolderRefused(str(error), hint="Wait until nothing writes into it") from error
    artifacts = tuple(Artifact(path, stamps[path].size, found[places[path]]) for path in files)
    recorded.check(str(folder), artifacts)
    try:
        made = recorded.name(model, artifacts, Origin("folder"))
    except manifests.ManifestError as error:
        raise FolderRefused(f"{folder}: {error}") from error
    return FolderReport(folder, made, tuple(stamps[a.path] for a in made.artifacts), objects)


def _files(folder: Path) -> tuple[str, ...]:
    """What a model consists of, sorted. Links to files are followed: a hub's cache is made so."""
    if not folder.exists():
        raise FolderRefused(f"{folder} does not exist")
    if not folder.is_dir():
        raise FolderRefused(f"{folder} is not a folder", hint="Unpack it and name the folder")
    paths: list[str] = []
    for parent, folders, names in os.walk(folder, onerror=_cannot_list):
        place = Path(parent).relative_to(folder)
        folders[:] = [name for name in folders if is_wanted(str(place / name))]
        paths += [path for name in (*names, *folders) if is_wanted(path := str(place / name))]
    files = [path for path in paths if _is_file(folder / path)]
    for path in files:
        _refuse_strangers(folder, folder / path)
    return select(files)


def _cannot_list(error: OSError) -> NoReturn:
    raise FolderRefused(f"{error.filename}: cannot be read: {error.strerror}") from error


def _is_file(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise FolderRefused(f"{path} leads to a file that cannot be read") from error
    if stat.S_ISREG(mode):
        return True
    if stat.S_ISDIR(mode) and not path.is_symlink():
        return False
    raise FolderRefused(f"{path} is neither a file nor a folder of this model")


def _refuse_strangers(folder: Path, path: Path) -> None:
    """A link may lead to another file of the model, or into the `blobs` of a hub's cache."""
    if not path.is_symlink():
        return
    target = path.resolve()
    blobs = folder.resolve().parent.parent / "blobs"
    if not target.is_relative_to(folder.resolve()) and target.parent != blobs:
        raise FolderRefused(
            f"{path} is a link to {target}, outside the folder", hint="Copy the file, or remove it"
        )


def _objects(folder: Path, files: Sequence[str]) -> dict[str, Path]:
    """Where git-lfs has fetched what it did not check out: once on the disk is enough."""
    oids = {path: oid for path in files if (oid := _pointer(folder / path))}
    store = folder / ".git" / "lfs" / "objects"
    objects = {path: store / oid[:2] / oid[2:4] / oid for path, oid in oids.items()}
    missing = [path for path, place in objects.items() if not place.is_file()]
    if missing:
        raise FolderRefused(
            f"{folder} holds git-lfs pointers instead of {some(missing)}",
            hint=f"git -C {folder} lfs pull",
        )
    return objects


def _pointer(path: Path) -> str | None:
    """The SHA-256 of what the file stands for; https://github.com/git-lfs/git-lfs specifies it."""
    if path.stat().st_size > _LFS_POINTER_BYTES:
        return None
    content = path.read_bytes()
    if not content.startswith(_LFS_POINTER):
        return None
    match = _LFS_OBJECT.search(content)
    return match[1].decode() if match else "unknown"


def _check_model(folder: Path, places: Mapping[str, Path]) -> None:
    def read(path: str) -> bytes:
        return places[path].read_bytes()

    Checkpoint(str(folder), tuple(places), read).check()
    faults = {path: safetensors.fault(places[path]) for path in places if is_weights(path)}
    broken = [f"{path} {why}" for path, why in faults.items() if why]
    if broken:
        raise FolderRefused(f"{folder}: {some(broken)}", hint="Copy or download these files again")


def _recorded(folder: Path, files: Sequence[str], objects: Mapping[str, Path]) -> Recorded:
    names = (manifests.NAME, SUMS_NAME)
    lists = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
    recorded = sums.read(str(folder), files, lists)
    stored = {path: Expected(sha256, "its cache") for path, sha256 in _blob_names(folder, files)}
    stored |= {path: Expected(place.name, "git-lfs") for path, place in objects.items()}
    return Recorded({**recorded.expected, **stored}, recorded.manifest)


def _blob_names(folder: Path, files: Sequence[str]) -> list[tuple[str, str]]:
    """A hub's cache names large files by their SHA-256, which its client never checks."""
    links = [path for path in files if (folder / path).is_symlink()]
    targets = {path: (folder / path).resolve() for path in links}
    return [
        (path, target.name)
        for path, target in targets.items()
        if target.parent.name == "blobs" and len(target.name) == 64
    ]
