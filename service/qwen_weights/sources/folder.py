"""A folder on this very host. What can be linked is named, so that nothing need be copied. Does not
know what the bytes should be."""

from __future__ import annotations

import threading
from pathlib import Path

from qwen_weights import lfs
from qwen_weights.disk import is_file_of_size
from qwen_weights.errors import Changed, Missing
from qwen_weights.manifest import Artifact
from qwen_weights.sources import Interruption
from qwen_weights.sources.region import RegionStream


class FolderSource:
    is_wan = False

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self._directory = Path(path)
        self._closed = threading.Event()

    def offers(self, artifact: Artifact) -> bool:
        """Of what is not there, or of another size, open() says so."""
        return True

    def local_path(self, artifact: Artifact) -> Path | None:
        """The file itself, wherever links lead. What git-lfs keeps is preferred to its checkout,
        which its user may edit."""
        path = self._directory / artifact.path
        for place in (lfs.object_path(self._directory, artifact.sha256), path):
            try:
                resolved = place.resolve(strict=True)
            except (OSError, RuntimeError):  # nothing there, or a loop of links
                continue
            if is_file_of_size(resolved, artifact.size):
                return resolved
        return None

    def open(self, artifact: Artifact, offset: int, end: int | None = None) -> RegionStream:
        path = self.local_path(artifact)
        if path is None:
            raise self._absent(artifact)
        try:
            return RegionStream(path, 0, artifact.size, offset, end, self._closed.is_set)
        except OSError as error:
            raise Interruption(f"{path}: cannot be read: {error.strerror}") from error

    def close(self) -> None:
        self._closed.set()

    def _absent(self, artifact: Artifact) -> Missing | Changed:
        path = self._directory / artifact.path
        if path.exists():
            return Changed(
                f"{path} has {path.stat().st_size} bytes, the manifest says {artifact.size}"
            )
        return Missing(f"{path} is not there")
