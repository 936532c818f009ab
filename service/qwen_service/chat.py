"""Chat completions: a request becomes generations, their pieces become answers and chunks.

Knows neither status codes nor threads nor tokenizers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwen_service.engine import Chat, Generation, Sampling
from qwen_service.errors import ApiError
from qwen_service.protocol import ChatRequest, Message
from qwen_service.settings import Settings

# The templates of Qwen know the role by its older name.
ROLES = {"developer": "system"}


@dataclass(frozen=True, slots=True)
class Head:
    """What all answers and chunks of one request say alike."""

    id: str
    created: int
    model: str
    release: str

    def render(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.release,
        }


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def render(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(slots=True)
class Choice:
    text: str = ""
    finish_reason: str | None = None


def generations(request: ChatRequest, settings: Settings, id: str) -> tuple[Generation, ...]:
    """One for each choice; each choice draws its own random numbers, also under one seed."""
    request.refuse_unsupported()
    count = request.n or 1
    if count > settings.max_choices:
        raise ApiError(400, f"n: should be at most {settings.max_choices}", param="n")
    prompt = Chat(tuple(_message(index, it) for index, it in enumerate(request.messages)))
    sampling = _sampling(request, settings)
    return tuple(
        Generation(f"{id}-{index}", prompt, _for_choice(sampling, index)) for index in range(count)
    )


def _for_choice(sampling: Sampling, index: int) -> Sampling:
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + index)


def _sampling(request: ChatRequest, settings: Settings) -> Sampling:
    return Sampling(
        max_tokens=request.max_completion_tokens or request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        seed=request.seed,
        stop=_stops(request.stop, settings.max_stops),
    )


def _stops(stop: str | list[str] | None, most: int) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > most:
        raise ApiError(400, f"stop: should be at most {most} strings", param="stop")
    if not all(stops):
        raise ApiError(400, "stop: should not be empty", param="stop")
    return stops


def _message(index: int, message: Message) -> dict[str, Any]:
    rendered: dict[str, Any] = {
        "role": ROLES.get(message.role, message.role),
        "content": _text(message),
    }
    if message.tool_calls:
        rendered["tool_calls"] = [
            {
                "id": call.id,
                "type": call.type,
                "function": {
                    "name": call.function.name,
                    "arguments": _arguments(
                        call.function.arguments,
                        f"messages[{index}].tool_calls[{number}].function.arguments",
                    ),
                },
            }
            for number, call in enumerate(message.tool_calls)
        ]
    return rendered


def _text(message: Message) -> str:
    if isinstance(message.content, list):
        return "\n".join(part.text for part in message.content)
    return message.content or ""


def _arguments(text: str, path: str) -> Any:
    """Templates render arguments themselves and so want the object, not its text."""
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"{path}: should be JSON", param=path) from error
    return arguments


def completion(head: Head, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
    rendered = head.render("chat.completion")
    rendered["choices"] = [
        {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": None,
            "finish_reason": choice.finish_reason,
        }
        for index, choice in enumerate(choices)
    ]
    rendered["usage"] = usage.render()
    return rendered


class Chunks:
    """The chunks of one stream, each as the data of one server-sent event."""

    def __init__(self, head: Head, *, with_usage: bool) -> None:
        self._head = head.render("chat.completion.chunk")
        # Clients that ask for usage find the field in every chunk.
        self._usage: dict[str, Any] = {"usage": None} if with_usage else {}

    def first(self, choices: int) -> Iterator[str]:
        for index in range(choices):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, text: str) -> str:
        return self._chunk(index, {"content": text})

    def last(self, index: int, finish_reason: str) -> str:
        return self._chunk(index, {}, finish_reason)

    def usage(self, usage: Usage) -> Iterator[str]:
        if self._usage:
            yield _event({**self._head, "choices": [], "usage": usage.render()})

    def _chunk(self, index: int, delta: dict[str, Any], finish_reason: str | None = None) -> str:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        return _event({**self._head, "choices": [choice], **self._usage})


DONE = "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


def failure(error: ApiError) -> str:
    return _event(error.envelope())
