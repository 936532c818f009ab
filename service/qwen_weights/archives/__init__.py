"""Archives on this machine: of which kind one is, what its members are, and their bytes, without
unpacking it. Refuses what could write or read elsewhere. Does not know models."""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qwen_weights.errors import NotAModel
from qwen_weights.sources import ByteStream, Interruption
from qwen_weights.sources.region import RegionStream

_MAGIC = {
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\x1f\x8b": "tar.gz",
    b"\x28\xb5\x2f\xfd": "tar.zst",
    b"\xfd7zXZ\x00": "an xz archive",
    b"BZh": "a bzip2 archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a rar archive",
}
UNPACK = "Unpack it and name the folder"
COPY_AGAIN = "Copy or download the archive again"
COMPRESSED = ("tar.gz", "tar.zst")
_READ = ("tar", "zip", *COMPRESSED)
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error)
TAR_BLOCK_BYTES = 512
_TAR_MAGIC = slice(257, 262)
_ZIP_HEADER_BYTES = 30
_ZIP_ENCRYPTED = 0x1


@dataclass(frozen=True)
class Member:
    """`first` is where its bytes lie in the archive, or in what a compressed one holds; none where
    it is compressed by itself."""

    name: str
    size: int
    first: int | None = None


def _never() -> bool:
    return False


@dataclass(frozen=True)
class RandomArchive:
    """One whose members can be read in any order."""

    path: Path
    members: Mapping[str, Member]
    is_zip: bool

    def open(
        self, name: str, offset: int, end: int | None = None, is_over: Callable[[], bool] = _never
    ) -> ByteStream:
        member = self.members[name]
        if member.first is None:
            return _ZipStream(self.path, member, offset, end, is_over)
        return RegionStream(self.path, member.first, member.size, offset, end, is_over)

    def checked(self, name: str) -> ByteStream:
        """The whole member, with the check sums that a zip has of it."""
        member = self.members[name]
        if self.is_zip:
            return _ZipStream(self.path, member, 0, None, _never)
        return self.open(name, 0)


def kind_of(path: Path) -> str:
    """By its content: names are given by hand."""
    with open(path, "rb") as file:
        start = file.read(TAR_BLOCK_BYTES)
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            return kind if kind in _READ else _refuse_kind(path, f"is {kind}")
    if start[_TAR_MAGIC] == b"ustar":
        return "tar"
    known = "is neither a folder nor an archive of a known kind"
    return _refuse_kind(path, known if start else "is empty")


def _refuse_kind(path: Path, what: str) -> str:
    raise NotAModel(
        f"{path} {what}: tar, tar.gz, tar.zst and zip are read",
        hint=UNPACK,
    )


def read(path: Path, kind: str) -> RandomArchive:
    """Of a kind that is not compressed as a whole."""
    with damage_of(path):
        members = unique(path, _of_zip(path) if kind == "zip" else _of_tar(path))
    return RandomArchive(path, members, kind == "zip")


@contextmanager
def damage_of(path: Path) -> Iterator[None]:
    """The libraries' many words for one thing."""
    try:
        yield
    except _DAMAGE as error:
        raise damaged(path, str(error)) from error


def damaged(path: Path, why: str) -> NotAModel:
    return NotAModel(
        f"{path} is damaged or was cut off: {why[:1].lower()}{why[1:]}",
        hint=COPY_AGAIN,
    )


def unique(path: Path, members: Iterator[Member]) -> dict[str, Member]:
    found: dict[str, Member] = {}
    for member in members:
        if member.name in found:
            raise NotAModel(f"{path} holds {member.name} twice", hint="Pack it anew")
        found[member.name] = member
    return found


def safe_name(path: Path, name: str) -> str:
    """As it lies below the archive's own top; nothing that leads out of it."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\\" in name or "\x00" in name:
        raise NotAModel(
            f"{path} is refused: its member {name!r} would lie outside the folder",
            hint="Pack it anew from within its folder",
        )
    return "/".join(parts)


def refuse_member(path: Path, name: str, what: str) -> NotAModel:
    return NotAModel(
        f"{path} is refused: its member {name!r} is {what}",
        hint="Pack it anew with the files themselves: tar --dereference --hard-dereference",
    )


def tar_member(path: Path, info: tarfile.TarInfo) -> Member | None:
    """None for a folder, which matters only by what lies in it."""
    name = safe_name(path, info.name)
    if info.isdir():
        return None
    if info.issym() or info.islnk():
        raise refuse_member(path, info.name, f"a link to {info.linkname!r}")
    if not info.isfile() or info.issparse():
        raise refuse_member(path, info.name, "no ordinary file")
    return Member(name, info.size, info.offset_data)


def _of_tar(path: Path) -> Iterator[Member]:
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            member = tar_member(path, info)
            if member:
                yield member
        end = archive.offset
    with open(path, "rb") as file:
        file.seek(end)
        check_end(path, file.read(TAR_BLOCK_BYTES))


def check_end(path: Path, block: bytes) -> None:
    """The library ends quietly where members could follow; a whole tar ends with zeros."""
    if block != bytes(TAR_BLOCK_BYTES):
        raise damaged(path, "its end is missing")


def _of_zip(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        end = os.fstat(file.fileno()).st_size
        for info in archive.infolist():
            name = safe_name(path, info.filename)
            if info.is_dir():
                continue
            if stat.S_ISLNK(info.external_attr >> 16):
                raise refuse_member(path, info.filename, "a link")
            if info.flag_bits & _ZIP_ENCRYPTED:
                raise NotAModel(f"{path} is encrypted", hint=UNPACK)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise refuse_member(path, info.filename, "compressed in a way that is not read")
            is_stored = info.compress_type == zipfile.ZIP_STORED
            file.seek(info.header_offset)
            header = file.read(_ZIP_HEADER_BYTES)
            first = _first_byte(info, header)
            if first + info.compress_size > end:
                raise damaged(path, f"{info.filename} reaches beyond its end")
            yield Member(name, info.file_size, first if is_stored else None)


def _first_byte(info: zipfile.ZipInfo, header: bytes) -> int:
    """The name and the extra field before the content have lengths of their own there."""
    if header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile(f"{info.filename} is not where the archive says")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return info.header_offset + _ZIP_HEADER_BYTES + lengths


class _ZipStream:
    """A member that is compressed by itself; to begin later, what comes before is skipped."""

    def __init__(
        self,
        path: Path,
        member: Member,
        offset: int,
        end: int | None,
        is_over: Callable[[], bool],
    ) -> None:
        self.offset = offset
        self.total: int | None = member.size
        self._is_over = is_over
        self._end = member.size if end is None else min(end, member.size)
        self._path = path
        self._archive = zipfile.ZipFile(path)
        self._position = 0
        try:
            self._file = self._archive.open(info_of(path, self._archive, member))
            skip(self.readinto, offset)
        except BaseException:
            self._archive.close()
            raise

    def readinto(self, buffer: memoryview) -> int:
        if self._is_over():
            raise Interruption("it was closed")
        with damage_of(self._path):
            content = self._file.read(min(len(buffer), self._end - self._position))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        self._archive.close()


def info_of(path: Path, archive: zipfile.ZipFile, member: Member) -> zipfile.ZipInfo:
    files = (info for info in archive.infolist() if not info.is_dir())
    return next(info for info in files if safe_name(path, info.filename) == member.name)


def skip(readinto: Callable[[memoryview], int], count: int) -> None:
    buffer = memoryview(bytearray(min(count, 1 << 20)))
    while count:
        skipped = readinto(buffer[:count])
        if not skipped:
            raise Interruption("it ends too early")
        count -= skipped
