"""What stands around every route: the gate, metrics, and what browsers of other origins may do."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from qwen_service.engine import Engine
from qwen_service.lifecycle.readiness import Readiness
from qwen_service.middleware.auth import Keys
from qwen_service.middleware.gate import Gate
from qwen_service.middleware.metrics import Metrics
from qwen_service.routes.metrics import metrics_routes
from qwen_service.settings import Settings


def install(
    app: FastAPI, settings: Settings, engine: Engine, readiness: Readiness, keys: Keys | None
) -> None:
    """To be called once all other routes are there; middleware added later stands further out."""
    metrics = Metrics(settings, engine, readiness)
    if settings.metrics != "off":
        app.include_router(metrics_routes(metrics))
    app.add_middleware(Gate, settings=settings, keys=keys, readiness=readiness, metrics=metrics)
    if settings.cors_origins:
        # Outside the gate: a browser asks without a key first, and wants to read refusals too.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[
                "x-request-id",
                "x-qwen-ignored",
                "openai-processing-ms",
                "retry-after",
            ],
        )
