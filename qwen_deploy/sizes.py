"""Bytes in words. Knows nothing of what they are."""

from __future__ import annotations


def megabytes(size: int, *, digits: int = 1) -> str:
    """`digits` after the point, of megabytes; gigabytes have one."""
    return f"{size / 1e6:,.{digits}f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"
