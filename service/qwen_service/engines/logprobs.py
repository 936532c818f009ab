"""What a token is, as bytes and text, and how likely the model itself held it.

Knows the vocabulary and the model's own logits: before temperature, penalties and constraints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from qwen_service.engine import Logprob


class Vocabulary:
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added: dict[int, bytes] = {
            index: token.content.encode() for index, token in tokenizer.added_tokens_decoder.items()
        }
        self._bytes = {letter: byte for byte, letter in bytes_to_unicode().items()}

    def bytes_of(self, token: int) -> bytes:
        """Exact, also of a token that holds a part of a character only."""
        if token in self._added:
            return self._added[token]
        letters = self._tokenizer.convert_ids_to_tokens(token) or ""
        try:
            return bytes(self._bytes[letter] for letter in letters)
        except KeyError:
            # No byte-level vocabulary: the text is all there is.
            return str(self._tokenizer.decode([token])).encode()

    def logprobs(
        self, logits: Tensor, tokens: Tensor, wishes: Sequence[int | None]
    ) -> list[Logprob | None]:
        """One for each row that wishes it, with so many of the likeliest tokens beside."""
        told: list[Logprob | None] = [None] * len(wishes)
        rows = [row for row, wish in enumerate(wishes) if wish is not None]
        if not rows:
            return told
        all_logprobs = logits[rows].float().log_softmax(-1)
        most = min(max(wishes[row] or 0 for row in rows), logits.shape[-1])
        values, indices = all_logprobs.topk(most)
        chosen = tokens[rows]
        own = all_logprobs.gather(-1, chosen.unsqueeze(1)).squeeze(1).tolist()
        tops = zip(values.tolist(), indices.tolist(), strict=True)
        for row, token, logprob, (best, ids) in zip(rows, chosen.tolist(), own, tops, strict=True):
            pairs = list(zip(ids, best, strict=True))[: wishes[row]]
            top = tuple(self._logprob(other, value) for other, value in pairs)
            told[row] = self._logprob(token, logprob, top)
        return told

    def _logprob(self, token: int, logprob: float, top: tuple[Logprob, ...] = ()) -> Logprob:
        own = self.bytes_of(token)
        return Logprob(own.decode("utf-8", "replace"), own, logprob, top)
