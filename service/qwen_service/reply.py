"""One request's generations as seen from the event loop: submitted, awaited, called off.

Carries events from the engine's threads into asyncio; knows nothing of their rendering.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence

from qwen_service.engine import (
    Engine,
    EngineError,
    Event,
    Failed,
    Finished,
    Generation,
    NotServing,
    Piece,
    QueueFull,
    Refused,
    Started,
)
from qwen_service.errors import ApiError


class Reply:
    """The answer to a request, one generation a choice; always close it."""

    def __init__(self, engine: Engine, generations: Sequence[Generation]) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        # As long as an answer at most: a reader may be slow, the engine does not wait for it.
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._open = {generation.id for generation in generations}
        self._ids = [generation.id for generation in generations]
        self._unread = len(generations)
        # What one choice has to say while the prompt of another is still being read.
        self._early: deque[tuple[int, Event]] = deque()
        self.prompt_tokens = 0
        self.completion_tokens = 0
        try:
            for index, generation in enumerate(generations):
                self._submit(index, generation)
        except EngineError as error:
            self.close()
            raise as_api_error(error) from error

    def _submit(self, index: int, generation: Generation) -> None:
        def deliver(event: Event) -> None:
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        self._engine.submit(generation, deliver)

    async def started(self) -> None:
        """Returns when every prompt was accepted, so that a refusal still has its status."""
        while self._unread:
            index, event = await self._events.get()
            if isinstance(event, Failed):
                raise as_api_error(event.error)
            if isinstance(event, Started):
                self._unread -= 1
                self.prompt_tokens = event.prompt_tokens
            else:
                self._early.append((index, event))

    async def events(self) -> AsyncIterator[tuple[int, Piece | Finished]]:
        """Pieces and ends of all choices as they come; raises what went wrong."""
        await self.started()
        while self._open:
            index, event = self._early.popleft() if self._early else await self._events.get()
            if isinstance(event, Failed):
                raise as_api_error(event.error)
            if isinstance(event, Finished):
                self._open.discard(self._ids[index])
                self.completion_tokens += event.completion_tokens
            if isinstance(event, Piece | Finished):
                yield index, event

    @property
    def is_open(self) -> bool:
        return bool(self._open)

    def close(self) -> None:
        for generation_id in self._open:
            self._engine.cancel(generation_id)
        self._open.clear()


def as_api_error(error: EngineError) -> ApiError:
    match error:
        case Refused():
            return ApiError(400, str(error), param=error.param, code=error.code)
        case QueueFull():
            reason = "the service is busy: " + str(error)
            return ApiError(429, reason, code="queue_full", retry_after_seconds=1)
        case NotServing():
            return ApiError(503, str(error), code="not_ready", retry_after_seconds=5)
        case _:
            return ApiError(500, str(error), code="engine_error")
