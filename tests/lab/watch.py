"""`python -m tests.lab.watch DIGEST`: sweeps the lab when the process that holds it is gone.

Reads its input to the end, which comes in whatever way that process ends, and holds the lab's lock
until it has swept. `keep` on its input makes it leave the lab as it is.
"""

from __future__ import annotations

import signal
import sys

from tests.lab.names import Names
from tests.lab.sweep import sweep

KEEP = b"keep"


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.stdin.buffer.read() != KEEP:
        sweep(Names(sys.argv[1]))


if __name__ == "__main__":
    main()
