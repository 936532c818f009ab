"""A hub's list of a revision, judged: names that stay inside, sizes, hashes, and only what a model
needs. Does not know which hub made it, nor how."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from qwen_weights import checkpoint
from qwen_weights.manifest import Origin

from qwen_deploy.sources.pinned import Upstream
from qwen_deploy.sources.refusals import HubMissing, ListRefused

_NOT_IN_A_NAME = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT = re.compile(r"[0-9a-f]{40}")
_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Listed:
    """One file of the list; `git` is the SHA-1 that git knows it by, where the list has no
    SHA-256."""

    path: str
    size: int
    sha256: str | None = None
    git: str | None = None

    def agrees(self, other: Listed) -> bool:
        """As far as two lists can be compared; whoever reads it compares the SHA-256."""
        if self.sha256 and other.sha256:
            return self.sha256 == other.sha256
        if self.git and other.git:
            return self.git == other.git
        return self.size == other.size

    def fits(self, content: bytes) -> bool:
        if len(content) != self.size:
            return False
        if self.sha256:
            return hashlib.sha256(content).hexdigest() == self.sha256
        return git_sha1(content) == self.git if self.git else True


@dataclass(frozen=True, slots=True)
class Listing:
    """`place` begins every message. `read` brings a small file as a whole, unproven. `revision` is
    one that the place itself gives to exactly these files."""

    place: str
    origin: Origin
    files: tuple[Listed, ...]
    upstreams: tuple[Upstream, ...]
    read: Callable[[Listed], bytes]
    proof: str = "hub"
    revision: str | None = None


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def select(place: str, rows: Iterable[Listed]) -> tuple[Listed, ...]:
    """The model's files of the list. Raises ListRefused where any row makes no sense."""
    found: dict[str, Listed] = {}
    for row in rows:
        check_name(place, row.path)
        if row.path in found:
            raise _refused(place, f"it names {row.path} twice")
        found[row.path] = row
    if not found:
        raise HubMissing(f"{place} lists no files")
    wanted = checkpoint.select(found)
    return tuple(_checked(place, found[path]) for path in wanted)


def check_name(place: str, path: Any) -> None:
    if not isinstance(path, str) or _NOT_IN_A_NAME.search(path):
        raise _refused(place, f"{path!r} is not a file name")
    for part in path.split("/"):
        if part in ("", ".", "..") or len(part.encode()) > 255:
            raise _refused(place, f"{path!r} leaves the model's folder or is not a file name")


def _checked(place: str, row: Listed) -> Listed:
    if not isinstance(row.size, int) or isinstance(row.size, bool) or row.size < 0:
        raise _refused(place, f"{row.path} has the size {row.size!r}")
    if row.size == 0:
        return Listed(row.path, 0, _EMPTY_SHA256)
    sha256 = row.sha256.lower() if isinstance(row.sha256, str) else row.sha256
    if sha256 is not None and not _matches(_SHA256, sha256):
        raise _refused(place, f"{row.path} has the SHA-256 {row.sha256!r}")
    if row.git is not None and not _matches(_GIT, row.git):
        raise _refused(place, f"{row.path} has the git hash {row.git!r}")
    if not sha256 and not row.git:
        raise _refused(place, f"{row.path} has no hash")
    return Listed(row.path, row.size, sha256, row.git)


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _refused(place: str, why: str) -> ListRefused:
    return ListRefused(f"the list of {place} makes no sense: {why}")


def broken_promise(place: str, path: str, status: int) -> ListRefused:
    return ListRefused(f"{place} lists {path}, but answers {status} for it")


def differing(one: Listing, other: Listing) -> Iterator[str]:
    """Paths of `one` that `other` has not, or has with other bytes."""
    rows = {row.path: row for row in other.files}
    for row in one.files:
        if row.path not in rows or not row.agrees(rows[row.path]):
            yield row.path
