"""A small vocabulary in the original's file format, learned from a few lines of text."""

from __future__ import annotations

import base64
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import regex  # type: ignore[import-untyped]
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

MERGES = 600
LINES = (
    "You are a helpful assistant. The quick brown fox doesn't jump over 1234 lazy dogs.",
    "你好,世界!今天天气很好,我们去公园散步吧。你是谁?我是通义千问。",
    "def hello(name: str) -> None:\n    print(f'hello, {name}')\n\n\nif x == 1:\n\treturn x\r\n",
    "👩‍👩‍👧‍👦 🏳️‍🌈 😀😀 café naïve Ångström שלום עולם مرحبا بالعالم  привет мир",
    "system user assistant observation Thought: Action: Action Input: Final Answer:",
)


def learned_ranks() -> dict[bytes, int]:
    """Single bytes first, then what merges, the commonest pair first, as tiktoken has them."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    text = [unicodedata.normalize("NFC", line) for line in LINES]
    pieces = [piece.encode() for line in text for piece in regex.findall(PRETOKENIZE_REGEX, line)]
    words = [[piece[at : at + 1] for at in range(len(piece))] for piece in pieces]
    for _ in range(MERGES):
        counts = Counter(pair for word in words for pair in pairwise(word))
        if not counts:
            break
        pair = min(counts, key=lambda one: (-counts[one], one))
        ranks.setdefault(b"".join(pair), len(ranks))
        words = [_merged(word, pair) for word in words]
    return ranks


def _merged(word: Sequence[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    merged: list[bytes] = []
    at = 0
    while at < len(word):
        size = 2 if tuple(word[at : at + 2]) == pair else 1
        merged.append(b"".join(word[at : at + size]))
        at += size
    return merged


def write(path: Path, ranks: Mapping[bytes, int]) -> Path:
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items())
    path.write_bytes(b"".join(lines))
    return path
