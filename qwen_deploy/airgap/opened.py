"""A bundle that lies here: its structure proven, its members read in place and never unpacked.

Knows neither who asks for the bytes nor what became of them.
"""

from __future__ import annotations

import builtins
import hashlib
import os
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from qwen_weights.manifest import Manifest

from qwen_deploy import __version__ as VERSION
from qwen_deploy import bundle
from qwen_deploy.airgap import index as indexes
from qwen_deploy.airgap.index import BundleRefused, Index, Member
from qwen_deploy.content import Content, FileContent
from qwen_deploy.hashes import Stamp
from qwen_deploy.release import ENGINE

_INDEX_BYTES = 64 << 20
_READ_BYTES = 1 << 20
_MOST_NAMED = 5
_COPY_AGAIN = "Copy it again, or create it again: qwen-deploy bundle create"


@dataclass(frozen=True, slots=True)
class Bundle:
    """`offsets` say where each member's bytes begin; `stamp` that the file is still the same."""

    path: Path
    index: Index
    stamp: Stamp
    offsets: Mapping[str, int]

    @property
    def model(self) -> Manifest:
        return self.index.model

    @property
    def wheels(self) -> Manifest:
        return self.index.wheels

    @property
    def size(self) -> int:
        return self.stamp.size

    @property
    def lock(self) -> bytes:
        """The requirements file whose wheels these are."""
        lock = bundle.lock_path(ENGINE, self.index.accelerator)
        return self.content(f"service/{lock.name}")

    def contents(self) -> Mapping[str, Content]:
        """Wheels and weights, by the paths of their manifests."""
        return {
            artifact.path: FileContent(
                self.path, self.stamp, self.offsets[f"{folder}/{artifact.path}"], artifact.size
            )
            for folder, manifest in (
                (indexes.WHEELS_DIR, self.wheels),
                (indexes.MODEL_DIR, self.model),
            )
            for artifact in manifest.artifacts
        }

    @contextmanager
    def uv(self) -> Iterator[Path]:
        """The program, in a private directory that ends with the block."""
        with tempfile.TemporaryDirectory(prefix="qwen-deploy-uv-") as directory:
            path = Path(directory) / "uv"
            path.write_bytes(self.content(indexes.UV))
            path.chmod(0o755)
            yield path

    def content(self, name: str) -> bytes:
        """A small member as a whole, proven."""
        return b"".join(self._pieces(self._member(name)))

    def problems(self, tell: Callable[[float], None] = lambda done: None) -> tuple[str, ...]:
        """The members whose bytes are not those that were packed; reads them on all cores. `tell`
        is given the part that is done, from several threads but one at a time."""
        reading = _Reading(self.index.total_bytes, tell)

        def judge(member: Member) -> str | None:
            try:
                for piece in self._pieces(member):
                    reading.advance(len(piece))
            except BundleRefused:
                return member.path
            return None

        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            return tuple(filter(None, pool.map(judge, self.index.members)))
        finally:
            reading.is_over = True
            pool.shutdown(cancel_futures=True)

    def _member(self, name: str) -> Member:
        return next(member for member in self.index.members if member.path == name)

    def _pieces(self, member: Member) -> Iterator[bytes]:
        digest = hashlib.sha256()
        with builtins.open(self.path, "rb", buffering=0) as file:
            file.seek(self.offsets[member.path])
            left = member.size
            while left and (piece := file.read(min(left, _READ_BYTES))):
                digest.update(piece)
                left -= len(piece)
                yield piece
        if left or digest.hexdigest() != member.sha256:
            raise BundleRefused(f"{self.path}: {member.path} was altered", hint=_COPY_AGAIN)


def damaged(path: Path, members: Sequence[str]) -> BundleRefused:
    return BundleRefused(
        f"{path}: {len(members)} of its files differ from what was packed",
        evidence=tuple(members[:_MOST_NAMED]),
        hint=_COPY_AGAIN,
    )


class _Reading:
    """What the threads share. Ctrl-C must not wait for the end of a large file."""

    def __init__(self, total: int, tell: Callable[[float], None]) -> None:
        self._done, self._total = 0, total
        self._tell = tell
        self._lock = threading.Lock()
        self.is_over = False

    def advance(self, count: int) -> None:
        if self.is_over:
            raise InterruptedError
        with self._lock:
            self._done += count
            self._tell(self._done / self._total)


def open(path: Path) -> Bundle:
    """A bundle that this very program made, or would have made. Raises BundleRefused."""
    opened = read(path)
    made_by = opened.index.version
    if made_by != VERSION:
        raise BundleRefused(
            f"{path} was made by qwen-deploy {made_by}, and this is {VERSION}",
            hint=f"Install qwen-deploy {made_by} here, or create the bundle with {VERSION}",
        )
    packed = {member.path: member.sha256 for member in opened.index.members}
    for name, data in program_files(opened.index.accelerator).items():
        if packed.get(name) != hashlib.sha256(data).hexdigest():
            raise BundleRefused(
                f"{path} was made by another build of qwen-deploy {VERSION}: {name} differs",
                hint="Create the bundle with the qwen-deploy that uses it",
            )
    return opened


def program_files(accelerator: str) -> dict[str, bytes]:
    """What of this program itself lies in a bundle; equal on both sides, or it is refused."""
    lock = bundle.lock_path(ENGINE, accelerator)
    return {f"service/{lock.name}": lock.read_bytes(), **bundle.shipped_files()}


def read(path: Path) -> Bundle:
    """A bundle of any version; every member is in its place and has its length."""
    try:
        with builtins.open(path, "rb") as file:
            stamp = Stamp.of(os.fstat(file.fileno()))
            with _archive(path, file) as archive:
                index = _index(path, file, archive)
                offsets = _offsets(path, archive, index, stamp.size)
    except OSError as error:
        raise BundleRefused(f"{path}: {error.strerror or error}") from error
    return Bundle(path, index, stamp, offsets)


def _archive(path: Path, file: BinaryIO) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=file, mode="r:")
    except tarfile.TarError as error:
        raise _foreign(path) from error


def _foreign(path: Path) -> BundleRefused:
    hint = "Name a file that `qwen-deploy bundle create` wrote"
    return BundleRefused(f"{path} is not a bundle of qwen-deploy", hint=hint)


def _index(path: Path, file: BinaryIO, archive: tarfile.TarFile) -> Index:
    first = _next(archive)
    if first is None or first.name != indexes.NAME or not first.isreg():
        raise _foreign(path)
    if first.size > _INDEX_BYTES:
        raise _foreign(path)
    file.seek(first.offset_data)
    data = file.read(first.size)
    if len(data) != first.size:
        raise BundleRefused(f"{path} is cut short: not even its index is whole", hint=_COPY_AGAIN)
    return indexes.parse(data, str(path))


def _offsets(path: Path, archive: tarfile.TarFile, index: Index, size: int) -> dict[str, int]:
    """`size` is the file's; a member may not reach beyond it."""
    found: dict[str, int] = {}
    before = indexes.NAME
    for member in index.members:
        entry = _next(archive)
        if entry is None:
            raise _broken(path, "is cut short or damaged behind", before)
        if (entry.name, entry.size) != (member.path, member.size) or not entry.isreg():
            raise _broken(path, f"was altered: its index names {member.path}, not", entry.name)
        if entry.offset_data + entry.size > size:
            raise _broken(path, "is cut short: it ends within", member.path)
        found[member.path] = entry.offset_data
        before = member.path
    if (more := _next(archive)) is not None:
        raise _broken(path, "was altered: its index does not name", more.name)
    return found


def _broken(path: Path, what: str, member: str) -> BundleRefused:
    return BundleRefused(f"{path} {what} {member}", hint=_COPY_AGAIN)


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    """None at the end, wherever that is."""
    try:
        return archive.next()
    except tarfile.TarError:
        return None
