"""Holds the host's lock until standard input closes or falls silent.

`flock` rather than a directory: the kernel drops it when this process ends, so that neither an
operator who was killed nor a power loss leaves a lock behind that nobody holds.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import sys
import time

LOCK = "/run/qwen-deploy.lock"
SILENCE_SECONDS = 60
# The holder before may have been killed this moment, and its session be about to end.
PATIENCE_SECONDS = 3


def is_taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def main() -> None:
    descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_taken(descriptor):
        if time.monotonic() > deadline:
            print(os.pread(descriptor, 4096, 0).decode() or "{}", flush=True)
            sys.exit(75)
        time.sleep(0.1)
    owner = dict(json.loads(sys.argv[1]), pid=os.getpid())
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)
    print("held", flush=True)
    while select.select([0], [], [], SILENCE_SECONDS)[0] and os.read(0, 4096):
        pass
    os.ftruncate(descriptor, 0)


main()
