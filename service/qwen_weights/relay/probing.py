"""How quickly a peer would give what a running stream reads, by reading a little of it. Keeps none
of it, and does not know what follows from the answer."""

from __future__ import annotations

import time
from contextlib import closing

from qwen_weights.errors import WeightsError, WrongPiece
from qwen_weights.relay.ancestor import Pace
from qwen_weights.sources import Interruption
from qwen_weights.sources.peer import PeerSource, PeerStream

_BUFFER_BYTES = 256 << 10


def measure(source: PeerSource, running: PeerStream, pace: Pace) -> float:
    """Bytes a second; 0 where it gives none."""
    began = time.monotonic()
    first = running.position
    end = min(first + pace.probe_bytes, running.artifact.size)
    if first >= end:
        return 0.0
    try:
        count = _read(source, running, (first, end), began + pace.probe_seconds)
    except (Interruption, WeightsError, WrongPiece):
        return 0.0
    return count / max(time.monotonic() - began, 1e-6)


def _read(source: PeerSource, running: PeerStream, wanted: tuple[int, int], deadline: float) -> int:
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    count = 0
    with closing(source.open(running.artifact, *wanted)) as stream:
        stream.limit_silence(max(deadline - time.monotonic(), 0.1))
        while time.monotonic() < deadline and (got := stream.readinto(buffer)):
            count += got
    return count
