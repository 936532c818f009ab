"""Which kind of archive a file is, and every way in which one is refused. Does not know what is in
it."""

from __future__ import annotations

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from qwen_deploy.checkpoint import CheckpointRefused

Kind = Literal["tar", "tar.gz", "tar.zst", "zip"]

_READ: dict[bytes, Kind] = {
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\x1f\x8b": "tar.gz",
    b"\x28\xb5\x2f\xfd": "tar.zst",
}
_OTHERS = {
    b"\xfd7zXZ\x00": "an xz archive",
    b"BZh": "a bzip2 archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a rar archive",
}
_TAR_MAGIC = slice(257, 262)
BLOCK_BYTES = 512
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error)


def kind_of(path: Path) -> Kind:
    """By its content: names are given by hand."""
    with open(path, "rb") as file:
        start = file.read(BLOCK_BYTES)
    for magic, kind in _READ.items():
        if start.startswith(magic):
            return kind
    if start[_TAR_MAGIC] == b"ustar":
        return "tar"
    other = next((what for magic, what in _OTHERS.items() if start.startswith(magic)), None)
    raise CheckpointRefused(
        f"{path} is {other or 'neither a folder nor an archive of a known kind'}: tar, tar.gz, "
        f"tar.zst and zip are read",
        hint="Unpack it and name the folder",
    )


@contextmanager
def damage_of(path: Path) -> Iterator[None]:
    """The libraries' many words for one thing."""
    import zstandard

    try:
        yield
    except (*_DAMAGE, zstandard.ZstdError) as error:
        raise damaged(path, str(error)) from error


def damaged(path: Path, why: str) -> CheckpointRefused:
    return CheckpointRefused(
        f"{path} is damaged or was cut off: {why[:1].lower()}{why[1:]}",
        hint="Copy or download the archive again",
    )


def refused_member(path: Path, name: str, what: str) -> CheckpointRefused:
    return CheckpointRefused(
        f"{path} is refused: its member {name!r} is {what}",
        hint="Pack it anew with the files themselves: tar --dereference --hard-dereference",
    )


def encrypted(path: Path) -> CheckpointRefused:
    return CheckpointRefused(f"{path} is encrypted", hint="Unpack it and name the folder")


def safe_name(path: Path, name: str) -> str:
    """As it lies below the archive's own top; nothing that leads out of it."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\\" in name:
        raise CheckpointRefused(
            f"{path} is refused: its member {name!r} would lie outside the folder",
            hint="Pack it anew from within its folder",
        )
    return "/".join(parts)
