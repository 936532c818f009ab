"""Whether the process lives, whether it serves, and what it is.

Knows nothing of requests for answers.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from qwen_service import __version__
from qwen_service.protocol.answers import Health, State, Versions
from qwen_service.routes.service import Service


def state_routes(service: Service) -> APIRouter:
    router = APIRouter()
    settings, readiness = service.settings, service.readiness

    @router.get("/health", response_model=Health)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    unready = {"model": State, "description": "Not ready, for this reason"}

    @router.get("/ready", response_model=State, responses={503: unready})
    async def ready() -> JSONResponse:
        state = {"status": readiness.state, "release": settings.release}
        if readiness.state != "ready":
            state["reason"] = readiness.reason
            return JSONResponse(state, 503, {"retry-after": "5"})
        uptime = round(readiness.uptime_seconds, 1)
        return JSONResponse({**state, "model": settings.model_name, "uptime_seconds": uptime})

    @router.get("/version", response_model=Versions)
    async def versions() -> dict[str, str | None]:
        facts = readiness.facts
        return {
            "version": __version__,
            "release": settings.release,
            "model": settings.model_name,
            "revision": settings.model_revision,
            "engine": settings.engine,
            "device": facts.device if facts else settings.device,
            "dtype": facts.dtype if facts else settings.dtype,
            "torch": _installed("torch"),
            "transformers": _installed("transformers"),
        }

    return router


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
