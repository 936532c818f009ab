"""What is known of files that were read before, as long as `stat` says that they are the same. A
lost cache costs time only. Does not know what the files are for."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

SCHEMA = 1
# A file written within one tick of its file system's clock after it was read looks unread.
_UNSETTLED_NANOSECONDS = 2_000_000_000


@dataclass(frozen=True)
class Stamp:
    """Not the time of the last change to the inode: a hard link into the store changes that, and
    what is taken from a file is proven again."""

    size: int
    mtime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)


class Known:
    """`path` is where it is kept; without one everything is read anew."""

    def __init__(self, path: Path | None, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._path = path
        self._now_ns = now_ns
        self._entries: dict[str, Any] = _load(path) if path else {}
        self._has_news = False

    def get(self, path: Path, stamp: Stamp) -> Any:
        entry = self._entries.get(str(path))
        return entry[1] if entry and entry[0] == list(astuple(stamp)) else None

    def put(self, path: Path, stamp: Stamp, value: Any) -> None:
        if stamp.mtime_ns < self._now_ns() - _UNSETTLED_NANOSECONDS:
            self._entries[str(path)] = [list(astuple(stamp)), value]
            self._has_news = True

    def save(self) -> None:
        """Replaces the file as a whole. Of two writers one may lose entries, and reads again."""
        if self._path is None or not self._has_news:
            return
        kept = {name: entry for name, entry in self._entries.items() if os.path.exists(name)}
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps({"schema": SCHEMA, "files": kept}), encoding="utf-8")
            os.replace(beside, self._path)


def _load(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            return {}
        return {name: [list(stamp), value] for name, (stamp, value) in document["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
