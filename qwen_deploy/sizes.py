"""Bytes in words. Knows nothing of what they are."""

from __future__ import annotations

import re

RATES = "bytes a second, at least 1k, like 500k, 20M or 1G"
_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kMG]?)")
_UNITS = {"": 1, "k": 1000, "M": 1000**2, "G": 1000**3}


def megabytes(size: int, *, digits: int = 1) -> str:
    """`digits` after the point, of megabytes; gigabytes have one."""
    return f"{size / 1e6:,.{digits}f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"


def rate_bytes(rate: str | None) -> int | None:
    """How many bytes a second `20M` is; none for what is no rate, or less than anybody means."""
    match = _RATE.fullmatch(rate) if rate else None
    count = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    return count if count >= _UNITS["k"] else None
