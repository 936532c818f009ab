"""The safetensors file format, as far as a file's length proves it whole. Knows no tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

INDEX = "model.safetensors.index.json"
_LENGTH_BYTES = 8
_LONGEST_HEADER_BYTES = 100_000_000  # the format's own limit


def fault(path: Path) -> str | None:
    """What is wrong with the file, in words that follow its name."""
    with open(path, "rb") as file:
        return fault_of(file, path.stat().st_size)


def fault_of(file: BinaryIO, size: int) -> str | None:
    """The same of a reader at the start; it is read to the end of its header at most.

    A length, a JSON header, the tensors' bytes: https://github.com/huggingface/safetensors#format"""
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if size < _LENGTH_BYTES or length > _LONGEST_HEADER_BYTES:
        return "has no safetensors header"
    if _LENGTH_BYTES + length > size:
        return "is cut short in its header"
    end = _end_of_tensors(file.read(length))
    if end is None:
        return "has a corrupted header"
    expected = _LENGTH_BYTES + length + end
    if size != expected:
        return f"is {'cut short' if size < expected else 'too long'}: {size} of {expected} bytes"
    return None


def _end_of_tensors(header: bytes) -> int | None:
    try:
        entries: Any = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name[:2] != "__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None
    return max(ends, default=0) if all(isinstance(end, int) for end in ends) else None
