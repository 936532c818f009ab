"""Chat completions on the wire: parts of answers become messages or chunks.

Knows neither how models write nor how bytes are sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwen_service.engine import Finished, Logprob, Piece
from qwen_service.formats.parts import CallArguments, CallBegan, Part, Reader, Said, Thought
from qwen_service.wire.events import GAP, around, event, quoted
from qwen_service.wire.head import Head, Stream


def logprob(it: Logprob) -> dict[str, Any]:
    return {"token": it.text, "logprob": it.logprob, "bytes": list(it.bytes)}


def logprobs(tokens: Sequence[Logprob]) -> dict[str, Any]:
    content = [{**logprob(it), "top_logprobs": [logprob(top) for top in it.top]} for it in tokens]
    return {"content": content, "refusal": None}


def reason_of(finished: Finished, reader: Reader | None, *, is_legacy: bool) -> str:
    if finished.reason == "stop" and reader is not None and reader.has_called:
        return "function_call" if is_legacy else "tool_calls"
    return finished.reason


class Choice:
    """One answer as it grows."""

    def __init__(self, index: int, reader: Reader | None, *, is_legacy: bool) -> None:
        self._index = index
        self._reader = reader
        self._is_legacy = is_legacy
        self._said: list[str] = []
        self._thought: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._logprobs: list[Logprob] = []
        self._reason: str | None = None

    def add(self, arrival: Piece | Finished) -> None:
        if isinstance(arrival, Piece):
            self._logprobs += arrival.logprobs
            if self._reader is None:
                self._said.append(arrival.text)
                return
            parts = self._reader.feed(arrival.text)
        else:
            parts = self._reader.end() if self._reader else []
        for part in parts:
            self._take(part)
        if isinstance(arrival, Finished):
            self._reason = reason_of(arrival, self._reader, is_legacy=self._is_legacy)

    def _take(self, part: Part) -> None:
        match part:
            case Said():
                self._said.append(part.text)
            case Thought():
                self._thought.append(part.text)
            case CallBegan():
                function = {"name": part.name, "arguments": ""}
                self._calls.append({"id": part.id, "type": "function", "function": function})
            case CallArguments():
                self._calls[part.index]["function"]["arguments"] += part.text

    def render(self, *, with_logprobs: bool) -> dict[str, Any]:
        text = "".join(self._said)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text if text or not self._calls else None,
            "refusal": None,
        }
        if self._thought:
            message["reasoning_content"] = "".join(self._thought)
        if self._calls and self._is_legacy:
            message["function_call"] = self._calls[0]["function"]
        elif self._calls:
            message["tool_calls"] = self._calls
        return {
            "index": self._index,
            "message": message,
            "logprobs": logprobs(self._logprobs) if with_logprobs else None,
            "finish_reason": self._reason,
        }


class Chunks(Stream):
    """The chunks of one stream, each as one server-sent event."""

    def __init__(
        self, head: Head, readers: Sequence[Reader | None], *, with_usage: bool, is_legacy: bool
    ) -> None:
        super().__init__(head, "chat.completion.chunk", with_usage=with_usage)
        self._readers = readers
        self._is_legacy = is_legacy
        self._said = [self._around(index, "content") for index in range(len(readers))]
        self._thought = [self._around(index, "reasoning_content") for index in range(len(readers))]

    def _around(self, index: int, field: str) -> tuple[str, str]:
        return around(self._data(index, {field: GAP}))

    def first(self) -> str:
        begin = {"role": "assistant", "content": ""}
        return "".join(event(self._data(index, begin)) for index in range(len(self._readers)))

    def add(self, index: int, arrival: Piece | Finished) -> str:
        """The events that an arrival leads to: none, one or several."""
        if type(arrival) is Piece:
            reader = self._readers[index]
            if arrival.logprobs:
                return self._with_logprobs(index, arrival)
            if reader is None:
                before, after = self._said[index]
                return before + quoted(arrival.text) + after
            return "".join([self._part(index, part) for part in reader.feed(arrival.text)])
        assert isinstance(arrival, Finished)
        reader = self._readers[index]
        parts = reader.end() if reader else []
        rest = "".join([self._part(index, part) for part in parts])
        reason = reason_of(arrival, reader, is_legacy=self._is_legacy)
        return rest + event(self._data(index, {}, reason))

    def _with_logprobs(self, index: int, piece: Piece) -> str:
        """The first chunk of a piece tells of its tokens, an empty one where nothing is settled."""
        reader = self._readers[index]
        parts = reader.feed(piece.text) if reader else [Said(piece.text)]
        deltas = [self._delta(index, part) for part in parts] or [{"content": ""}]
        first = self._data(index, deltas[0])
        first["choices"][0]["logprobs"] = logprobs(piece.logprobs)
        return event(first) + "".join(event(self._data(index, it)) for it in deltas[1:])

    def _part(self, index: int, part: Part) -> str:
        match part:
            case Said():
                before, after = self._said[index]
                return before + quoted(part.text) + after
            case Thought():
                before, after = self._thought[index]
                return before + quoted(part.text) + after
        return event(self._data(index, self._delta(index, part)))

    def _delta(self, index: int, part: Part) -> dict[str, Any]:
        match part:
            case Said():
                return {"content": part.text}
            case Thought():
                return {"reasoning_content": part.text}
            case CallBegan():
                function = {"name": part.name, "arguments": ""}
                if self._is_legacy:
                    return {"function_call": function}
                call = {"index": part.index, "id": part.id, "type": "function"}
                return {"tool_calls": [{**call, "function": function}]}
            case CallArguments():
                if self._is_legacy:
                    return {"function_call": {"arguments": part.text}}
                call = {"index": part.index, "function": {"arguments": part.text}}
                return {"tool_calls": [call]}

    def _data(self, index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return self.chunk(
            {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        )
