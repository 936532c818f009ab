"""The HTTP surface: `create_app(settings, engine, readiness)`, its routes and error mapping.

Knows neither torch nor how prompts are built.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncIterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from qwen_service import __version__, chat
from qwen_service.auth import Keys
from qwen_service.engine import Engine, Piece
from qwen_service.errors import ApiError
from qwen_service.gate import Gate, error_response
from qwen_service.protocol import ChatRequest, invalid
from qwen_service.readiness import Readiness
from qwen_service.reply import Reply
from qwen_service.responses import ClientLeft, EventStream, unless_client_leaves
from qwen_service.settings import Settings

log = logging.getLogger("qwen_service")

CODES = {404: "unknown_url", 405: "method_not_allowed", 413: "request_too_large"}


def create_app(settings: Settings, engine: Engine, readiness: Readiness) -> FastAPI:
    app = FastAPI(
        title="qwen-service",
        version=__version__,
        docs_url=None,
        redoc_url=None,
    )
    _add_state_routes(app, settings, readiness)
    _add_model_routes(app, settings)
    _add_chat_route(app, settings, engine)
    _add_error_mapping(app)
    keys = Keys(settings.keys_file) if settings.keys_file else None
    app.add_middleware(Gate, keys=keys, readiness=readiness, max_body_bytes=settings.max_body_bytes)
    return app


def _add_state_routes(app: FastAPI, settings: Settings, readiness: Readiness) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        state = {"status": readiness.state, "release": settings.release}
        if readiness.state != "ready":
            state["reason"] = readiness.reason
            return JSONResponse(state, 503, {"retry-after": "5"})
        uptime = round(readiness.uptime_seconds, 1)
        return JSONResponse({**state, "model": settings.model_name, "uptime_seconds": uptime})

    @app.get("/version")
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


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _add_model_routes(app: FastAPI, settings: Settings) -> None:
    created = int(time.time())

    def card(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "qwen-deploy",
            "root": settings.model_name,
        }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card(name) for name in settings.model_names]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        _require_model(settings, name)
        return card(name)


def _require_model(settings: Settings, name: str) -> None:
    if name not in settings.model_names:
        known = ", ".join(settings.model_names)
        reason = f"The model `{name}` does not exist; this service has {known}"
        raise ApiError(404, reason, param="model", code="model_not_found")


def _add_chat_route(app: FastAPI, settings: Settings, engine: Engine) -> None:
    @app.post("/v1/chat/completions", response_model=None, max_body_size=settings.max_body_bytes)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        _require_model(settings, body.model)
        identity = f"chatcmpl-{uuid.uuid4().hex}"
        head = chat.Head(identity, int(time.time()), body.model, settings.release)
        reply = Reply(engine, chat.generations(body, settings, identity))
        if not body.stream:
            return JSONResponse(await _whole(reply, head, body.n or 1, request))
        try:
            await unless_client_leaves(request, reply.started())
        except BaseException:
            reply.close()
            raise
        options = body.stream_options
        chunks = chat.Chunks(head, with_usage=bool(options and options.include_usage))
        return EventStream(_events(reply, chunks, body.n or 1), reply)


async def _whole(reply: Reply, head: chat.Head, count: int, request: Request) -> dict[str, Any]:
    choices = [chat.Choice() for _ in range(count)]

    async def collect() -> None:
        async for index, event in reply.events():
            if isinstance(event, Piece):
                choices[index].text += event.text
            else:
                choices[index].finish_reason = event.reason

    try:
        await unless_client_leaves(request, collect())
    finally:
        reply.close()
        request.state.tokens = (reply.prompt_tokens, reply.completion_tokens)
    return chat.completion(head, choices, chat.Usage(reply.prompt_tokens, reply.completion_tokens))


async def _events(reply: Reply, chunks: chat.Chunks, count: int) -> AsyncIterator[str]:
    for chunk in chunks.first(count):
        yield chunk
    try:
        async for index, event in reply.events():
            if isinstance(event, Piece):
                yield chunks.piece(index, event.text)
            else:
                yield chunks.last(index, event.reason)
    except ApiError as error:
        yield chat.failure(error)
        return
    for chunk in chunks.usage(chat.Usage(reply.prompt_tokens, reply.completion_tokens)):
        yield chunk
    yield chat.DONE


def _add_error_mapping(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid_request(request: Request, error: RequestValidationError) -> Response:
        return error_response(invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        what = f"{request.method} {request.url.path}: {error.detail}"
        return error_response(ApiError(error.status_code, what, code=CODES.get(error.status_code)))

    @app.exception_handler(ClientLeft)
    async def client_left(request: Request, error: ClientLeft) -> Response:
        # Nobody reads this; 499 is what nginx calls it in its log.
        request.state.client_left = True
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return error_response(ApiError(500, "the service made a mistake", code="internal_error"))
