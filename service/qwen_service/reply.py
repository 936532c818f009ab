"""One request's generations as seen from the event loop: submitted, awaited, called off.

Carries events from the engine's threads into asyncio; knows nothing of their rendering.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

from qwen_service.engine import (
    Embedded,
    Embedding,
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

# Which choice, and what it said.
Arrival = tuple[int, Piece | Finished | Embedded]


class Meter(Protocol):
    def accepted(self, prompt_tokens: int) -> None: ...

    def token(self, index: int, at: float, count: int = 1) -> None: ...

    def ended(self, completion_tokens: int) -> None: ...


class Post:
    """Wakes replies of one event loop: one call of the loop for all that came meanwhile."""

    def __init__(self) -> None:
        self._rung: deque[Reply] = deque()
        self._is_called = False

    def ring(self, reply: Reply) -> None:
        """From any thread."""
        self._rung.append(reply)
        if not self._is_called:
            self._is_called = True
            # A loop that is closed has nobody left to wake.
            with contextlib.suppress(RuntimeError):
                reply.loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._is_called = False
        while self._rung:
            self._rung.popleft().wake()


POSTS: WeakKeyDictionary[asyncio.AbstractEventLoop, Post] = WeakKeyDictionary()


class Reply:
    """The answer to a request, `choices` generations for each prompt; always close it."""

    def __init__(
        self,
        engine: Engine,
        generations: Sequence[Generation | Embedding],
        meter: Meter | None = None,
        *,
        choices: int = 1,
    ) -> None:
        self._engine = engine
        self._meter = meter
        self._choices = choices
        self.loop = asyncio.get_running_loop()
        self._post = POSTS.setdefault(self.loop, Post())
        # As long as an answer at most: a reader may be slow, the engine does not wait for it.
        self._events: deque[tuple[int, float, Event]] = deque()
        self._is_rung = False
        self._is_quiet = False
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._open = {generation.id for generation in generations}
        self._ids = [generation.id for generation in generations]
        self._unread = len(generations)
        # What one choice has to say while the prompt of another is still being read.
        self._early: list[Arrival] = []
        # What each prompt's end has opened of the text that follows.
        self.opened = [""] * len(generations)
        self.prompt_tokens = 0
        self.completion_tokens = 0
        try:
            for index, generation in enumerate(generations):
                self._submit(index, generation)
        except EngineError as error:
            self.close()
            raise as_api_error(error) from error

    def _submit(self, index: int, generation: Generation | Embedding) -> None:
        events, clock = self._events, time.monotonic

        def deliver(event: Event) -> None:
            events.append((index, clock(), event))
            if not self._is_rung:
                self._is_rung = True
                self._post.ring(self)

        self._engine.submit(generation, deliver)

    def wake(self) -> None:
        self._is_rung = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def started(self) -> None:
        """Returns when every prompt was accepted, so that a refusal still has its status."""
        while self._unread:
            if not self._events:
                await self._woken()
            self._early += self._take()

    async def arrivals(self, quiet_seconds: float | None = None) -> AsyncIterator[list[Arrival]]:
        """All that has come since the last time; an empty list where nothing came for so long.

        Ends with the last choice, raises what went wrong.
        """
        await self.started()
        early, self._early = self._early, []
        if early:
            yield early
        if quiet_seconds is not None:
            self._look_for_quiet(None, quiet_seconds / 2)
        while self._open or self._events:
            if not self._events:
                await self._woken()
            arrivals = self._take()
            if arrivals or self._is_quiet:
                self._is_quiet = False
                yield arrivals

    def _woken(self) -> asyncio.Future[None]:
        self._waiter = self.loop.create_future()
        return self._waiter

    def _look_for_quiet(self, before: asyncio.Future[None] | None, seconds: float) -> None:
        """One timer a stream and not one a wait: whoever waits for the same twice hears nothing."""
        if before is not None and self._waiter is before and not before.done():
            self._is_quiet = True
            self.wake()
        self._timer = self.loop.call_later(seconds, self._look_for_quiet, self._waiter, seconds)

    def _take(self) -> list[Arrival]:
        """What has come and is to be told; a failure only after what came before it."""
        taken: list[Arrival] = []
        while self._events:
            index, at, event = self._events[0]
            if type(event) is Piece:
                if self._meter is not None:
                    self._meter.token(index, at)
                taken.append((index, event))
            elif isinstance(event, Failed):
                if taken:
                    break
                raise as_api_error(event.error)
            elif isinstance(event, Started):
                self._begin(index, event)
            elif isinstance(event, Finished | Embedded):
                self._end(index, event)
                taken.append((index, event))
            self._events.popleft()
        return taken

    def _begin(self, index: int, event: Started) -> None:
        self._unread -= 1
        self.opened[index] = event.opened
        if index % self._choices == 0:
            # Further choices share their prompt.
            self.prompt_tokens += event.prompt_tokens
            if self._meter is not None:
                self._meter.accepted(event.prompt_tokens)

    def _end(self, index: int, event: Finished | Embedded) -> None:
        self._open.discard(self._ids[index])
        tokens = event.completion_tokens if isinstance(event, Finished) else 0
        self.completion_tokens += tokens
        if self._meter is not None:
            self._meter.ended(self.completion_tokens)

    @property
    def is_open(self) -> bool:
        return bool(self._open)

    def close(self) -> None:
        """Whatever is not told by now is never told."""
        for generation_id in self._open:
            self._engine.cancel(generation_id)
        self._open.clear()
        self._events.clear()
        if self._timer is not None:
            self._timer.cancel()
        self.wake()


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
