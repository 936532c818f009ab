"""The items of a response as they grow, and the events that tell of it.

Knows nothing of the response around them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from qwen_service.engine import Logprob
from qwen_service.formats.parts import CallArguments, CallBegan, Part, Said, Thought

# Type of the event, and what it says.
Told = tuple[str, dict[str, Any]]
Status = Literal["completed", "incomplete"]


class Output:
    """One item is open at a time: a message, a thought or a call."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._is_open = False
        self._text: list[str] = []

    def take(self, part: Part, logprobs: Sequence[Logprob]) -> Iterator[Told]:
        match part:
            case Said():
                yield from self._require("message")
                tokens = [_logprob(it) for it in logprobs]
                self._open["content"][0]["logprobs"] += tokens
                yield self._delta("output_text", part.text, logprobs=tokens)
            case Thought():
                yield from self._require("reasoning")
                yield self._delta("reasoning_text", part.text)
            case CallBegan():
                yield from self.close()
                yield from self._add("function_call", call_id=part.id, name=part.name, arguments="")
            case CallArguments():
                self._text.append(part.text)
                yield (
                    "response.function_call_arguments.delta",
                    {**self._place, "delta": part.text},
                )

    def close(self, status: Status = "completed") -> Iterator[Told]:
        if not self._is_open:
            return
        self._is_open = False
        item, text = self._open, "".join(self._text)
        item["status"] = status
        if item["type"] == "function_call":
            item["arguments"] = text
            done = {**self._place, "name": item["name"], "arguments": text}
            yield "response.function_call_arguments.done", done
        else:
            part = item["content"][0]
            part["text"] = text
            logprobs = {"logprobs": part["logprobs"]} if "logprobs" in part else {}
            at = {**self._place, "content_index": 0}
            yield f"response.{part['type']}.done", {**at, "text": text, **logprobs}
            yield "response.content_part.done", {**at, "part": dict(part)}
        yield "response.output_item.done", {"output_index": self._index, "item": item}

    def _require(self, kind: Literal["message", "reasoning"]) -> Iterator[Told]:
        if self._is_open and self._open["type"] == kind:
            return
        yield from self.close()
        if kind == "message":
            yield from self._add(kind, role="assistant", content=[])
            part: dict[str, Any] = {"type": "output_text", "annotations": [], "logprobs": []}
        else:
            yield from self._add(kind, summary=[], content=[])
            part = {"type": "reasoning_text"}
        part["text"] = ""
        self._open["content"].append(part)
        at = {**self._place, "content_index": 0}
        yield "response.content_part.added", {**at, "part": {**part}}

    def _add(self, kind: str, **fields: Any) -> Iterator[Told]:
        prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[kind]
        head = {"id": f"{prefix}_{secrets.token_hex(16)}", "type": kind, "status": "in_progress"}
        self.items.append({**head, **fields})
        self._is_open, self._text = True, []
        item = {name: [] if value == [] else value for name, value in self._open.items()}
        yield "response.output_item.added", {"output_index": self._index, "item": item}

    def _delta(self, kind: str, text: str, **further: Any) -> Told:
        self._text.append(text)
        told = {**self._place, "content_index": 0, "delta": text, **further}
        return f"response.{kind}.delta", told

    @property
    def _open(self) -> dict[str, Any]:
        return self.items[-1]

    @property
    def _index(self) -> int:
        return len(self.items) - 1

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._open["id"], "output_index": self._index}


def _logprob(it: Logprob) -> dict[str, Any]:
    top = [_top(one) for one in it.top]
    return {**_top(it), "top_logprobs": top}


def _top(it: Logprob) -> dict[str, Any]:
    return {"token": it.text, "logprob": it.logprob, "bytes": list(it.bytes)}
