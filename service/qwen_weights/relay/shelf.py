"""What this host can give to its peers: contents by SHA-256, also while they grow. Does not know
how they are asked for, nor where the bytes come from."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qwen_weights.manifest import Artifact


class CutOff(Exception):
    """What was read is not what the content will be, or nothing more will come."""


class _Blob:
    """One content: the file that holds it, and how many of its first bytes may be given away."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.size = 0
        self.rewinds: list[int] = []  # each time, how much of it stayed
        self.file_number = 0
        self.descriptor: int | None = None
        self.changed = threading.Condition()
        self.is_ended = False

    def hold(self, descriptor: int, size: int) -> None:
        with self.changed:
            if self.is_ended:
                before: int | None = descriptor
            else:
                before, self.descriptor = self.descriptor, descriptor
                self.file_number += 1
                self._set_size(size)
        if before is not None:
            os.close(before)

    def resize(self, size: int) -> None:
        with self.changed:
            self._set_size(size)

    def _set_size(self, size: int) -> None:
        if size < self.size:
            self.rewinds.append(size)
        self.size = min(size, self.total)
        self.changed.notify_all()

    def end(self) -> None:
        with self.changed:
            self.is_ended = True
            before, self.descriptor = self.descriptor, None
            self.changed.notify_all()
        if before is not None:
            os.close(before)


class Reader:
    """One peer's way through a content."""

    def __init__(self, blob: _Blob) -> None:
        self.total = blob.total
        self.descriptor = -1
        self._blob = blob
        self._file_number = -1
        self._rewinds = len(blob.rewinds)

    @property
    def edition(self) -> int:
        """Rises whenever bytes that may have been read were taken back."""
        return self._rewinds

    def sound_bytes(self, edition: int) -> int:
        """How much of what was read in an earlier edition is still so."""
        return min([self.total, *self._blob.rewinds[edition : self._rewinds]])

    def await_more(self, position: int, seconds: float) -> int:
        """Up to where the content can be read now; `position` if nothing came in time."""
        blob = self._blob
        with blob.changed:
            blob.changed.wait_for(lambda: blob.is_ended or self._has_news(position), seconds)
            if blob.is_ended or self._is_rewound(position):
                raise CutOff
            if blob.size > position:
                self._follow_file()
            return max(blob.size, position)

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _has_news(self, position: int) -> bool:
        return self._blob.size > position or self._is_rewound(position)

    def _is_rewound(self, position: int) -> bool:
        return len(self._blob.rewinds) != self._rewinds and self._blob.size < position

    def _follow_file(self) -> None:
        """Its own descriptor: the content may be moved or replaced while it is read."""
        if self._file_number != self._blob.file_number and self._blob.descriptor is not None:
            self.close()
            self.descriptor = os.dup(self._blob.descriptor)
            self._file_number = self._blob.file_number


class Shelf:
    def __init__(self, artifacts: Iterable[Artifact]) -> None:
        self._blobs = {artifact.sha256: _Blob(artifact.size) for artifact in artifacts}

    def grows(self, sha256: str, descriptor: int, size: int) -> None:
        """A file is being filled, of which `size` bytes may be given away."""
        self._blobs[sha256].hold(os.dup(descriptor), size)

    def reached(self, sha256: str, size: int) -> None:
        self._blobs[sha256].resize(size)

    def rewound(self, sha256: str, size: int) -> None:
        """The file was cut: whoever read further has other bytes than will be there."""
        self._blobs[sha256].resize(size)

    def rests(self, sha256: str, path: Path) -> None:
        """Proven; the file may be renamed from now on."""
        blob = self._blobs[sha256]
        blob.hold(os.open(path, os.O_RDONLY | os.O_CLOEXEC), blob.total)

    def end(self) -> None:
        """Nothing more will come: ends everyone who reads or waits."""
        for blob in self._blobs.values():
            blob.end()

    def have(self) -> dict[str, int]:
        return {sha256: blob.size for sha256, blob in self._blobs.items()}

    @contextmanager
    def reader(self, sha256: str) -> Iterator[Reader | None]:
        """None where the content is not of this order."""
        blob = self._blobs.get(sha256)
        if blob is None:
            yield None
            return
        reader = Reader(blob)
        try:
            yield reader
        finally:
            reader.close()
