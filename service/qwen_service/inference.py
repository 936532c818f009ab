"""An engine around one model: admission queue, the inference thread, cancel, drain, recovery.

Knows neither HTTP nor torch: a `Model` does the computing and is called from one thread only.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from qwen_service.answer import Answer
from qwen_service.engine import (
    Broken,
    Chat,
    EngineError,
    Event,
    Failed,
    Finished,
    Generation,
    Loaded,
    ModelFacts,
    NotServing,
    QueueFull,
    Refused,
    Report,
    Sampling,
    Started,
    Stats,
)

log = logging.getLogger("qwen_service")

IDLE_TICK_SECONDS = 0.5
# A model that fails this often in a row, with nothing done in between, is past recovery.
MOST_FAILURES = 3


class StepFailed(Exception):
    """A step of the model broke; these rows are lost, the model is fit for the next step."""

    def __init__(self, keys: Sequence[str], reason: str) -> None:
        super().__init__(reason)
        self.keys = keys


@dataclass(frozen=True, slots=True)
class Chosen:
    """The next token of a row; None where its numbers made no sense any more."""

    key: str
    token: int | None


class Model(Protocol):
    """Rows of tokens that grow by one token a step; rows come and go between steps."""

    @property
    def facts(self) -> ModelFacts: ...

    @property
    def ends(self) -> Collection[int]: ...

    def encode(self, prompt: Chat) -> list[int]:
        """Safe beside all other calls; raises `Refused`."""

    def decode(self, tokens: Sequence[int]) -> str: ...

    def has_room(self) -> bool: ...

    def add(self, key: str, prompt: Sequence[int], sampling: Sampling) -> None: ...

    def remove(self, key: str) -> None: ...

    def extend(self) -> Sequence[Chosen]:
        """One token more for every row that has begun; raises `StepFailed`."""

    def prefill(self) -> Sequence[Chosen]:
        """A bounded part of the prompts that have not; raises `StepFailed`."""

    def memory_bytes(self) -> int | None: ...


@dataclass(slots=True)
class _Request:
    generation: Generation
    deliver: Callable[[Event], None]
    answer: Answer | None = None
    prompt: Sequence[int] = ()
    cancelled: bool = False

    def tell(self, event: Event) -> None:
        if not self.cancelled:
            self.deliver(event)


class InferenceEngine:
    def __init__(
        self,
        load: Callable[[Callable[[Report], None]], Model],
        *,
        max_batch: int,
        max_queue: int,
        max_tokens_default: int | None = None,
    ) -> None:
        self._load = load
        self._most = max_batch + max_queue
        self._max_tokens_default = max_tokens_default
        self._model: Model | None = None
        self._report: Callable[[Report], None] = lambda report: None
        self._changed = threading.Condition()
        # All requests by id; those that wait for a row; those that have one.
        self._requests: dict[str, _Request] = {}
        self._waiting: deque[str] = deque()
        self._running: dict[str, _Request] = {}
        self._leaving: list[str] = []
        self._accepts = False
        self._stopping = False
        self._tokens = 0
        self._ticks = 0
        self._failures = 0
        # Prompts are read beside the inference thread: a long one must not hold up the others.
        self._reader = ThreadPoolExecutor(1, "qwen-prompts")

    def start(self, report: Callable[[Report], None]) -> None:
        self._report = report
        threading.Thread(target=self._run, name="qwen-inference", daemon=True).start()

    def submit(self, generation: Generation, deliver: Callable[[Event], None]) -> None:
        with self._changed:
            if not self._accepts:
                raise NotServing("the engine takes no requests")
            if len(self._requests) >= self._most:
                raise QueueFull(f"{len(self._requests)} requests are running or waiting")
            request = _Request(generation, deliver)
            self._requests[generation.id] = request
        self._reader.submit(self._read_prompt, request)

    def cancel(self, generation_id: str) -> None:
        with self._changed:
            request = self._requests.pop(generation_id, None)
            if request is None:
                return
            request.cancelled = True
            if generation_id in self._running:
                self._leaving.append(generation_id)
                self._changed.notify()
            elif generation_id in self._waiting:
                self._waiting.remove(generation_id)

    def drain(self) -> None:
        with self._changed:
            self._accepts = False

    def stop(self) -> None:
        with self._changed:
            self._accepts = False
            self._stopping = True
            self._changed.notify()

    def stats(self) -> Stats:
        model = self._model
        running = len(self._running)
        return Stats(
            running=running,
            waiting=len(self._requests) - running,
            tokens=self._tokens,
            ticks=self._ticks,
            memory_bytes=model.memory_bytes() if model else None,
        )

    def _read_prompt(self, request: _Request) -> None:
        try:
            self._prepare(request)
        except EngineError as error:
            self._fail(request, error)
        except Exception:
            log.exception("the prompt of %s could not be read", request.generation.id)
            self._fail(request, EngineError("the prompt could not be read"))
        else:
            with self._changed:
                if not request.cancelled:
                    self._waiting.append(request.generation.id)
                    self._changed.notify()

    def _prepare(self, request: _Request) -> None:
        assert self._model is not None
        generation = request.generation
        request.prompt = self._model.encode(generation.prompt)
        room = self._model.facts.context_tokens - len(request.prompt)
        wanted = generation.sampling.max_tokens or min(self._max_tokens_default or room, room)
        wanted = max(wanted, 1)
        if room < wanted:
            raise _too_long(self._model.facts.context_tokens, len(request.prompt), wanted)
        request.answer = Answer(
            self._model.decode,
            ends=self._model.ends,
            stops=generation.sampling.stop,
            limit=wanted,
        )
        request.tell(Started(len(request.prompt)))

    def _run(self) -> None:
        try:
            model = self._load(self._report)
        except EngineError as error:
            self._report(Broken(str(error)))
            return
        except Exception as error:
            log.exception("the model could not be loaded")
            self._report(Broken(f"{type(error).__name__}: {error}"))
            return
        self._model = model
        self._accepts = True
        self._report(Loaded(model.facts))
        try:
            while self._wait_for_work():
                self._turn(model)
        except Exception as error:
            log.exception("the engine stopped")
            self._report(Broken(f"the engine stopped: {error}"))
        self.drain()
        for request in list(self._requests.values()):
            self._fail(request, NotServing("the service stopped"))

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not (self._waiting or self._running or self._stopping):
                self._ticks += 1
                self._changed.wait(IDLE_TICK_SECONDS)
            return not self._stopping

    def _turn(self, model: Model) -> None:
        self._remove_cancelled(model)
        self._admit(model)
        for step in (model.extend, model.prefill):
            self._step(model, step)
            self._ticks += 1

    def _remove_cancelled(self, model: Model) -> None:
        with self._changed:
            leaving, self._leaving = self._leaving, []
        for key in leaving:
            # It may have ended between the wish and now.
            if key in self._running:
                self._forget(model, key)

    def _admit(self, model: Model) -> None:
        while model.has_room():
            with self._changed:
                if not self._waiting:
                    return
                key = self._waiting.popleft()
                request = self._running[key] = self._requests[key]
            try:
                model.add(key, request.prompt, request.generation.sampling)
            except Exception:
                log.exception("%s could not be taken into the batch", key)
                self._lose(model, [key])

    def _step(self, model: Model, step: Callable[[], Sequence[Chosen]]) -> None:
        try:
            chosen = step()
        except StepFailed as failure:
            log.error("a step failed, %d requests lost", len(failure.keys), exc_info=failure)
            self._lose(model, failure.keys)
            self._failures += 1
            if self._failures >= MOST_FAILURES:
                raise EngineError(f"{self._failures} steps in a row failed: {failure}") from failure
            return
        for choice in chosen:
            self._failures = 0
            self._accept(model, choice)

    def _accept(self, model: Model, choice: Chosen) -> None:
        request = self._running[choice.key]
        if choice.token is None or request.answer is None:
            log.error("%s: the model's output is not a number", choice.key)
            self._lose(model, [choice.key])
            return
        self._tokens += 1
        for event in request.answer.accept(choice.token):
            if isinstance(event, Finished):
                self._forget(model, choice.key)
            request.tell(event)

    def _lose(self, model: Model, keys: Sequence[str]) -> None:
        for key in keys:
            request = self._running[key]
            self._forget(model, key)
            request.tell(Failed(EngineError("the model failed while it answered")))

    def _forget(self, model: Model, key: str) -> None:
        model.remove(key)
        with self._changed:
            self._running.pop(key, None)
            self._requests.pop(key, None)

    def _fail(self, request: _Request, error: EngineError) -> None:
        with self._changed:
            self._requests.pop(request.generation.id, None)
            self._running.pop(request.generation.id, None)
        request.tell(Failed(error))


def _too_long(context: int, prompt: int, wanted: int) -> Refused:
    return Refused(
        f"This model's maximum context length is {context} tokens. However, you requested "
        f"{prompt + wanted} tokens ({prompt} in the messages, {wanted} in the completion). "
        "Please reduce the length of the messages or completion.",
        param="messages",
        code="context_length_exceeded",
    )
