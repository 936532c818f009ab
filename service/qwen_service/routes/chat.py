"""POST /v1/chat/completions, also under the path of older clients.

Knows nothing of prompts and formats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from qwen_service.conversion import chat
from qwen_service.errors import ApiError
from qwen_service.protocol.answers import ChatCompletion
from qwen_service.protocol.base import header_of
from qwen_service.protocol.chat import ChatRequest, NamelessChatRequest
from qwen_service.routes.service import EVENTS, Service
from qwen_service.wire import chat as wire
from qwen_service.wire.head import Usage, completion

ANSWERS: dict[int | str, dict[str, Any]] = {200: {"model": ChatCompletion, "content": EVENTS}}


def chat_routes(service: Service) -> APIRouter:
    router = APIRouter(responses=ANSWERS)

    @router.post("/v1/chat/completions", response_model=None)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        return await _answer(service, body, body.model, request)

    @router.post(
        "/v1/engines/{model:path}/chat/completions", response_model=None, include_in_schema=False
    )
    async def engine_chat_completions(
        model: str, body: NamelessChatRequest, request: Request
    ) -> Response:
        return await _answer(service, body, model, request)

    return router


async def _answer(service: Service, body: ChatRequest, model: str, request: Request) -> Response:
    service.require(model, "chat")
    with_usage = body.with_usage()
    head = service.head("chatcmpl", model)
    plan = chat.plan(body, service.settings, service.facts, head.id)
    is_legacy, with_logprobs = plan.reading.offer.is_legacy, bool(body.logprobs)
    headers = header_of(plan.ignored)
    reply = service.reply(request, plan.generations, plan.choices)

    def chunks() -> wire.Chunks:
        readers = [plan.reading.reader(it, as_they_come=True) for it in reply.opened]
        return wire.Chunks(head, readers, with_usage=with_usage, is_legacy=is_legacy)

    def choices() -> Sequence[wire.Choice]:
        readers = [plan.reading.reader(it, as_they_come=False) for it in reply.opened]
        return [wire.Choice(at, reader, is_legacy=is_legacy) for at, reader in enumerate(readers)]

    def render(grown: Sequence[wire.Choice], usage: Usage) -> Mapping[str, Any]:
        return completion(head, "chat.completion", grown, usage, with_logprobs=with_logprobs)

    try:
        if body.stream:
            return await service.stream(request, reply, chunks, headers)
        return await service.whole(request, reply, choices, render, headers)
    except ApiError as error:
        raise plan.blamed(error) from error
