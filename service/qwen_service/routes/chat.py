"""POST /v1/chat/completions, also under the path of older clients.

Knows nothing of prompts and formats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from qwen_service.conversion import chat
from qwen_service.protocol.answers import ChatCompletion
from qwen_service.protocol.base import header_of
from qwen_service.protocol.chat import ChatRequest, NamelessChatRequest
from qwen_service.routes.body import JudgedRoute, beside
from qwen_service.routes.service import EVENTS, Form, Service
from qwen_service.wire import chat as wire
from qwen_service.wire.head import Usage, completion

ANSWERS: dict[int | str, dict[str, Any]] = {200: {"model": ChatCompletion, "content": EVENTS}}


def chat_routes(service: Service) -> APIRouter:
    router = APIRouter(responses=ANSWERS, route_class=JudgedRoute)

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
    with_usage, with_logprobs = body.with_usage(), bool(body.logprobs)
    head = service.head("chatcmpl", model)
    plan = await beside(request, lambda: chat.plan(body, service.settings, service.facts, head.id))
    reading, is_legacy = plan.reading, plan.reading.offer.is_legacy

    def chunks(opened: Sequence[str]) -> wire.Chunks:
        readers = [reading.reader(it) for it in opened]
        return wire.Chunks(head, readers, with_usage=with_usage, is_legacy=is_legacy)

    def choices(opened: Sequence[str]) -> Sequence[wire.Choice]:
        return [
            wire.Choice(at, reading.reader(it), is_legacy=is_legacy) for at, it in enumerate(opened)
        ]

    def render(grown: Sequence[wire.Choice], usage: Usage) -> Mapping[str, Any]:
        return completion(head, "chat.completion", grown, usage, with_logprobs=with_logprobs)

    form = Form(bool(body.stream), header_of(plan.ignored), chunks, choices, render)
    return await service.answer(request, plan.generations, form, plan.choices)
