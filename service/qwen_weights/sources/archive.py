"""An archive on this very host, read without unpacking it first. Does not know what the bytes
should be.

Members of tar and zip can be read in any order. A compressed tar is read once from its start if its
artifacts are asked for in its own order, and from the start again for whatever is asked otherwise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from qwen_weights import archives
from qwen_weights.archives import RandomArchive, skip
from qwen_weights.archives.passing import Pass
from qwen_weights.errors import Changed, Missing, WeightsError
from qwen_weights.manifest import Artifact
from qwen_weights.sources import ByteStream, Interruption


class ArchiveSource:
    is_wan = False

    def __init__(self, name: str, path: str, prefix: str = "") -> None:
        self.name = name
        self._path = Path(path)
        self._prefix = prefix
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._random: RandomArchive | None = None
        self._cursor: _Cursor | None = None
        self._fault: WeightsError | None = None

    def offers(self, artifact: Artifact) -> bool:
        """Of a compressed one it is known only at the end of it, and of a damaged one open() says
        what is wrong."""
        return True

    def reading_order(self, artifacts: Collection[Artifact]) -> Iterator[Artifact] | None:
        """None where any order will do. Otherwise each artifact is to be obtained before the next
        one is asked for."""
        try:
            if archives.kind_of(self._path) not in archives.COMPRESSED:
                return None
        except (OSError, WeightsError):  # open() says it
            return None
        return self._walk(artifacts)

    def open(self, artifact: Artifact, offset: int, end: int | None = None) -> ByteStream:
        try:
            stream = self._open(artifact, offset, end)
        except FileNotFoundError as error:
            raise Missing(f"{self._path} is not there") from error
        except OSError as error:
            raise Interruption(f"{self._path}: cannot be read: {error.strerror}") from error
        if stream.total != artifact.size:
            stream.close()
            raise Changed(
                f"{artifact.path} in {self._path} has {stream.total} bytes, "
                f"the manifest says {artifact.size}"
            )
        return stream

    def close(self) -> None:
        self._closed.set()

    def _open(self, artifact: Artifact, offset: int, end: int | None) -> ByteStream:
        name = self._member(artifact)
        kind = archives.kind_of(self._path)
        if kind not in archives.COMPRESSED:
            archive = self._members()
            if name not in archive.members:
                raise self._missing(artifact)
            return archive.open(name, offset, end, self._closed.is_set)
        with self._lock:
            if self._fault:
                raise self._fault
            cursor = self._cursor
            if cursor and cursor.take(name, offset):
                return cursor.stream(offset, end, self._closed.is_set)
        return self._found(kind, artifact).stream(offset, end, self._closed.is_set, is_own=True)

    def _found(self, kind: str, artifact: Artifact) -> _Cursor:
        cursor = _Cursor(Pass(self._path, kind))
        try:
            while cursor.advance():
                self._check_closed()
                if cursor.name == self._member(artifact):
                    return cursor
        except BaseException:
            cursor.close()
            raise
        cursor.close()
        raise self._missing(artifact)

    def _walk(self, artifacts: Collection[Artifact]) -> Iterator[Artifact]:
        wanted = {self._member(artifact): artifact for artifact in artifacts}
        try:
            cursor = _Cursor(Pass(self._path, archives.kind_of(self._path)))
        except (OSError, WeightsError) as error:
            self._note(error)
        else:
            yield from self._along(cursor, wanted)
        yield from wanted.values()  # open() says what keeps them from being read

    def _along(self, cursor: _Cursor, wanted: dict[str, Artifact]) -> Iterator[Artifact]:
        try:
            while wanted and not self._closed.is_set() and self._advance(cursor):
                artifact = wanted.pop(cursor.name, None)
                if artifact:
                    self._stand_at(cursor)
                    yield artifact
                    self._stand_at(None)
        finally:
            self._stand_at(None)
            cursor.close()

    def _advance(self, cursor: _Cursor) -> bool:
        try:
            return cursor.advance()
        except (OSError, WeightsError) as error:
            self._note(error)
            return False

    def _note(self, error: OSError | WeightsError) -> None:
        """Nothing behind it can be read; an error of the disk may pass."""
        if isinstance(error, WeightsError):
            with self._lock:
                self._fault = error

    def _stand_at(self, cursor: _Cursor | None) -> None:
        with self._lock:
            self._cursor = cursor

    def _members(self) -> RandomArchive:
        with self._lock:
            if self._random is None:
                self._random = archives.read(self._path, archives.kind_of(self._path))
            return self._random

    def _member(self, artifact: Artifact) -> str:
        return self._prefix + artifact.path

    def _missing(self, artifact: Artifact) -> Missing:
        return Missing(f"{self._path} has no member {self._member(artifact)}")

    def _check_closed(self) -> None:
        if self._closed.is_set():
            raise Interruption("it was closed")


class _Cursor:
    """Where a pass stands: at a member, some bytes into it."""

    def __init__(self, one: Pass) -> None:
        self._pass = one
        self._members = iter(one)
        self.name = ""
        self._size = 0
        self._position = 0
        self._is_taken = False

    def advance(self) -> bool:
        member = next(self._members, None)
        if member:
            self.name, self._size, self._position = member.name, member.size, 0
        return member is not None

    def take(self, name: str, offset: int) -> bool:
        """One stream at a time, and never back."""
        if self._is_taken or name != self.name or self._position > offset:
            return False
        self._is_taken = True
        return True

    def stream(
        self, offset: int, end: int | None, is_over: Callable[[], bool], *, is_own: bool = False
    ) -> ByteStream:
        stream = _PassStream(self, self._size, offset, end, is_over, is_own=is_own)
        try:
            skip(stream.skip_into, offset - self._position)
        except BaseException:
            stream.close()
            raise
        return stream

    def readinto(self, buffer: memoryview) -> int:
        count = self._pass.readinto(buffer)
        self._position += count
        return count

    @property
    def position(self) -> int:
        return self._position

    def let_go(self) -> None:
        self._is_taken = False

    def close(self) -> None:
        self._pass.close()


class _PassStream:
    """What is left of the member at which a pass stands; its own pass ends with it."""

    def __init__(
        self,
        cursor: _Cursor,
        size: int,
        offset: int,
        end: int | None,
        is_over: Callable[[], bool],
        *,
        is_own: bool,
    ) -> None:
        self.offset = offset
        self.total: int | None = size
        self._cursor = cursor
        self._end = size if end is None else min(end, size)
        self._is_over = is_over
        self._is_own = is_own

    def readinto(self, buffer: memoryview) -> int:
        limit = min(len(buffer), self._end - self._cursor.position)
        return self.skip_into(buffer[:limit]) if limit > 0 else 0

    def skip_into(self, buffer: memoryview) -> int:
        if self._is_over():
            raise Interruption("it was closed")
        return self._cursor.readinto(buffer)

    def close(self) -> None:
        self._cursor.let_go()
        if self._is_own:
            self._cursor.close()
