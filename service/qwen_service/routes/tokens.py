"""POST /tokenize and /detokenize.

Knows nothing of tokenizers.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from qwen_service.conversion import chat
from qwen_service.engine import EngineError, Prompt, Text
from qwen_service.protocol.base import header_of, not_supported, wrong
from qwen_service.protocol.chat import ChatRequest
from qwen_service.protocol.tokens import (
    Detokenized,
    DetokenizeRequest,
    Tokenized,
    TokenizeRequest,
)
from qwen_service.reply import as_api_error
from qwen_service.routes.body import JudgedRoute, beside
from qwen_service.routes.service import Service


def token_routes(service: Service) -> APIRouter:
    router = APIRouter(route_class=JudgedRoute)

    @router.post("/tokenize", response_model=Tokenized)
    async def tokenize(body: TokenizeRequest, request: Request) -> Response:
        if body.model is not None:
            service.require_model(body.model)
        prompt = await beside(request, lambda: _prompt(service, body))
        try:
            tokens = list(await run_in_threadpool(service.engine.encode, prompt))
            strings = await run_in_threadpool(_strings, service, body, tokens)
        except EngineError as error:
            raise as_api_error(error) from error
        answer = {
            "count": len(tokens),
            "max_model_len": service.facts.context_tokens,
            "tokens": tokens,
            "token_strs": strings,
        }
        return JSONResponse(answer, headers=header_of(tuple(body.unread())))

    @router.post("/detokenize", response_model=Detokenized)
    async def detokenize(body: DetokenizeRequest) -> Response:
        if body.model is not None:
            service.require_model(body.model)
        try:
            text = await run_in_threadpool(service.engine.decode, tuple(body.tokens))
        except EngineError as error:
            raise as_api_error(error) from error
        return JSONResponse({"prompt": text}, headers=header_of(tuple(body.unread())))

    return router


def _strings(service: Service, body: TokenizeRequest, tokens: list[int]) -> list[str] | None:
    if not body.return_token_strs:
        return None
    return [service.engine.decode((token,)) for token in tokens]


def _prompt(service: Service, body: TokenizeRequest) -> Prompt:
    if (body.prompt is None) == (body.messages is None):
        raise wrong("prompt", "either a prompt or messages should be given")
    if body.prompt is not None:
        return Text(body.prompt)
    if body.add_special_tokens:
        # The template writes all of them already.
        raise not_supported("add_special_tokens")
    fields: dict[str, Any] = {
        name: getattr(body, name)
        for name in ("messages", "tools", "continue_final_message", "chat_template_kwargs")
    }
    if body.add_generation_prompt is False and not body.continue_final_message:
        raise not_supported("add_generation_prompt")
    request = ChatRequest(model=service.settings.model_name, **fields)
    return chat.plan(request, service.settings, service.facts, "-").generations[0].prompt
