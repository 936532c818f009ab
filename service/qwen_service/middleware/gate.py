"""What is decided before a request's body is read: its id, its key and how often that may ask,
whether the service is ready, and how long the body may take.

Also measures each request and writes its log line. Knows neither routes nor the engine.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen_service.errors import ApiError
from qwen_service.lifecycle.readiness import Readiness
from qwen_service.middleware import logs
from qwen_service.middleware.auth import Keys, credentials
from qwen_service.middleware.limits import RateLimits
from qwen_service.middleware.metrics import NOBODY, Meter, Metrics
from qwen_service.settings import Settings

log = logging.getLogger("qwen_service")

REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
API = ("/v1/", "/tokenize", "/detokenize")
OTHER = "other"
NO_RESPONSE = 499  # what nginx calls a client that left before its answer


class Gate:
    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        keys: Keys | None,
        readiness: Readiness,
        metrics: Metrics,
    ) -> None:
        self._app = app
        self._settings = settings
        self._keys = keys
        self._readiness = readiness
        self._metrics = metrics
        # Paths that are routes, as far as requests have found them; for those that end here.
        self._paths: set[str] = set()
        self._limits = RateLimits()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id(headers.get("x-request-id", ""))
        logs.request_id.set(state["request_id"])
        is_api = scope["path"].startswith(API)
        meter = self._metrics.meter(lambda: self._route(scope), is_timed=is_api)
        state["meter"] = meter if is_api else None
        exchange = _Exchange(scope, receive, send, self._readiness, meter)
        try:
            try:
                self._check(scope, headers)
            except ApiError as error:
                await error_response(error)(scope, receive, exchange.send)
            else:
                await exchange.run(self._app, self._settings.body_seconds)
        finally:
            seconds = meter.close(state.get("status", NO_RESPONSE), state.get("key", NOBODY))
            if is_api:
                _log(scope, state, meter, seconds)

    def _route(self, scope: Scope) -> str:
        """Never a path as it was asked: there is no end to those."""
        path: str = scope["path"]
        template = getattr(scope.get("route"), "path_format", None)
        if template is None:
            return path if path in self._paths else OTHER
        if template == path:
            self._paths.add(path)
        return str(template)

    def _check(self, scope: Scope, headers: Headers) -> None:
        if len(headers) > self._settings.max_headers:
            reason = f"a request should have at most {self._settings.max_headers} headers"
            raise ApiError(431, reason, code="too_many_headers")
        if "content-length" in headers and "transfer-encoding" in headers:
            # A proxy in front may see another end of the body (RFC 9112, 6.1).
            scope["state"]["is_over"] = True
            raise ApiError(400, "the length of the body is given twice", code="bad_http")
        if scope["path"] == "/metrics" and self._settings.metrics == "key":
            self._admit(scope, headers)
        if not scope["path"].startswith(API):
            return
        self._admit(scope, headers)
        self._require_ready()
        if scope["state"].get("is_crowded"):
            reason = "the service has too many open connections"
            raise ApiError(503, reason, code="too_many_connections", retry_after_seconds=1)
        self._require_small(headers)

    def _admit(self, scope: Scope, headers: Headers) -> None:
        if self._keys is None:
            scope["state"]["key"] = NOBODY
            return
        presented = credentials(headers.get("authorization", ""), basic=self._settings.basic_auth)
        if presented is None:
            reason = "an API key is needed: Authorization: Bearer KEY"
            raise ApiError(401, reason, code="missing_api_key")
        key = self._keys.find(presented)
        if key is None:
            raise ApiError(401, "the API key is not known here", code="invalid_api_key")
        scope["state"]["key"] = key.name
        wait = self._limits.take(key)
        if wait > 0:
            reason = f"the key `{key.name}` may make {key.requests_per_minute} requests a minute"
            seconds = math.ceil(wait)
            raise ApiError(429, reason, code="rate_limit_exceeded", retry_after_seconds=seconds)

    def _require_ready(self) -> None:
        if self._readiness.state != "ready":
            reason = f"the service is not ready: {self._readiness.reason}"
            raise ApiError(503, reason, code="not_ready", retry_after_seconds=5)

    def _require_small(self, headers: Headers) -> None:
        # A body without a length is measured by the application while it comes in.
        length = headers.get("content-length", "0")
        most = self._settings.max_body_bytes
        if length.isdecimal() and (len(length) > 18 or int(length) > most):
            raise ApiError(
                413, f"the body should be at most {most} bytes", code="request_too_large"
            )


class _Exchange:
    """One request and its answer on their way through the gate."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, readiness: Readiness, meter: Meter
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._readiness = readiness
        self._meter = meter
        self._deadline: float | None = None
        self._is_late = False
        self._has_begun = False

    async def run(self, app: ASGIApp, body_seconds: float) -> None:
        self._deadline = asyncio.get_running_loop().time() + body_seconds
        try:
            await app(self._scope, self.receive, self.send)
        except Exception:
            # The application takes a body that does not come for a client that left.
            if not self._is_late or self._has_begun:
                raise
        if self._is_late and not self._has_begun:
            self._is_late = False
            reason = f"the body did not arrive within {body_seconds:.0f} s"
            response = error_response(ApiError(408, reason, code="request_timeout"))
            response.headers["connection"] = "close"
            await response(self._scope, self._receive, self.send)

    async def receive(self) -> Message:
        if self._deadline is None:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            self._is_late = True
            return {"type": "http.disconnect"}
        if message["type"] != "http.request" or not message.get("more_body"):
            self._deadline = None
        return message

    async def send(self, message: Message) -> None:
        if self._is_late and not self._has_begun:
            return
        if message["type"] == "http.response.start":
            self._has_begun = True
            state = self._scope["state"]
            state["status"] = message["status"]
            self._mark(MutableHeaders(scope=message))
        await self._send(message)

    def _mark(self, headers: MutableHeaders) -> None:
        state = self._scope["state"]
        headers["x-request-id"] = state["request_id"]
        if state.get("meter") and not headers.get("content-type", "").startswith("text/event"):
            headers["openai-processing-ms"] = str(round(self._meter.seconds * 1000))
        is_over = state.get("is_crowded") or state.get("is_over")
        if self._readiness.state == "draining" or is_over:
            # The next request of this client shall find the next process, or a free place.
            headers["connection"] = "close"


def request_id(wish: str) -> str:
    return wish if REQUEST_ID.fullmatch(wish) else uuid.uuid4().hex


def error_response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.envelope(), error.status, error.headers())


def _log(scope: Scope, state: dict[str, Any], meter: Meter, seconds: float) -> None:
    prompt_tokens, completion_tokens = meter.tokens
    fields = {
        "request": scope["method"],
        "path": scope["path"][:200],
        "status": state.get("status", "-"),
        "outcome": "client left" if state.get("client_left") else None,
        "id": state["request_id"],
        "key": state.get("key", NOBODY),
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "first_token_seconds": meter.first_token_seconds,
        "seconds": seconds,
    }
    log.info("%s", logs.logfmt(fields))
