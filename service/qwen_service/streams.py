"""Answers that notice when their reader goes away.

Knows nothing of what is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwen_service.engine import Finished, Piece
from qwen_service.errors import ApiError
from qwen_service.reply import Reply
from qwen_service.wire.events import KEEP_ALIVE
from qwen_service.wire.head import Usage

Result = TypeVar("Result")
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class ClientLeft(Exception):
    """The client closed the connection before it had its answer."""


class Chunks(Protocol):
    """Renders one stream."""

    def first(self) -> str: ...

    def add(self, index: int, arrival: Piece | Finished) -> str: ...

    def end(self, usage: Usage) -> str: ...

    def failure(self, error: ApiError) -> str: ...


async def unless_client_leaves(request: Request, work: Coroutine[None, None, Result]) -> Result:
    """Awaits the work, or drops it and raises `ClientLeft` once nobody waits for it."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events of one reply, which is closed however the stream ends.

    What has come since the last write goes out in one. A reader that is slow holds up nobody: its
    events wait in the reply.
    """

    def __init__(
        self,
        reply: Reply,
        chunks: Chunks,
        *,
        keep_alive_seconds: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(None, headers={**HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self.headers["content-type"] = "text/event-stream; charset=utf-8"
        self._reply = reply
        self._chunks = chunks
        self._keep_alive_seconds = keep_alive_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        leaving = asyncio.ensure_future(_disconnect(receive))
        leaving.add_done_callback(lambda left: self._leave(scope))
        try:
            start = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **start})
            await self._write(send)
        finally:
            leaving.cancel()
            self._reply.close()

    def _leave(self, scope: Scope) -> None:
        scope["state"]["client_left"] = self._reply.is_open
        self._reply.close()

    async def _write(self, send: Send) -> None:
        add = self._chunks.add
        if first := self._chunks.first():
            await _body(send, first, more=True)
        try:
            async for arrivals in self._reply.arrivals(self._keep_alive_seconds):
                # Nothing is embedded in a stream.
                text = "".join([add(index, it) for index, it in arrivals])  # type: ignore[arg-type]
                if text or not arrivals:
                    await _body(send, text or KEEP_ALIVE, more=True)
        except ApiError as error:
            await _body(send, self._chunks.failure(error), more=False)
            return
        usage = Usage(self._reply.prompt_tokens, self._reply.completion_tokens)
        await _body(send, self._chunks.end(usage), more=False)


async def _body(send: Send, text: str, *, more: bool) -> None:
    # Half of a character cannot be sent.
    body = text.encode("utf-8", "replace")
    await send({"type": "http.response.body", "body": body, "more_body": more})
