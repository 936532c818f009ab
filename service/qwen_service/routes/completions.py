"""POST /v1/completions, also under the path of older clients.

Knows nothing of tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from starlette.responses import Response

from qwen_service.conversion import generation
from qwen_service.engine import EngineError, Prompt, Text, Tokens
from qwen_service.protocol.answers import Completion
from qwen_service.protocol.base import header_of, wrong
from qwen_service.protocol.completions import (
    MAX_TOKENS,
    CompletionRequest,
    NamelessCompletionRequest,
    prompts,
)
from qwen_service.reply import as_api_error
from qwen_service.routes.body import JudgedRoute
from qwen_service.routes.service import EVENTS, Form, Service
from qwen_service.wire import completions as wire
from qwen_service.wire.head import Usage, completion

ANSWERS: dict[int | str, dict[str, Any]] = {200: {"model": Completion, "content": EVENTS}}


def completion_routes(service: Service) -> APIRouter:
    router = APIRouter(responses=ANSWERS, route_class=JudgedRoute)

    @router.post("/v1/completions", response_model=None)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await _answer(service, body, body.model, request)

    @router.post(
        "/v1/engines/{model:path}/completions", response_model=None, include_in_schema=False
    )
    async def engine_completions(
        model: str, body: NamelessCompletionRequest, request: Request
    ) -> Response:
        return await _answer(service, body, model, request)

    return router


async def _answer(
    service: Service, body: CompletionRequest, model: str, request: Request
) -> Response:
    service.require(model, "chat")
    ignored = body.ignored()
    body.check()
    with_usage, with_logprobs = body.with_usage(), body.logprobs is not None
    count = generation.choices(body, service.settings)
    asked = prompts(body.prompt)
    if len(asked) * count > service.settings.max_prompts:
        most = service.settings.max_prompts
        raise wrong("prompt", f"should lead to at most {most} answers, with n")
    sampling = generation.sampling(
        body, service.settings, max_tokens=body.max_tokens or MAX_TOKENS, logprobs=body.logprobs
    )
    head = service.head("cmpl", model)
    echoes = await _echoes(service, asked, count) if body.echo else [""] * len(asked) * count

    def chunks(opened: Sequence[str]) -> wire.Chunks:
        return wire.Chunks(head, echoes, with_usage=with_usage)

    def choices(opened: Sequence[str]) -> Sequence[wire.Choice]:
        return [wire.Choice(index, echo) for index, echo in enumerate(echoes)]

    def render(grown: Sequence[wire.Choice], usage: Usage) -> Mapping[str, Any]:
        return completion(head, "text_completion", grown, usage, with_logprobs=with_logprobs)

    form = Form(bool(body.stream), header_of(ignored), chunks, choices, render)
    generations = generation.generations(head.id, asked, sampling, count)
    return await service.answer(request, generations, form, count)


async def _echoes(service: Service, asked: Sequence[Prompt], count: int) -> list[str]:
    def text(prompt: Prompt) -> str:
        match prompt:
            case Text():
                return prompt.text
            case Tokens():
                return service.engine.decode(prompt.ids)
        raise AssertionError(prompt)

    try:
        texts = [await run_in_threadpool(text, prompt) for prompt in asked]
    except EngineError as error:
        refusal = as_api_error(error)
        refusal.param = refusal.param and "prompt"
        raise refusal from error
    return [text for text in texts for _ in range(count)]
