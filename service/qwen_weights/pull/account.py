"""What a transfer tells its peers of itself: its phase, its rate and the hashes of its pieces. Does
not know who asks."""

from __future__ import annotations

import threading
from pathlib import Path

from qwen_weights.pull.progress import Progress
from qwen_weights.store import pieces
from qwen_weights.store.partial import Partial


class Account:
    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._growing: dict[str, Partial] = {}
        self._known: dict[str, tuple[str, ...]] = {}

    def phase(self) -> str:
        return self._progress.phase

    def rate(self) -> float:
        return self._progress.rate()

    def pieces(self, sha256: str) -> tuple[int, tuple[str, ...]]:
        with self._lock:
            partial = self._growing.get(sha256)
            found = self._known.get(sha256, ())
        return pieces.PIECE_BYTES, partial.pieces if partial else found

    def grows(self, sha256: str, partial: Partial) -> None:
        with self._lock:
            self._growing[sha256] = partial

    def rests(self, sha256: str, digests: tuple[str, ...]) -> None:
        with self._lock:
            self._growing.pop(sha256, None)
            self._known[sha256] = digests

    def learn(self, directory: Path) -> None:
        """What is recorded of a revision."""
        recorded = pieces.load(directory)
        if recorded.piece_bytes == pieces.PIECE_BYTES:
            with self._lock:
                self._known.update(recorded.by_sha256)
