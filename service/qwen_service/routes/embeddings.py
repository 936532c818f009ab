"""POST /v1/embeddings, where the model is one for embeddings.

Knows nothing of models.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from qwen_service.engine import Embedded, Embedding, Text, Tokens
from qwen_service.protocol.base import header_of, wrong
from qwen_service.protocol.completions import prompts
from qwen_service.protocol.embeddings import EmbeddingList, EmbeddingRequest
from qwen_service.routes.body import JudgedRoute
from qwen_service.routes.service import Service
from qwen_service.streams import unless_client_leaves

# As many of one request are in the engine at a time, so that others find room beside them.
AT_ONCE = 8


def embedding_routes(service: Service) -> APIRouter:
    router = APIRouter(route_class=JudgedRoute)

    @router.post("/v1/embeddings", response_model=EmbeddingList)
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        service.require(body.model, "embedding")
        ignored = body.ignored()
        return await unless_client_leaves(request, _answer(service, body, request, ignored))

    return router


async def _answer(
    service: Service, body: EmbeddingRequest, request: Request, ignored: tuple[str, ...]
) -> Response:
    id = service.head("embd", body.model).id
    asked = [
        Embedding(f"{id}-{index}", prompt)
        for index, prompt in enumerate(prompts(body.input))
        if isinstance(prompt, Text | Tokens)
    ]
    vectors: list[tuple[float, ...]] = []
    tokens = 0
    for begin in range(0, len(asked), AT_ONCE):
        some, some_tokens = await _some(service, request, asked[begin : begin + AT_ONCE])
        vectors += some
        tokens += some_tokens
    answer = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _written(vector, body)}
            for index, vector in enumerate(vectors)
        ],
        "model": body.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return JSONResponse(answer, headers=header_of(ignored))


async def _some(
    service: Service, request: Request, asked: Sequence[Embedding]
) -> tuple[list[tuple[float, ...]], int]:
    reply = service.reply(request, asked)
    vectors: dict[int, tuple[float, ...]] = {}
    try:
        async for arrivals in reply.arrivals():
            vectors |= {index: it.vector for index, it in arrivals if isinstance(it, Embedded)}
    finally:
        reply.close()
    return [vectors[index] for index in range(len(asked))], reply.prompt_tokens


def _written(vector: Sequence[float], body: EmbeddingRequest) -> Any:
    if body.dimensions is not None and body.dimensions != len(vector):
        raise wrong("dimensions", f"should be {len(vector)}: the model has no shorter vectors")
    if body.encoding_format == "base64":
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    return list(vector)
