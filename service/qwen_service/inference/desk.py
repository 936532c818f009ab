"""Where requests stand between the threads: accepted, waiting for a row, wishing to leave.

Knows no model; every method may be called from any thread.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence

from qwen_service.engine import Embedding, Event, Generation, NotServing, QueueFull
from qwen_service.inference.request import Request

IDLE_TICK_SECONDS = 0.5


class Desk:
    def __init__(self, most: int) -> None:
        self._most = most
        self._changed = threading.Condition()
        # All requests by id; those that wait for a row; those to be taken out of theirs.
        self._requests: dict[str, Request] = {}
        self._waiting: deque[Request] = deque()
        self._leaving: list[str] = []
        self._is_open = False
        self._is_stopping = False
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._requests)

    def open(self) -> None:
        with self._changed:
            self._is_open = not self._is_stopping

    def close(self) -> None:
        with self._changed:
            self._is_open = False

    def stop(self) -> None:
        with self._changed:
            self._is_open = False
            self._is_stopping = True
            self._changed.notify()

    def accept(self, wish: Generation | Embedding, deliver: Callable[[Event], None]) -> Request:
        with self._changed:
            if not self._is_open:
                raise NotServing("the engine takes no requests")
            if len(self._requests) >= self._most:
                raise QueueFull(f"{len(self._requests)} requests are running or waiting")
            request = Request(wish, deliver, next(self._numbers))
            self._requests[wish.id] = request
            return request

    def queue(self, request: Request) -> None:
        with self._changed:
            if not request.is_cancelled:
                self._waiting.append(request)
                self._changed.notify()

    def put_back(self, request: Request) -> None:
        with self._changed:
            if not request.is_cancelled:
                self._waiting.appendleft(request)

    def next(self, may_begin: Callable[[Request], bool]) -> Request | None:
        """The first in the queue; who does not fit yet holds the others up and is not passed."""
        with self._changed:
            if self._waiting and may_begin(self._waiting[0]):
                return self._waiting.popleft()
            return None

    def cancel(self, key: str) -> None:
        with self._changed:
            request = self._requests.pop(key, None)
            if request is None:
                return
            request.is_cancelled = True
            if request in self._waiting:
                self._waiting.remove(request)
            else:
                self._leaving.append(key)
                self._changed.notify()

    def leaving(self) -> Sequence[str]:
        with self._changed:
            leaving, self._leaving = self._leaving, []
            return leaving

    def forget(self, request: Request) -> None:
        with self._changed:
            self._requests.pop(request.id, None)

    def all(self) -> Sequence[Request]:
        with self._changed:
            return tuple(self._requests.values())

    def wait(self, tick: Callable[[], None], *, is_busy: bool) -> bool:
        """Until there is work, ticking meanwhile; False once the engine is to stop."""
        with self._changed:
            while not (self._waiting or self._leaving or is_busy or self._is_stopping):
                tick()
                self._changed.wait(IDLE_TICK_SECONDS)
            return not self._is_stopping
