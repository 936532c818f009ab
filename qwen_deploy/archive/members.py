"""The members of an archive and their bytes, read in place. Does not know what they are for."""

from __future__ import annotations

import os
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from qwen_deploy.archive.kinds import (
    BLOCK_BYTES,
    damage_of,
    damaged,
    encrypted,
    refused_member,
    safe_name,
)
from qwen_deploy.checkpoint import CheckpointRefused
from qwen_deploy.content import Content, ContentChanged, FileContent
from qwen_deploy.hashes import Stamp

_T = TypeVar("_T")
_ZIP_HEADER_BYTES = 30
_ZIP_HEADER = b"PK\x03\x04"
_ZIP_ENCRYPTED = 0x1


@dataclass(frozen=True, slots=True)
class Member:
    """`content` is for serving; `checked` reads the same bytes and notices damage where the archive
    has checksums."""

    content: Content
    checked: Content

    @property
    def size(self) -> int:
        return self.content.size


def of_tar(path: Path, stamp: Stamp) -> dict[str, Member]:
    """Their bytes lie in the file as they are."""
    with damage_of(path), tarfile.open(path, "r:") as archive:
        infos = {name: info for name, info in unique(path, tar_files(path, archive))}
        end = archive.offset
    with open(path, "rb") as file:
        file.seek(end)
        check_end(path, file.read(BLOCK_BYTES))
    contents = {
        name: FileContent(path, stamp, info.offset_data, info.size) for name, info in infos.items()
    }
    return {name: Member(content, content) for name, content in contents.items()}


def tar_files(path: Path, archive: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Folders matter only by what lies in them; everything else must be an ordinary file."""
    for info in archive:
        name = safe_name(path, info.name)
        if info.isdir():
            continue
        if info.issym() or info.islnk():
            raise refused_member(path, info.name, f"a link to {info.linkname!r}")
        if not info.isfile() or info.issparse():
            raise refused_member(path, info.name, "no ordinary file")
        yield name, info


def unique(path: Path, members: Iterable[tuple[str, _T]]) -> Iterator[tuple[str, _T]]:
    seen: set[str] = set()
    for name, member in members:
        if name in seen:
            raise CheckpointRefused(f"{path} holds {name} twice", hint="Pack it anew")
        seen.add(name)
        yield name, member


def check_end(path: Path, block: bytes) -> None:
    """The library ends quietly where members could follow; a whole tar ends with zeros."""
    if block != bytes(BLOCK_BYTES):
        raise damaged(path, "its end is missing")


def of_zip(path: Path, stamp: Stamp) -> dict[str, Member]:
    with damage_of(path), zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        infos = dict(unique(path, _zip_files(path, archive)))
        return {name: _of_zip(path, stamp, info, file) for name, info in infos.items()}


def _zip_files(path: Path, archive: zipfile.ZipFile) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    for info in archive.infolist():
        name = safe_name(path, info.filename)
        if info.is_dir():
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            raise refused_member(path, info.filename, "a link")
        if info.flag_bits & _ZIP_ENCRYPTED:
            raise encrypted(path)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refused_member(path, info.filename, "compressed in a way that is not read")
        yield name, info


def _of_zip(path: Path, stamp: Stamp, info: zipfile.ZipInfo, file: BinaryIO) -> Member:
    checked = ZipContent(path, stamp, info)
    if info.compress_type != zipfile.ZIP_STORED:
        return Member(checked, checked)
    file.seek(info.header_offset)
    header = file.read(_ZIP_HEADER_BYTES)
    if header[: len(_ZIP_HEADER)] != _ZIP_HEADER:
        raise damaged(path, f"{info.filename} is not where its directory says")
    # The name and the extra field in front of the bytes have lengths of their own there.
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    first = info.header_offset + _ZIP_HEADER_BYTES + lengths
    if first + info.file_size > stamp.size:
        raise damaged(path, f"{info.filename} reaches beyond its end")
    return Member(FileContent(path, stamp, first, info.file_size), checked)


@dataclass(frozen=True, slots=True)
class ZipContent:
    """A member that is compressed by itself; to begin later, what comes before is skipped."""

    path: Path
    stamp: Stamp
    info: zipfile.ZipInfo

    @property
    def size(self) -> int:
        return self.info.file_size

    def open(self, offset: int) -> BinaryIO:
        check_unchanged(self.path, self.stamp)
        with zipfile.ZipFile(self.path) as archive:
            reader = archive.open(self.info)  # which keeps the file open by itself
        reader.seek(offset)
        return cast(BinaryIO, reader)


def check_unchanged(path: Path, stamp: Stamp) -> None:
    try:
        is_same = Stamp.of(path.stat()) == stamp
    except OSError as error:
        raise ContentChanged("it cannot be read any more") from error
    if not is_same:
        raise ContentChanged("it was changed after it was inspected")


def common_top(names: Iterable[str]) -> str:
    """The folders that hold everything, with a slash at the end."""
    parted = [name.rpartition("/") for name in names]
    folders = [folder for folder, _, last in parted if not last.startswith(".")]
    common = os.path.commonpath(folders) if folders else ""
    return f"{common}/" if common else ""
