"""Responses on the wire: the object as a whole, and the events of its stream.

Knows neither how models write nor how bytes are sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qwen_service.engine import Finished, Piece
from qwen_service.errors import ApiError
from qwen_service.formats.parts import Reader, Said, Thought
from qwen_service.protocol.responses import ResponsesRequest
from qwen_service.wire.events import dump
from qwen_service.wire.head import Head, Usage
from qwen_service.wire.output import Output, Told


class Answer:
    """One response as it grows; also the only choice of its reply."""

    def __init__(self, head: Head, request: ResponsesRequest, reader: Reader | None) -> None:
        self._head = head
        self._told = _told_again(request)
        self._reader = reader
        self._output = Output()
        self._thought_tokens = 0
        self.status = "in_progress"

    def add(self, arrival: Piece | Finished) -> list[Told]:
        return list(self._add(arrival))

    def _add(self, arrival: Piece | Finished) -> Iterator[Told]:
        if isinstance(arrival, Piece):
            said = Said(arrival.text)
            parts = self._reader.feed(arrival.text) if self._reader else [said]
            if arrival.logprobs and not parts:
                # Where the text is held back, the tokens are not.
                parts = [Said("")]
            self._thought_tokens += any(isinstance(part, Thought) for part in parts)
            for at, part in enumerate(parts):
                yield from self._output.take(part, () if at else arrival.logprobs)
            return
        for part in self._reader.end() if self._reader else ():
            yield from self._output.take(part, ())
        if not self._output.items:
            yield from self._output.take(Said(""), ())
        self.status = "completed" if arrival.reason == "stop" else "incomplete"
        yield from self._output.close("completed" if arrival.reason == "stop" else "incomplete")

    def render(self, usage: Usage | None = None, error: ApiError | None = None) -> dict[str, Any]:
        is_cut = self.status == "incomplete"
        return {
            "id": self._head.id,
            "object": "response",
            "created_at": self._head.created,
            "status": "failed" if error else self.status,
            "error": {"code": "server_error", "message": error.message} if error else None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "model": self._head.model,
            "output": self._output.items,
            "usage": self._usage(usage) if usage else None,
            **self._told,
        }

    def _usage(self, usage: Usage) -> dict[str, Any]:
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._thought_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }


def _told_again(request: ResponsesRequest) -> dict[str, Any]:
    """What the caller said and finds again in the response."""
    given = request.model_dump(exclude_none=True, by_alias=True)
    format = {"type": "text"}
    return {
        "background": False,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": given.get("reasoning", {"effort": None}),
        "store": False,
        "temperature": request.temperature,
        "text": {"format": format, **given.get("text", {})},
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": given.get("tools", []),
        "top_logprobs": request.top_logprobs or 0,
        "top_p": request.top_p,
        "truncation": "disabled",
        "user": request.user,
    }


class Events:
    """The events of one stream, numbered."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._number = -1

    def first(self) -> str:
        response = {"response": self._answer.render()}
        return self._event("response.created", response) + self._event(
            "response.in_progress", response
        )

    def add(self, index: int, arrival: Piece | Finished) -> str:
        return "".join([self._event(kind, told) for kind, told in self._answer.add(arrival)])

    def end(self, usage: Usage) -> str:
        kind = f"response.{self._answer.status}"
        return self._event(kind, {"response": self._answer.render(usage)})

    def failure(self, error: ApiError) -> str:
        told = {"code": error.code, "message": error.message, "param": error.param}
        failed = {"response": self._answer.render(error=error)}
        return self._event("error", told) + self._event("response.failed", failed)

    def _event(self, kind: str, told: Mapping[str, Any]) -> str:
        self._number += 1
        data = dump({"type": kind, "sequence_number": self._number, **told})
        return f"event: {kind}\ndata: {data}\n\n"
