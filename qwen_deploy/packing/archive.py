"""The bytes of a bundle: its index first, then every member, proven as it is written. Knows neither
where members come from nor what they are for."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Mapping
from typing import BinaryIO

from qwen_deploy.airgap import index as indexes
from qwen_deploy.airgap.index import Index, Member
from qwen_deploy.content import Content, ContentChanged, MemoryContent
from qwen_deploy.errors import UsageError

_READ_BYTES = 1 << 20


def write(
    file: BinaryIO, index: Index, files: Mapping[str, Content], tell: Callable[[float], None]
) -> None:
    """`tell` is given the part that is done. The same members give the same bytes."""
    text = index.to_json()
    head = Member(indexes.NAME, len(text), hashlib.sha256(text).hexdigest())
    total = len(text) + index.total_bytes
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        tell(done / total)

    with tarfile.TarFile(
        fileobj=file, mode="w", format=tarfile.PAX_FORMAT, copybufsize=_READ_BYTES
    ) as archive:
        _add(archive, head, MemoryContent(text), advance)
        for member in index.members:
            _add(archive, member, files[member.path], advance)
    file.flush()
    os.fsync(file.fileno())


class _Proving:
    """A reader that notes what it read."""

    def __init__(self, reader: BinaryIO, advance: Callable[[int], None]) -> None:
        self._reader = reader
        self._advance = advance
        self.digest = hashlib.sha256()

    def read(self, limit: int = 0, /) -> bytes:
        """Fewer bytes than asked for only at the end."""
        data = b""
        while len(data) < limit and (piece := self._reader.read(limit - len(data))):
            data += piece
        self.digest.update(data)
        self._advance(len(data))
        return data


def _add(
    archive: tarfile.TarFile, member: Member, content: Content, advance: Callable[[int], None]
) -> None:
    entry = tarfile.TarInfo(member.path)
    entry.size = member.size
    entry.mode = 0o755 if member.path == indexes.UV else 0o644
    try:
        reader = content.open(0)
    except ContentChanged as error:
        raise _changed(member) from error
    with reader:
        proving = _Proving(reader, advance)
        try:
            archive.addfile(entry, proving)
        except OSError as error:
            if error.errno:
                raise
            raise _changed(member) from error  # tarfile's own: the reader ended too early
    if proving.digest.hexdigest() != member.sha256:
        raise _changed(member)


def _changed(member: Member) -> UsageError:
    return UsageError(
        f"{member.path} changed while it was packed", hint="wait until nothing writes it"
    )
