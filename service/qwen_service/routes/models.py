"""The model that is served, under each of its names.

Knows nothing of the engine.
"""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter

from qwen_service.protocol.answers import ModelCard, ModelList
from qwen_service.routes.service import Service


def model_routes(service: Service) -> APIRouter:
    router = APIRouter()
    created = int(time.time())

    def card(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "qwen-deploy",
            "root": service.settings.model_name,
        }

    @router.get("/v1/models", response_model=ModelList)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card(name) for name in service.settings.model_names]}

    @router.get("/v1/models/{model:path}", response_model=ModelCard)
    async def one(model: str) -> dict[str, Any]:
        service.require_model(model)
        return card(model)

    return router
