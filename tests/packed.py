"""Archives as people make them, and as they break, for tests."""

from __future__ import annotations

import gzip
import io
import subprocess
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path


def tar_bytes(contents: Mapping[str, bytes], *more: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for info in more:
            archive.addfile(info)
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def compress(kind: str, content: bytes) -> bytes:
    if kind == "tar.gz":
        return gzip.compress(content, 1)
    if kind == "tar.zst":
        return subprocess.run(["zstd", "-q"], input=content, capture_output=True, check=True).stdout
    return content


def pack(path: Path, kind: str, contents: Mapping[str, bytes]) -> Path:
    """`kind` is tar, tar.gz, tar.zst, zip or zip-stored."""
    if kind.startswith("zip"):
        method = zipfile.ZIP_STORED if kind == "zip-stored" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    else:
        path.write_bytes(compress(kind, tar_bytes(contents)))
    return path
