"""How far a transfer is: counters shared by its threads, and the status file others read. Knows
neither sources nor what the bytes are for."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from qwen_weights.errors import WeightsError, in_units
from qwen_weights.manifest import Manifest

NAME = "status.json"
INTERVAL_SECONDS = 0.5
_RATE_SAMPLES = 20  # ten seconds
_MOST_WARNINGS = 30


class Door(Protocol):
    """Where peers read from this host (share.py)."""

    @property
    def address(self) -> str: ...

    @property
    def port(self) -> int: ...

    @property
    def served_bytes(self) -> int: ...


class Progress:
    """Bytes on this host: those `kept` were there before, those `fetched` came from a source."""

    def __init__(self, manifests: Sequence[Manifest], manifest_id: str) -> None:
        self._manifests = tuple(manifests)
        self._manifest_id = manifest_id
        self._total_bytes = sum(one.total_bytes for one in self._manifests)
        self._manifest = self._manifests[0]
        self._directory = Path()
        self._report: Callable[[], Sequence[Mapping[str, Any]]] = tuple
        self._door: Door | None = None
        self._lock = threading.Lock()
        self._phase = "checking"
        self._error: WeightsError | None = None
        self._warnings: list[str] = []
        self._bytes_done = 0
        self._bytes_fetched = 0
        self._files_done = 0
        self._moved_at = time.monotonic()
        self._samples: deque[tuple[float, int]] = deque([(self._moved_at, 0)], _RATE_SAMPLES)
        self._started_at = time.time()

    def begin(self, manifest: Manifest, directory: Path) -> None:
        """Of the manifests, this one comes next."""
        with self._lock:
            self._manifest, self._directory = manifest, directory
            self._phase = "checking"

    def ask_sources(self, report: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        self._report = report

    def shared_at(self, door: Door) -> None:
        self._door = door

    def kept(self, count: int) -> None:
        with self._lock:
            self._bytes_done += count

    def fetched(self, count: int) -> None:
        with self._lock:
            self._phase = "fetching"
            self._bytes_done += count
            self._bytes_fetched += count
            self._moved_at = time.monotonic()

    def touch(self) -> None:
        with self._lock:
            self._moved_at = time.monotonic()

    def files(self, count: int) -> None:
        with self._lock:
            self._files_done += count

    def enter(self, phase: str) -> None:
        with self._lock:
            self._phase = phase

    def warn(self, warning: str) -> None:
        """Once each: what the operator should know although the transfer goes on."""
        with self._lock:
            if warning not in self._warnings and len(self._warnings) < _MOST_WARNINGS:
                self._warnings.append(warning)

    def whole(self) -> None:
        """Everything is in its place, whoever brought it."""
        with self._lock:
            self._phase = "done"
            self._bytes_done = self._total_bytes
            self._files_done = sum(len(one.artifacts) for one in self._manifests)

    def failed(self, error: WeightsError) -> None:
        with self._lock:
            self._phase = "failed"
            self._error = error

    @property
    def phase(self) -> str:
        with self._lock:
            return self._phase

    def rate(self) -> float:
        with self._lock:
            return self._rate()

    def still_seconds(self) -> float:
        with self._lock:
            return time.monotonic() - self._moved_at

    def reached(self) -> str:
        """For the end of an error message: what the next transfer starts from."""
        with self._lock:
            done, total = in_units(self._bytes_done), in_units(self._total_bytes)
        return f"{done} of {total} are on this host, and the next transfer continues there"

    def snapshot(self) -> dict[str, Any]:
        sources = [dict(row) for row in self._report()]
        door = self._door
        with self._lock:
            return {
                **self._counts(),
                "schema": 1,
                "phase": self._phase,
                "manifest_id": self._manifest_id,
                "model": self._manifest.model,
                "revision": self._manifest.revision,
                "directory": str(self._directory),
                "source": ", ".join(row["name"] for row in sources if row["state"] == "reading"),
                "sources": sources,
                "share": {"address": door.address, "port": door.port} if door else None,
                "served_bytes": door.served_bytes if door else 0,
                "warnings": list(self._warnings),
                "error": error_fields(self._error) if self._error else None,
                "pid": os.getpid(),
                "started_at": round(self._started_at, 3),
                "updated_at": round(time.time(), 3),
            }

    def _counts(self) -> dict[str, Any]:
        self._samples.append((time.monotonic(), self._bytes_fetched))
        rate = self._rate()
        missing = self._total_bytes - self._bytes_done
        return {
            "bytes_done": self._bytes_done,
            "bytes_total": self._total_bytes,
            "bytes_fetched": self._bytes_fetched,
            "files_done": self._files_done,
            "files_total": sum(len(one.artifacts) for one in self._manifests),
            "rate": round(rate),
            "eta_seconds": round(missing / rate, 1) if rate >= 1 else None,
        }

    def _rate(self) -> float:
        """Bytes fetched per second of late."""
        since, fetched = self._samples[0]
        seconds = time.monotonic() - since
        return (self._bytes_fetched - fetched) / seconds if seconds > 0 else 0.0


def error_fields(error: WeightsError) -> dict[str, Any]:
    return {
        "kind": error.kind,
        "message": str(error),
        "exit_code": error.exit_code,
        "hint": error.hint,
    }


def write_status(path: Path, status: dict[str, Any]) -> None:
    """Replaces the file, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    beside.write_text(json.dumps(status) + "\n", encoding="utf-8")
    os.replace(beside, path)


class StatusFile:
    """Writes the progress every half second while entered, and once more at the end."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path = path
        self._progress = progress
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="status", daemon=True)

    def __enter__(self) -> StatusFile:
        write_status(self._path, self._progress.snapshot())
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._ticker.join()
        self._write()

    def _tick(self) -> None:
        while not self._ended.wait(INTERVAL_SECONDS):
            self._write()

    def _write(self) -> None:
        # A status that cannot be written must not end a transfer that runs.
        with suppress(OSError):
            write_status(self._path, self._progress.snapshot())


def failed_before(error: WeightsError) -> dict[str, Any]:
    """The status of a transfer that could not even begin."""
    counts = ("bytes_done", "bytes_total", "bytes_fetched", "files_done", "files_total", "rate")
    return {
        **dict.fromkeys(counts, 0),
        "schema": 1,
        "phase": "failed",
        "manifest_id": None,
        "eta_seconds": None,
        "source": "",
        "sources": [],
        "share": None,
        "served_bytes": 0,
        "warnings": [],
        "error": error_fields(error),
        "pid": os.getpid(),
        "updated_at": round(time.time(), 3),
    }
