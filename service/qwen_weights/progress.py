"""How far a transfer is: counters shared by its threads, and the status file others read. Knows
neither sources nor what the bytes are for."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import WeightsError, in_units
from .manifest import Manifest

INTERVAL_SECONDS = 0.5
_RATE_SAMPLES = 20  # ten seconds


class Progress:
    """Bytes on this host: those `kept` were there before, those `fetched` came from the source."""

    def __init__(self, manifest: Manifest, source: str, directory: Path) -> None:
        self._manifest = manifest
        self._source = source
        self._directory = directory
        self._lock = threading.Lock()
        self._phase = "checking"
        self._error: WeightsError | None = None
        self._bytes_done = 0
        self._bytes_fetched = 0
        self._files_done = 0
        self._moved_at = time.monotonic()
        self._samples: deque[tuple[float, int]] = deque([(self._moved_at, 0)], _RATE_SAMPLES)
        self._started_at = time.time()

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

    def whole(self) -> None:
        """Everything is in its place, whoever brought it."""
        with self._lock:
            self._phase = "done"
            self._bytes_done = self._manifest.total_bytes
            self._files_done = len(self._manifest.artifacts)

    def failed(self, error: WeightsError) -> None:
        with self._lock:
            self._phase = "failed"
            self._error = error

    def still_seconds(self) -> float:
        with self._lock:
            return time.monotonic() - self._moved_at

    def reached(self) -> str:
        """For the end of an error message: what the next transfer starts from."""
        with self._lock:
            done, total = in_units(self._bytes_done), in_units(self._manifest.total_bytes)
        return f"{done} of {total} are on this host, and the next transfer continues there"

    def snapshot(self) -> dict[str, Any]:
        with self._lock:
            rate = self._rate()
            missing = self._manifest.total_bytes - self._bytes_done
            return {
                "schema": 1,
                "phase": self._phase,
                "model": self._manifest.model,
                "revision": self._manifest.revision,
                "directory": str(self._directory),
                "source": self._source,
                "bytes_done": self._bytes_done,
                "bytes_total": self._manifest.total_bytes,
                "bytes_fetched": self._bytes_fetched,
                "files_done": self._files_done,
                "files_total": len(self._manifest.artifacts),
                "rate": round(rate),
                "eta_seconds": round(missing / rate, 1) if rate >= 1 else None,
                "error": error_fields(self._error) if self._error else None,
                "pid": os.getpid(),
                "started_at": round(self._started_at, 3),
                "updated_at": round(time.time(), 3),
            }

    def _rate(self) -> float:
        """Bytes fetched per second of late."""
        now = time.monotonic()
        self._samples.append((now, self._bytes_fetched))
        since, fetched = self._samples[0]
        return (self._bytes_fetched - fetched) / (now - since) if now > since else 0.0


def error_fields(error: WeightsError) -> dict[str, Any]:
    return {"kind": error.kind, "message": str(error), "exit_code": error.exit_code}


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
