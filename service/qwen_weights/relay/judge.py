"""Compares what came from relays, piece by piece, with what one trusted peer says they are. Knows
neither where the bytes are kept nor what follows from a wrong piece."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from qwen_weights.errors import WeightsError, WrongPiece
from qwen_weights.manifest import Artifact
from qwen_weights.sources import Interruption, Source
from qwen_weights.sources.peer import PeerSource

# Without an authority the SHA-256 of the whole file still judges.
_PAUSE_SECONDS = 10.0


class Judged(Protocol):
    """What has been received of an artifact."""

    @property
    def pieces(self) -> Sequence[str]: ...

    @property
    def piece_bytes(self) -> int: ...


class Judge:
    """`authority` is asked for whenever a piece is not known yet: it may change."""

    def __init__(self, authority: Callable[[], PeerSource | None]) -> None:
        self._authority = authority
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str, ...]] = {}
        self._asked_in_vain_at = float("-inf")

    def __call__(self, artifact: Artifact, received: Judged, source: Source) -> None:
        """Raises WrongPiece; `source` gave the last bytes."""
        authority = self._authority()
        if authority is None or not isinstance(source, PeerSource):
            return
        known = self._pieces(authority, artifact, received)
        for number, (own, right) in enumerate(zip(received.pieces, known, strict=False)):
            if own != right:
                # Of an older one the relay could not know better either, and now it does.
                is_newest = number == len(received.pieces) - 1
                first = number * received.piece_bytes
                end = min(first + received.piece_bytes, artifact.size)
                raise WrongPiece(
                    first,
                    f"{source.name} sent other bytes than {authority.name} holds: "
                    f"{artifact.path} bytes {first}-{end - 1}",
                    blames=is_newest and _gave_all(source, artifact, first),
                )

    def _pieces(
        self, authority: PeerSource, artifact: Artifact, received: Judged
    ) -> tuple[str, ...]:
        """Asked once per piece: the authority is never far ahead of a chain that follows it."""
        with self._lock:
            known = self._known.get(artifact.sha256, ())
            is_resting = time.monotonic() - self._asked_in_vain_at < _PAUSE_SECONDS
        if len(known) >= len(received.pieces) or is_resting or not authority.is_answering:
            return known
        try:
            piece_bytes, known = authority.pieces(artifact.sha256)
        except (Interruption, WeightsError):
            with self._lock:
                self._asked_in_vain_at = time.monotonic()
            return known
        if piece_bytes != received.piece_bytes:
            return ()
        with self._lock:
            self._known[artifact.sha256] = known
        return known


def _gave_all(source: PeerSource, artifact: Artifact, first: int) -> bool:
    """Where two relays gave halves of a piece, either may be wrong: it is fetched again."""
    return any(
        stream.artifact.sha256 == artifact.sha256 and stream.offset <= first < stream.position
        for stream in source.streams()
    )
