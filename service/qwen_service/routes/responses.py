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
from qwen_service.routes.body import JudgedRoute, beside
from qwen_service.routes.service import EVENTS, Form, Service
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
    router = APIRouter(responses=ANSWERS, route_class=JudgedRoute)

    @router.post("/v1/responses", response_model=None)
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        try:
            return await _answer(service, body, request)
        except ApiError as error:
            raise converse.renamed(error) from error

    return router


async def _answer(service: Service, body: ResponsesRequest, request: Request) -> Response:
    service.require(body.model, "chat")
    head = service.head("resp", body.model)
    head = replace(head, id=head.id.replace("-", "_"))

    def planned() -> tuple[tuple[str, ...], chat.Plan]:
        ignored = body.ignored()
        asked = converse.chat_request(body)
        return ignored, chat.plan(asked, service.settings, service.facts, head.id)

    ignored, plan = await beside(request, planned)

    def answers(opened: Sequence[str]) -> Sequence[wire.Answer]:
        return [wire.Answer(head, body, plan.reading.reader(it)) for it in opened]

    def events(opened: Sequence[str]) -> wire.Events:
        return wire.Events(*answers(opened))

    def render(grown: Sequence[wire.Answer], usage: Usage) -> Mapping[str, Any]:
        return grown[0].render(usage)

    headers = header_of(ignored + plan.ignored)
    form = Form(bool(body.stream), headers, events, answers, render)
    return await service.answer(request, plan.generations, form)
