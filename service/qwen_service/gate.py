"""What is decided before a request's body is read: its id, its key, whether the service is ready.

Also writes the one log line of each request. Knows neither routes nor the engine.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen_service.auth import Keys, bearer
from qwen_service.errors import ApiError
from qwen_service.readiness import Readiness

log = logging.getLogger("qwen_service")

REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class Gate:
    def __init__(
        self, app: ASGIApp, *, keys: Keys | None, readiness: Readiness, max_body_bytes: int
    ) -> None:
        self._app = app
        self._keys = keys
        self._readiness = readiness
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id(headers.get("x-request-id", ""))
        began = time.monotonic()

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                state["status"] = message["status"]
                marked = MutableHeaders(scope=message)
                marked["x-request-id"] = state["request_id"]
                if self._readiness.state == "draining":
                    # The next request of this client shall find the next process.
                    marked["connection"] = "close"
            await send(message)

        try:
            await self._answer(scope, headers)(scope, receive, send_marked)
        finally:
            if scope["path"].startswith("/v1/"):
                _log(scope, state, time.monotonic() - began)

    def _answer(self, scope: Scope, headers: Headers) -> ASGIApp:
        if not scope["path"].startswith("/v1/"):
            return self._app
        try:
            scope["state"]["key"] = self._key_name(headers)
            self._require_ready()
            self._require_small(headers)
        except ApiError as error:
            return error_response(error)
        return self._app

    def _key_name(self, headers: Headers) -> str:
        if self._keys is None:
            return "-"
        presented = bearer(headers.get("authorization", ""))
        if presented is None:
            reason = "an API key is needed: Authorization: Bearer KEY"
            raise ApiError(401, reason, code="missing_api_key")
        name = self._keys.name_of(presented)
        if name is None:
            raise ApiError(401, "the API key is not known here", code="invalid_api_key")
        return name

    def _require_ready(self) -> None:
        if self._readiness.state != "ready":
            reason = f"the service is not ready: {self._readiness.reason}"
            raise ApiError(503, reason, code="not_ready", retry_after_seconds=5)

    def _require_small(self, headers: Headers) -> None:
        # A body without a length is measured by the application while it comes in.
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_body_bytes:
            reason = f"the body should be at most {self._max_body_bytes} bytes"
            raise ApiError(413, reason, code="request_too_large")


def request_id(wish: str) -> str:
    return wish if REQUEST_ID.fullmatch(wish) else uuid.uuid4().hex


def error_response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.envelope(), error.status, error.headers())


def _log(scope: Scope, state: dict[str, Any], seconds: float) -> None:
    tokens_in, tokens_out = state.get("tokens", (0, 0))
    log.info(
        "%s %s %s%s id=%s key=%s tokens=%d+%d seconds=%.3f",
        scope["method"],
        scope["path"].encode("ascii", "backslashreplace").decode(),
        state.get("status", "-"),
        " client left" if state.get("client_left") else "",
        state["request_id"],
        state.get("key", "-"),
        tokens_in,
        tokens_out,
        seconds,
    )
