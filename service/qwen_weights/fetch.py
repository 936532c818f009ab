"""One artifact from a source into its partial: resumed, retried, proven. Knows neither where the
partial lies nor what kind of source it reads."""

from __future__ import annotations

import threading
from contextlib import closing

from .errors import Changed, ChecksumMismatch, SourceGone, Stopped
from .manifest import Artifact
from .partial import Partial
from .progress import Progress
from .sources import Interruption, Source

_PIECE_BYTES = 1 << 20
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0


class Fetcher:
    def __init__(
        self, source: Source, progress: Progress, stop: threading.Event, *, retry_seconds: float
    ) -> None:
        self._source = source
        self._progress = progress
        self._stop = stop
        self._retry_seconds = retry_seconds

    def complete(self, artifact: Artifact, partial: Partial) -> None:
        self.keep_going()
        self._take_kept(partial)
        for is_last_try in (False, True):
            if partial.size > artifact.size:
                self._discard(partial)
            self._fill(artifact, partial)
            if partial.sha256 == artifact.sha256:
                partial.sync()
                return
            got = partial.sha256
            self._discard(partial)
            if is_last_try:
                raise ChecksumMismatch(
                    f"{artifact.path} from {self._source.name} has other bytes than the manifest "
                    f"says, twice: expected sha256 {artifact.sha256}, got {got}"
                )

    def _take_kept(self, partial: Partial) -> None:
        while count := partial.rehash():
            self.keep_going()
            self._progress.kept(count)

    def _discard(self, partial: Partial) -> None:
        self._progress.kept(-partial.size)
        partial.discard()

    def _fill(self, artifact: Artifact, partial: Partial) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while partial.size < artifact.size:
            before = partial.size
            try:
                self._receive(artifact, partial)
            except Interruption as interruption:
                pause = _FIRST_PAUSE_SECONDS if partial.size > before else pause * 2
                self._pause(interruption, min(pause, _LONGEST_PAUSE_SECONDS))

    def _receive(self, artifact: Artifact, partial: Partial) -> None:
        self._check_stop()
        with closing(self._source.open(artifact.path, partial.size)) as stream:
            if stream.total is not None and stream.total != artifact.size:
                raise Changed(
                    f"{artifact.path} at {self._source.name} has {stream.total} bytes, "
                    f"the manifest says {artifact.size}"
                )
            while partial.size < artifact.size:
                piece = stream.read(min(_PIECE_BYTES, artifact.size - partial.size))
                if not piece:
                    raise Interruption("the connection was closed early")
                partial.append(piece)
                self._progress.fetched(len(piece))
                self._check_stop()

    def _pause(self, interruption: Interruption, seconds: float) -> None:
        """Any byte of any artifact shows that the source is there."""
        self._check_stop()
        still = self._progress.still_seconds()
        left = self._retry_seconds - still
        if left <= 0:
            raise SourceGone(
                f"{self._source.name} is gone: {interruption} for {still:.0f} s; "
                f"{self._progress.reached()}"
            ) from interruption
        self._stop.wait(min(interruption.retry_after or seconds, left))

    def keep_going(self) -> None:
        """Work that moves no byte, such as hashing, is no silence of the source."""
        self._check_stop()
        self._progress.touch()

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Stopped(f"stopped; {self._progress.reached()}")
