"""Answers that notice when their reader goes away.

Knows nothing of what is answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from qwen_service.reply import Reply

Result = TypeVar("Result")


class ClientLeft(Exception):
    """The client closed the connection before it had its answer."""


async def unless_client_leaves(request: Request, work: Coroutine[None, None, Result]) -> Result:
    """Awaits the work, or drops it and raises `ClientLeft` once nobody waits for it."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events of one reply, which is closed however the stream ends."""

    def __init__(self, events: AsyncIterator[str], reply: Reply) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            scope["state"]["client_left"] = self._reply.is_open
            scope["state"]["tokens"] = (self._reply.prompt_tokens, self._reply.completion_tokens)
            self._reply.close()
