"""The application: `create_app(settings, engine, readiness)`, its routes and error mapping.

Knows neither torch nor how prompts are built.
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from qwen_service import __version__, document, operation, webui
from qwen_service.engine import Engine
from qwen_service.errors import ApiError
from qwen_service.lifecycle.readiness import Readiness
from qwen_service.middleware.auth import Keys
from qwen_service.middleware.gate import error_response
from qwen_service.routes.chat import chat_routes
from qwen_service.routes.completions import completion_routes
from qwen_service.routes.embeddings import embedding_routes
from qwen_service.routes.models import model_routes
from qwen_service.routes.responses import response_routes
from qwen_service.routes.service import Service
from qwen_service.routes.state import state_routes
from qwen_service.routes.tokens import token_routes
from qwen_service.settings import Settings
from qwen_service.streams import ClientLeft

CODES = {404: "unknown_url", 405: "method_not_allowed", 413: "request_too_large"}
ROUTES = (
    state_routes,
    model_routes,
    chat_routes,
    completion_routes,
    embedding_routes,
    response_routes,
    token_routes,
)


def create_app(settings: Settings, engine: Engine, readiness: Readiness) -> FastAPI:
    app = FastAPI(
        title="qwen-service",
        version=__version__,
        docs_url=None,
        redoc_url=None,
    )
    service = Service(settings, engine, readiness)
    for routes in ROUTES:
        app.include_router(routes(service), max_body_size=settings.max_body_bytes)
    _add_error_mapping(app)
    document.install(app, settings)
    keys = Keys(settings.keys_file) if settings.keys_file else None
    if settings.web_ui:
        app.add_middleware(webui.Site, settings=settings, readiness=readiness, keys=keys)
    operation.install(app, settings, engine, readiness, keys)
    return app


def _add_error_mapping(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        what = f"{request.method} {request.url.path}: {error.detail}"
        code = CODES.get(error.status_code, "http_error")
        response = error_response(ApiError(error.status_code, what, code=code))
        # A method that is not allowed comes with those that are.
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(ClientLeft)
    async def client_left(request: Request, error: ClientLeft) -> Response:
        # Nobody reads this; 499 is what nginx calls it in its log.
        request.state.client_left = True
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return error_response(ApiError(500, "the service made a mistake", code="internal_error"))
