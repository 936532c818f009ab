"""Reads a range of an artifact from one source: counted, at the rate allowed, and with its refusals
told to the pool. Knows neither what becomes of the bytes nor which source is next."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager

from qwen_weights.errors import Changed, DiskFull, Stopped, TokenRefused, Untrusted, WeightsError
from qwen_weights.manifest import Artifact
from qwen_weights.pull.pool import Pool
from qwen_weights.pull.progress import Progress
from qwen_weights.pull.rate import Limiter
from qwen_weights.pull.seat import Seat
from qwen_weights.sources import ByteStream, Interruption

_READ_BYTES = 1 << 20


class Refused(Exception):
    """The pool knows why; another source continues."""


class Reader:
    def __init__(
        self, pool: Pool, progress: Progress, limiter: Limiter, stop: threading.Event
    ) -> None:
        self._pool = pool
        self._progress = progress
        self._limiter = limiter
        self._stop = stop
        self._local = threading.local()

    def chunks(
        self, seat: Seat, artifact: Artifact, first: int, end: int
    ) -> Generator[memoryview, None, None]:
        """All bytes from `first` to `end`, or Interruption, or Refused. A chunk is valid until the
        next one."""
        with self._pool.reading(seat), self._opened(seat, artifact, first, end) as stream:
            position = stream.offset
            while position < end:
                self.check_stop()
                is_before = position < first
                content = self._read(
                    seat, artifact, stream, (first if is_before else end) - position
                )
                position += len(content)
                if is_before:
                    self._progress.touch()  # a server without ranges, which is alive
                else:
                    yield content

    def check_stop(self) -> None:
        if self._stop.is_set():
            raise Stopped(f"stopped; {self._progress.reached()}")

    def keep_going(self) -> None:
        """Work that moves no byte, such as hashing, is no silence of the sources."""
        self.check_stop()
        self._progress.touch()

    @contextmanager
    def _opened(self, seat: Seat, artifact: Artifact, first: int, end: int) -> Iterator[ByteStream]:
        with self._asking(seat, artifact):
            stream = seat.source.open(artifact, first, end if end < artifact.size else None)
        with closing(stream):
            with self._asking(seat, artifact):
                _check(stream, artifact, first, seat)
            yield stream

    def _read(self, seat: Seat, artifact: Artifact, stream: ByteStream, wanted: int) -> memoryview:
        buffer = self._buffer()[:wanted]
        allowed = self._limiter.allow(len(buffer)) if seat.source.is_wan else len(buffer)
        self.check_stop()
        with self._asking(seat, artifact):
            count = stream.readinto(buffer[:allowed])
        if seat.source.is_wan:
            self._limiter.give_back(allowed - count)
        if not count:
            raise Interruption("the connection was closed early")
        self._pool.received(seat, artifact, count)
        return buffer[:count]

    def _buffer(self) -> memoryview:
        """One for each thread, which reads one stream at a time."""
        if not hasattr(self._local, "buffer"):
            self._local.buffer = memoryview(bytearray(_READ_BYTES))
        buffer: memoryview = self._local.buffer
        return buffer

    @contextmanager
    def _asking(self, seat: Seat, artifact: Artifact) -> Iterator[None]:
        try:
            yield
        except (Stopped, DiskFull):
            raise
        except (TokenRefused, Untrusted) as error:
            self._pool.refuse(seat, error)
            raise Refused from error
        except WeightsError as error:
            self._pool.refuse(seat, error, artifact)
            raise Refused from error


def _check(stream: ByteStream, artifact: Artifact, first: int, seat: Seat) -> None:
    if stream.total not in (None, artifact.size):
        raise Changed(
            f"{artifact.path} at {seat.name} has {stream.total} bytes, "
            f"the manifest says {artifact.size}"
        )
    if stream.offset > first:
        raise Interruption(f"it began at byte {stream.offset} instead of {first}")
