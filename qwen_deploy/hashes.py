"""SHA-256 of local files over all cores, and a cache of them keyed by what `stat` says. Does not
know what the files are for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

from qwen_weights.survey import Tell
from qwen_weights.survey.hashing import READ_BYTES, Tally, over_all_cores

SCHEMA = 1
# A file written within one tick of its file system's clock after it was read looks unread.
_UNSETTLED_NANOSECONDS = 2_000_000_000

Progress = Tell


@dataclass(frozen=True, slots=True)
class Stamp:
    """Two equal stamps of a path mean the same content."""

    size: int
    mtime_ns: int
    inode: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)


class FileChanged(Exception):
    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} changed while it was read")
        self.path = path


def sha256_of_all(
    stamps: Mapping[Path, Stamp],
    *,
    cache_path: Path,
    progress: Progress | None = None,
    now_ns: Callable[[], int] = time.time_ns,
) -> dict[Path, str]:
    """Reads only files that changed since they were last hashed; a lost cache costs time only."""
    known = _load(cache_path)
    hashes = {path: known[str(path)][1] for path in stamps if _knows(known, path, stamps[path])}
    unread = {path: stamp for path, stamp in stamps.items() if path not in hashes}
    if unread:
        fresh = _read_all(unread, progress or (lambda done, total: None))
        hashes |= fresh
        _save(cache_path, _settled(fresh, stamps, now_ns()))
    return hashes


def _read_all(stamps: Mapping[Path, Stamp], progress: Progress) -> dict[Path, str]:
    largest_first = sorted(stamps, key=lambda path: -stamps[path].size)
    tally = Tally(sum(stamp.size for stamp in stamps.values()), progress)
    return over_all_cores(largest_first, lambda path: _sha256_of(path, stamps[path], tally), tally)


def _sha256_of(path: Path, stamp: Stamp, tally: Tally) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(READ_BYTES))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            tally.add(count)
        if Stamp.of(os.fstat(file.fileno())) != stamp:
            raise FileChanged(path)
    return digest.hexdigest()


_Known = dict[str, tuple[list[int], str]]


def _knows(known: _Known, path: Path, stamp: Stamp) -> bool:
    entry = known.get(str(path))
    return entry is not None and entry[0] == list(astuple(stamp))


def is_settled(stamp: Stamp, now_ns: int) -> bool:
    """Whether a later change of the file must change its stamp."""
    return max(stamp.mtime_ns, stamp.ctime_ns) < now_ns - _UNSETTLED_NANOSECONDS


def _settled(fresh: Mapping[Path, str], stamps: Mapping[Path, Stamp], now_ns: int) -> _Known:
    return {
        str(path): (list(astuple(stamps[path])), sha256)
        for path, sha256 in fresh.items()
        if is_settled(stamps[path], now_ns)
    }


def _load(path: Path) -> _Known:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            return {}
        entries = {name: (stamp, str(sha)) for name, (stamp, sha) in document["files"].items()}
        return {name: entry for name, entry in entries.items() if len(entry[1]) == 64}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _save(path: Path, fresh: _Known) -> None:
    """Replaces the file as a whole. Of two writers one may lose entries, and reads again."""
    folders = {os.path.dirname(name) for name in fresh}
    kept = {
        name: entry
        for name, entry in _load(path).items()
        if os.path.dirname(name) not in folders or os.path.exists(name)
    }
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps({"schema": SCHEMA, "files": kept | fresh}), encoding="utf-8")
        os.replace(beside, path)
