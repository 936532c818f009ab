"""qwen.tiktoken, byte strings and their ranks, as a tokenizer of the `tokenizers` library that
gives the same ids as tiktoken does. Knows no control tokens.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

# As the original splits a text before it merges bytes.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_ranks(path: Path) -> dict[bytes, int]:
    """Raises ValueError for what is no such file."""
    ranks = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"{path.name}, line {number}: no token and rank") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"{path.name}: the ranks are not 0, 1, 2 and so on: it is cut short")
    return ranks


def make_tokenizer(ranks: Mapping[bytes, int]) -> Tokenizer:
    vocabulary = {_letters(token): rank for token, rank in ranks.items()}
    merges = [(_letters(left), _letters(right)) for left, right in _merges(ranks)]
    # A piece that is a token itself stays whole, as in tiktoken.
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The last merge of each token by those of lower rank: tiktoken tries every pair, yet no other
    two parts of a token can ever stand side by side."""
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            left, right = _halves(token, rank, ranks)
            yield left, right


def _halves(token: bytes, rank: int, ranks: Mapping[bytes, int]) -> list[bytes]:
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 2:
        lowest, at = rank, -1
        for index in range(len(parts) - 1):
            found = ranks.get(parts[index] + parts[index + 1], rank)
            if found < lowest:
                lowest, at = found, index
        if at < 0:
            raise ValueError(f"the token of rank {rank} cannot be merged from those before it")
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _byte_letters() -> dict[int, str]:
    """The letters that stand for bytes in byte-level vocabularies: printable ones for themselves,
    the others from 256 up in their order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + index) for index, byte in enumerate(others)
    }


_LETTERS = _byte_letters()


def _letters(token: bytes) -> str:
    return token.decode("latin-1").translate(_LETTERS)
