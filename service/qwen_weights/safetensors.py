"""The safetensors file format, as far as a file's length proves it whole. Knows no tensors.

A length, a JSON header, the tensors' bytes: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from typing import Any, BinaryIO

INDEX = "model.safetensors.index.json"
ENDING = ".safetensors"
LENGTH_BYTES = 8
_LONGEST_HEADER_BYTES = 100_000_000  # the format's own limit


def header_bytes(start: bytes) -> int | None:
    """How much of a file that begins so is its header; none where it has none."""
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if len(start) < LENGTH_BYTES or length > _LONGEST_HEADER_BYTES:
        return None
    return LENGTH_BYTES + length


def fault(size: int, file: BinaryIO) -> str | None:
    """What is wrong with a file, in words that follow its name; its header is all that is read."""
    header = header_bytes(file.read(LENGTH_BYTES))
    if header is None:
        return "has no safetensors header"
    if header > size:
        return "is cut short in its header"
    end = _end_of_tensors(file.read(header - LENGTH_BYTES))
    if end is None:
        return "has a corrupted header"
    expected = header + end
    if size != expected:
        return f"is {'cut short' if size < expected else 'too long'}: {size} of {expected} bytes"
    return None


def _end_of_tensors(header: bytes) -> int | None:
    try:
        entries: Any = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name[:2] != "__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None
    return max(ends, default=0) if all(isinstance(end, int) for end in ends) else None
