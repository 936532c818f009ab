"""A model folder on the operator's machine: is it whole, and what is in it. Does not know hosts,
hubs or how the files travel."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_weights.errors import HostRefused
from qwen_weights.manifest import Manifest
from qwen_weights.survey import Tell, manifest_of
from qwen_weights.survey.folder import CHANGING, COPY_AGAIN, FolderFiles

from qwen_deploy import hashes
from qwen_deploy.checkpoint import CheckpointRefused, refusals
from qwen_deploy.content import Content, FileContent
from qwen_deploy.hashes import Progress, Stamp

FolderRefused = CheckpointRefused


@dataclass(frozen=True, slots=True)
class FolderReport:
    """`stamps` go with the manifest's artifacts, so that a later change can be noticed; `places`
    are the files themselves, which git-lfs may keep elsewhere."""

    manifest: Manifest
    stamps: tuple[Stamp, ...]
    places: Mapping[str, Path]

    def contents(self) -> Mapping[str, Content]:
        paths = [artifact.path for artifact in self.manifest.artifacts]
        return {
            path: FileContent(self.places[path], stamp)
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
    if not folder.exists():
        raise FolderRefused(f"{folder} does not exist")
    if not folder.is_dir():
        raise FolderRefused(f"{folder} is not a folder", hint="Unpack it and name the folder")
    try:
        with refusals():
            survey = _Survey(folder, cache_path)
            made = manifest_of(survey, model, model, progress or (lambda done, total: None))
    except OSError as error:
        raise FolderRefused(f"{error.filename}: cannot be read: {error.strerror}") from error
    stamps = tuple(survey.stamps[artifact.path] for artifact in made.artifacts)
    return FolderReport(made, stamps, survey.places)


class _Survey:
    """The folder, with a cache of its files' hashes."""

    kind = "folder"
    prefix = ""
    again = COPY_AGAIN

    def __init__(self, folder: Path, cache_path: Path) -> None:
        found = FolderFiles.of(folder)
        self.place = str(folder)
        self.places = found.places
        self.expected = found.expected
        self.stamps = {path: Stamp.of(place.stat()) for path, place in self.places.items()}
        self.sizes: Mapping[str, int] = {path: one.size for path, one in self.stamps.items()}
        self._cache_path = cache_path

    def head(self, path: str, count: int) -> bytes:
        with open(self.places[path], "rb") as file:
            return file.read(count)

    def hashes(self, paths: Sequence[str], tell: Tell) -> Mapping[str, str]:
        stamps = {self.places[path]: self.stamps[path] for path in paths}
        try:
            found = hashes.sha256_of_all(stamps, cache_path=self._cache_path, progress=tell)
        except hashes.FileChanged as error:
            raise HostRefused(str(error), hint=CHANGING) from error
        return {path: found[self.places[path]] for path in paths}
