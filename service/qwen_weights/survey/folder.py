"""A folder on this host: its files, wherever links and git-lfs keep them, and nothing from outside.
Does not know what a model is."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from qwen_weights import lfs
from qwen_weights.checkpoint import LISTS, is_wanted, select, some
from qwen_weights.errors import HostRefused, NotAModel
from qwen_weights.sources.region import RegionStream
from qwen_weights.sums import Expected
from qwen_weights.survey import Tell
from qwen_weights.survey.hashing import head_of, sha256_of_all
from qwen_weights.survey.known import Known, Stamp

COPY_AGAIN = "Copy or download these files again"
CHANGING = "Wait until nothing writes into it"
_BLOB_NAME_LENGTH = 64


@dataclass(frozen=True)
class FolderFiles:
    """`places` are the files themselves, by the path that each has in the model, with the lists of
    checksums beside them."""

    places: Mapping[str, Path]
    expected: Mapping[str, Expected]

    @classmethod
    def of(cls, folder: Path) -> FolderFiles:
        _refuse_cache(folder)
        files = _files(folder)
        objects = _objects(folder, files)
        lists = [name for name in LISTS if (folder / name).is_file()]
        places = {path: objects.get(path, folder / path) for path in (*files, *lists)}
        by_git_lfs = {path: Expected(place.name, "git-lfs") for path, place in objects.items()}
        return cls(places, {**_blob_names(folder, files), **by_git_lfs})


class FolderSurvey:
    """A folder, with what is known of its files."""

    kind = "folder"
    prefix = ""
    again = COPY_AGAIN

    def __init__(self, folder: Path, known: Known) -> None:
        found = FolderFiles.of(folder)
        self.place = str(folder)
        self._places = {path: place.resolve() for path, place in found.places.items()}
        self._stamps = {path: Stamp.of(place.stat()) for path, place in self._places.items()}
        self._known = known
        self.sizes: Mapping[str, int] = {path: one.size for path, one in self._stamps.items()}
        self.expected = found.expected

    def head(self, path: str, count: int) -> bytes:
        return head_of(self._open(path), count)

    def hashes(self, paths: Sequence[str], tell: Tell) -> dict[str, str]:
        found: dict[str, str] = {}
        for path in paths:
            sha256 = self._known.get(self._places[path], self._stamps[path])
            if isinstance(sha256, str):
                found[path] = sha256
        unread = {path: self.sizes[path] for path in paths if path not in found}
        fresh = sha256_of_all(unread, self._open, tell)
        for path, sha256 in fresh.items():
            self._refuse_change(path)
            self._known.put(self._places[path], self._stamps[path], sha256)
        return {**found, **fresh}

    def _open(self, path: str) -> RegionStream:
        return RegionStream(self._places[path], 0, self.sizes[path], 0, None, _never)

    def _refuse_change(self, path: str) -> None:
        place = self._places[path]
        if Stamp.of(place.stat()) != self._stamps[path]:
            raise HostRefused(f"{place} changed while it was read", hint=CHANGING)


def _refuse_cache(folder: Path) -> None:
    """A hub's cache holds revisions, which are the folders of models."""
    snapshots = folder if folder.name == "snapshots" else folder / "snapshots"
    if not (folder / "config.json").exists() and snapshots.is_dir():
        found = next(iter(sorted(snapshots.iterdir())), snapshots / "REVISION")
        raise NotAModel(f"{folder} is a hub's cache, not a model", hint=f"Name {found}")


def _never() -> bool:
    return False


def _files(folder: Path) -> tuple[str, ...]:
    """What a model may consist of. Links to files are followed: a hub's cache is made so."""
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
    raise HostRefused(f"{error.filename}: cannot be read: {error.strerror}") from error


def _is_file(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise NotAModel(f"{path} leads to a file that cannot be read") from error
    if stat.S_ISREG(mode):
        return True
    if stat.S_ISDIR(mode) and not path.is_symlink():
        return False
    raise NotAModel(f"{path} is neither a file nor a folder of this model")


def _refuse_strangers(folder: Path, path: Path) -> None:
    """A link may lead to another file of the model, or into the `blobs` of a hub's cache."""
    if not path.is_symlink():
        return
    target = path.resolve()
    blobs = folder.resolve().parent.parent / "blobs"
    if not target.is_relative_to(folder.resolve()) and target.parent != blobs:
        raise NotAModel(
            f"{path} is a link to {target}, outside the folder", hint="Copy the file, or remove it"
        )


def _objects(folder: Path, files: Iterable[str]) -> dict[str, Path]:
    """Where git-lfs has fetched what it did not check out: once on the disk is enough."""
    pointers = {path: found for path in files if (found := _pointer(folder / path))}
    objects = {path: lfs.object_path(folder, found[0]) for path, found in pointers.items()}
    missing = [
        path
        for path, place in objects.items()
        if not place.is_file() or place.stat().st_size != pointers[path][1]
    ]
    if missing:
        raise NotAModel(
            f"{folder} holds git-lfs pointers instead of {some(missing)}",
            hint=f"git -C {folder} lfs pull"
            if lfs.is_checkout(folder)
            else "Copy the files themselves: the repository was cloned without git-lfs",
        )
    return objects


def _pointer(path: Path) -> tuple[str, int] | None:
    if path.stat().st_size > lfs.LONGEST_POINTER_BYTES:
        return None
    return lfs.pointer(path.read_bytes())


def _blob_names(folder: Path, files: Iterable[str]) -> dict[str, Expected]:
    """A hub's cache names large files by their SHA-256, which its client never checks."""
    links = [path for path in files if (folder / path).is_symlink()]
    targets = {path: (folder / path).resolve() for path in links}
    return {
        path: Expected(target.name, "its cache")
        for path, target in targets.items()
        if target.parent.name == "blobs" and len(target.name) == _BLOB_NAME_LENGTH
    }
