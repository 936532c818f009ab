"""Where bytes come from: the protocol that every source obeys. Knows no particular source."""

from __future__ import annotations

from typing import Protocol


class Interruption(Exception):
    """The source failed in a way that may pass: the transfer asks again, for `retry_seconds`."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ByteStream(Protocol):
    """What is left of a file. `total` is the size of the whole file where the source says it."""

    total: int | None

    def read(self, limit: int) -> bytes:
        """At most `limit` bytes, as soon as there are any; none at the end or when cut off."""
        ...

    def close(self) -> None: ...


class Source(Protocol):
    """Raises TokenRefused, Missing or Changed for what stays so, Interruption for the rest."""

    name: str

    def open(self, path: str, offset: int) -> ByteStream: ...

    def close(self) -> None:
        """Ends every stream at once, also one that another thread is reading."""
        ...
