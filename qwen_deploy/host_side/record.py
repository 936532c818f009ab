"""Appends one line to the host's audit log, durably."""

from __future__ import annotations

import json
import os
import sys
import time

STATE = "/var/lib/qwen-deploy"


def main() -> None:
    os.makedirs(STATE, exist_ok=True)
    path = STATE + "/audit.log"
    line = dict(
        {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}, **json.loads(sys.argv[1])
    )
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640)
    size = os.fstat(descriptor).st_size
    # A line that a power loss tore must not swallow this one.
    torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
    os.write(descriptor, (b"\n" if torn else b"") + json.dumps(line).encode() + b"\n")
    os.fsync(descriptor)


main()
