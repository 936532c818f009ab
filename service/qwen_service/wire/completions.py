"""Text completions on the wire.

Knows neither prompts nor how bytes are sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwen_service.engine import Finished, Logprob, Piece
from qwen_service.wire.events import GAP, around, event, quoted
from qwen_service.wire.head import Head, Stream


class Logprobs:
    """Tokens in columns, as this older form has it, with where each begins in the text."""

    def __init__(self) -> None:
        self._offset = 0

    def render(self, tokens: Sequence[Logprob]) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{it.text: it.logprob for it in token.top} for token in tokens],
            "text_offset": offsets,
        }


class Choice:
    """One answer as it grows; `echo` is the prompt where the caller wants it back."""

    def __init__(self, index: int, echo: str) -> None:
        self._index = index
        self._said = [echo]
        self._logprobs: list[Logprob] = []
        self._reason: str | None = None

    def add(self, arrival: Piece | Finished) -> None:
        if isinstance(arrival, Piece):
            self._said.append(arrival.text)
            self._logprobs += arrival.logprobs
        else:
            self._reason = arrival.reason

    def render(self, *, with_logprobs: bool) -> dict[str, Any]:
        return {
            "index": self._index,
            "text": "".join(self._said),
            "logprobs": Logprobs().render(self._logprobs) if with_logprobs else None,
            "finish_reason": self._reason,
        }


class Chunks(Stream):
    """The chunks of one stream, each as one server-sent event."""

    def __init__(self, head: Head, echoes: Sequence[str], *, with_usage: bool) -> None:
        super().__init__(head, "text_completion", with_usage=with_usage)
        self._echoes = echoes
        self._logprobs = [Logprobs() for _ in echoes]
        self._said = [around(self._data(index, GAP)) for index in range(len(echoes))]

    def first(self) -> str:
        return "".join(
            event(self._data(index, echo)) for index, echo in enumerate(self._echoes) if echo
        )

    def add(self, index: int, arrival: Piece | Finished) -> str:
        if type(arrival) is Piece:
            if arrival.logprobs:
                data = self._data(index, arrival.text)
                data["choices"][0]["logprobs"] = self._logprobs[index].render(arrival.logprobs)
                return event(data)
            before, after = self._said[index]
            return before + quoted(arrival.text) + after
        assert isinstance(arrival, Finished)
        return event(self._data(index, "", arrival.reason))

    def _data(self, index: int, text: str, reason: str | None = None) -> dict[str, Any]:
        return self.chunk({"index": index, "text": text, "logprobs": None, "finish_reason": reason})
