"""Hashes of a file's pieces: recorded beside the manifest once SHA-256 has proven the whole, and
used to find what is wrong within a file. Does not know who reads them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen_weights.disk import write_durably
from qwen_weights.manifest import PIECES_NAME

NAME = PIECES_NAME
SCHEMA = 1
PIECE_BYTES = 16 << 20
# Without SHA instructions it is twice as quick as SHA-256.
HASH = "blake2b-256"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def new_digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=32)


class RunningHashes:
    """Of a file that is read or received from its start: SHA-256 so far, and its pieces' unless
    nobody asks for them."""

    def __init__(self, piece_bytes: int = PIECE_BYTES, *, with_pieces: bool = True) -> None:
        self.piece_bytes = piece_bytes
        self.size = 0
        self._with_pieces = with_pieces
        self._whole = hashlib.sha256()
        self._piece = new_digest()
        self._complete: list[str] = []
        # The SHA-256 of everything before each piece: going back reads nothing again.
        self._before = [self._whole.copy()]

    def update(self, content: bytes | memoryview) -> None:
        rest = memoryview(content)
        while rest:
            room = self.piece_bytes - self.size % self.piece_bytes
            self._take(rest[:room])
            rest = rest[room:]

    def _take(self, content: memoryview) -> None:
        self._whole.update(content)
        self.size += len(content)
        is_border = self.size % self.piece_bytes == 0
        if self._with_pieces:
            self._piece.update(content)
        if self._with_pieces and is_border:
            self._complete.append(self._piece.hexdigest())
            self._piece = new_digest()
        if is_border:
            self._before.append(self._whole.copy())

    def truncate(self, size: int) -> int:
        """Goes back to the start of the piece that byte `size` lies in, and says where that is."""
        number = min(size, self.size) // self.piece_bytes
        self._whole = self._before[number].copy()
        self._piece = new_digest()
        del self._before[number + 1 :]
        del self._complete[number:]
        self.size = number * self.piece_bytes
        return self.size

    @property
    def sha256(self) -> str:
        return self._whole.hexdigest()

    @property
    def complete(self) -> tuple[str, ...]:
        """Of the whole pieces so far; another thread may ask."""
        return tuple(self._complete)

    @property
    def all(self) -> tuple[str, ...]:
        """With the last piece as it is: once nothing more follows."""
        has_rest = self._with_pieces and self.size % self.piece_bytes
        return (*self.complete, self._piece.hexdigest()) if has_rest else self.complete


@dataclass(frozen=True)
class Pieces:
    """What is recorded of several files, by the SHA-256 of each."""

    by_sha256: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    piece_bytes: int = PIECE_BYTES

    def of(self, sha256: str, size: int) -> tuple[str, ...] | None:
        """None where nothing is recorded that could belong to a file of that size."""
        found = self.by_sha256.get(sha256)
        return found if found is not None and len(found) == -(-size // self.piece_bytes) else None

    def ranges(self, digests: tuple[str, ...], size: int) -> Iterator[tuple[tuple[int, int], str]]:
        """Where each piece of a file of that size begins and ends, with its digest."""
        for number, digest in enumerate(digests):
            first = number * self.piece_bytes
            yield (first, min(first + self.piece_bytes, size)), digest

    def to_json(self) -> str:
        document = {
            "schema": SCHEMA,
            "piece_bytes": self.piece_bytes,
            "hash": HASH,
            "pieces": {sha256: list(found) for sha256, found in sorted(self.by_sha256.items())},
        }
        return json.dumps(document, indent=1) + "\n"


def parse(text: str) -> Pieces:
    """Empty where it is no such record: SHA-256 still proves every file."""
    try:
        document = json.loads(text)
        size = document["piece_bytes"]
        kind = (document["schema"], document["hash"])
        if kind != (SCHEMA, HASH) or type(size) is not int or size < 1:
            return Pieces()
        return Pieces({name: _digests(row) for name, row in document["pieces"].items()}, size)
    except (ValueError, TypeError, KeyError, AttributeError):
        return Pieces()


def load(directory: Path) -> Pieces:
    try:
        return parse(directory.joinpath(NAME).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return Pieces()


def note(directory: Path, digests: Mapping[str, tuple[str, ...]]) -> None:
    """Adds to what is recorded beside the artifacts."""
    there = load(directory)
    kept = there.by_sha256 if there.piece_bytes == PIECE_BYTES else {}
    if any(kept.get(sha256) != row for sha256, row in digests.items()):
        write_durably(directory / NAME, Pieces({**kept, **digests}).to_json())


def _digests(row: Any) -> tuple[str, ...]:
    if not isinstance(row, list) or not all(_DIGEST.fullmatch(digest) for digest in row):
        raise ValueError("not a list of digests")
    return tuple(row)
