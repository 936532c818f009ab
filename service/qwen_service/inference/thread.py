"""An engine around one model: the inference thread, its batch's turns, recovery and drain.

Knows neither HTTP nor torch: a `Model` does the computing and is called from one thread only.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from qwen_service.engine import (
    Broken,
    Embedded,
    Embedding,
    EngineError,
    Event,
    Failed,
    Finished,
    Generation,
    Loaded,
    NotServing,
    Prompt,
    Report,
    Stats,
)
from qwen_service.inference.desk import Desk
from qwen_service.inference.model import Chosen, Model, StepFailed, Vector
from qwen_service.inference.request import Request, prepare

log = logging.getLogger("qwen_service")

# A model that fails this often in a row, with nothing done in between, is past recovery.
MOST_FAILURES = 3


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
        self._max_tokens_default = max_tokens_default
        self._model: Model | None = None
        self._report: Callable[[Report], None] = lambda report: None
        self._desk = Desk(max_batch + max_queue)
        # Those that have a row; only the inference thread touches it.
        self._running: dict[str, Request] = {}
        self._tokens = 0
        self._ticks = 0
        self._failures = 0
        # Prompts are read beside the inference thread: a long one must not hold up the others.
        self._reader = ThreadPoolExecutor(1, "qwen-prompts")
        self._slow_reader = ThreadPoolExecutor(1, "qwen-grammars")

    def start(self, report: Callable[[Report], None]) -> None:
        self._report = report
        threading.Thread(target=self._run, name="qwen-inference", daemon=True).start()

    def submit(self, generation: Generation | Embedding, deliver: Callable[[Event], None]) -> None:
        request = self._desk.accept(generation, deliver)
        reader = self._slow_reader if request.is_slow_to_read else self._reader
        reader.submit(self._read, request)

    def cancel(self, generation_id: str) -> None:
        self._desk.cancel(generation_id)

    def encode(self, prompt: Prompt) -> Sequence[int]:
        return self._loaded().encode(prompt).tokens

    def decode(self, tokens: Sequence[int]) -> str:
        return self._loaded().decode(tokens, with_control=True)

    def drain(self) -> None:
        self._desk.close()

    def stop(self) -> None:
        self._desk.stop()

    def stats(self) -> Stats:
        model = self._model
        running = len(self._running)
        return Stats(
            running=running,
            waiting=max(0, len(self._desk) - running),
            tokens=self._tokens,
            ticks=self._ticks,
            memory_bytes=model.memory_bytes() if model else None,
            kv_tokens=model.kv_tokens() if model else 0,
        )

    def _loaded(self) -> Model:
        if self._model is None:
            raise NotServing("the model is not loaded")
        return self._model

    def _read(self, request: Request) -> None:
        if request.is_cancelled:
            return
        try:
            prepare(request, self._loaded(), self._max_tokens_default)
        except EngineError as error:
            self._fail(request, error)
        except Exception:
            log.exception("the prompt of %s could not be read", request.id)
            self._fail(request, EngineError("the prompt could not be read"))
        else:
            self._desk.queue(request)

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
        self._desk.open()
        self._report(Loaded(model.facts))
        try:
            while self._desk.wait(self._tick, is_busy=bool(self._running)):
                self._turn(model)
        except Exception as error:
            log.exception("the engine stopped")
            self._report(Broken(f"the engine stopped: {error}"))
        self.drain()
        for request in self._desk.all():
            self._fail(request, NotServing("the service stopped"))

    def _tick(self) -> None:
        self._ticks += 1

    def _turn(self, model: Model) -> None:
        for key in self._desk.leaving():
            # It may have ended between the wish and now.
            if self._running.pop(key, None):
                model.remove(key)
        while not model.fits():
            self._preempt(model)
        self._admit(model)
        for step in (model.extend, model.extend_alone, model.prefill):
            self._step(model, step)
            self._tick()

    def _preempt(self, model: Model) -> None:
        """The youngest gives its memory back and goes on from its tokens, first of the queue."""
        request = max(self._running.values(), key=lambda request: request.number)
        model.remove(request.id)
        del self._running[request.id]
        self._desk.put_back(request)

    def _admit(self, model: Model) -> None:
        while request := self._desk.next(lambda request: model.has_room(len(request.tokens))):
            self._running[request.id] = request
            try:
                model.add(request.id, request.tokens, request.sampler)
            except Exception:
                log.exception("%s could not be taken into the batch", request.id)
                self._lose(model, [request.id])

    def _step(self, model: Model, step: Callable[[], Sequence[Chosen | Vector]]) -> None:
        try:
            results = step()
        except StepFailed as failure:
            log.error("a step failed, %d requests lost", len(failure.keys), exc_info=failure)
            self._lose(model, failure.keys)
            self._failures += 1
            if self._failures >= MOST_FAILURES:
                raise EngineError(f"{self._failures} steps in a row failed: {failure}") from failure
            return
        for result in results:
            self._failures = 0
            if isinstance(result, Vector):
                self._end(model, self._running[result.key], Embedded(result.values))
            else:
                self._accept(model, result)

    def _accept(self, model: Model, choice: Chosen) -> None:
        request = self._running[choice.key]
        if choice.refusal is not None:
            self._end(model, request, Failed(choice.refusal))
            return
        if choice.token is None or request.answer is None:
            log.error("%s: the model's output is not a number", choice.key)
            self._lose(model, [choice.key])
            return
        self._tokens += 1
        request.tokens.append(choice.token)
        for event in request.answer.accept(choice):
            if isinstance(event, Finished):
                self._end(model, request, event)
            else:
                request.tell(event)

    def _lose(self, model: Model, keys: Sequence[str]) -> None:
        for key in keys:
            failed = Failed(EngineError("the model failed while it answered"))
            self._end(model, self._running[key], failed)

    def _end(self, model: Model, request: Request, event: Event) -> None:
        model.remove(request.id)
        del self._running[request.id]
        self._desk.forget(request)
        request.tell(event)

    def _fail(self, request: Request, error: EngineError) -> None:
        self._desk.forget(request)
        request.tell(Failed(error))
        # Its prompt may still be being read.
        request.is_cancelled = True
