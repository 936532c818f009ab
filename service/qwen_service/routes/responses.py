"""POST /v1/responses: the newer form of chats, without a memory.

Knows nothing of prompts and formats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from qwen_service.conversion import chat
from qwen_service.conversion import responses as converse
from qwen_service.errors import ApiError
from qwen_service.protocol.base import header_of
from qwen_service.protocol.responses import ResponsesRequest
from qwen_service.routes.service import EVENTS, Service
from qwen_service.wire import responses as wire
from qwen_service.wire.head import Usage

ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The response, or its events",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["id", "object", "created_at", "status", "model", "output"],
                    "properties": {
                        "object": {"const": "response"},
                        "status": {"enum": ["completed", "incomplete"]},
                        "output": {"type": "array", "items": {"type": "object"}},
                    },
                }
            },
            **EVENTS,
        },
    },
}


def response_routes(service: Service) -> APIRouter:
    router = APIRouter(responses=ANSWERS)

    @router.post("/v1/responses", response_model=None)
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        try:
            return await _answer(service, body, request)
        except ApiError as error:
            raise converse.renamed(error) from error

    return router


async def _answer(service: Service, body: ResponsesRequest, request: Request) -> Response:
    service.require(body.model, "chat")
    ignored = body.ignored()
    head = service.head("resp", body.model)
    head = replace(head, id=head.id.replace("-", "_"))
    plan = chat.plan(converse.chat_request(body), service.settings, service.facts, head.id)
    reply = service.reply(request, plan.generations)
    headers = header_of(ignored + plan.ignored)

    def answer(*, as_they_come: bool) -> wire.Answer:
        reader = plan.reading.reader(reply.opened[0], as_they_come=as_they_come)
        return wire.Answer(head, body, reader)

    def render(grown: Sequence[wire.Answer], usage: Usage) -> Mapping[str, Any]:
        return grown[0].render(usage)

    def choices() -> Sequence[wire.Answer]:
        return [answer(as_they_come=False)]

    def events() -> wire.Events:
        return wire.Events(answer(as_they_come=True))

    try:
        if body.stream:
            return await service.stream(request, reply, events, headers)
        return await service.whole(request, reply, choices, render, headers)
    except ApiError as error:
        raise plan.blamed(error) from error
