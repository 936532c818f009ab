"""Files that one process at a time may hold. Does not know what is in them."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

from qwen_weights.errors import Stopped

_POLL_SECONDS = 0.1


def open_locked(path: Path, stop: threading.Event) -> int:
    """Opens the file and waits until no other process holds it; a kill lets go of it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _flock(descriptor, stop)
            if _is_still_at(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the holder before moved or removed it


def release(descriptor: int) -> None:
    """Closing alone would leave it to whoever has duplicated the descriptor."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _flock(descriptor: int, stop: threading.Event) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if stop.wait(_POLL_SECONDS):
                raise Stopped("stopped while another transfer held the lock") from None


def _is_still_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
