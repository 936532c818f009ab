"""The inference thread over a model that computes nothing: queue, cancel, recovery, drain."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
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
    Piece,
    QueueFull,
    Refused,
    Report,
    Sampling,
    Started,
)
from qwen_service.inference import IDLE_TICK_SECONDS, Chosen, InferenceEngine, StepFailed

DEADLINE_SECONDS = 10
END = 0


class Letters:
    """Each row spells its prompt, one letter a step, two rows at most; steps wait for `gate`."""

    facts = ModelFacts(device="cpu", dtype="float32", context_tokens=100)
    ends = (END,)

    def __init__(self) -> None:
        self.rows: dict[str, list[int]] = {}
        self.new: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.is_stuck = False
        self.failures = 0

    def encode(self, prompt: Chat) -> list[int]:
        if not prompt.messages:
            raise Refused("no messages", param="messages")
        return [ord(letter) for letter in prompt.messages[-1]["content"]]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(chr(token) for token in tokens if token != END)

    def has_room(self) -> bool:
        return len(self.rows) < 2

    def add(self, key: str, prompt: Sequence[int], sampling: Sampling) -> None:
        self.rows[key] = [*prompt, END]
        self.new.append(key)

    def remove(self, key: str) -> None:
        self.rows.pop(key, None)

    def extend(self) -> list[Chosen]:
        running = [key for key in self.rows if key not in self.new]
        if running:
            self.is_stuck = not self.gate.is_set()
            self.gate.wait(DEADLINE_SECONDS)
        return [Chosen(key, self.next(key)) for key in running]

    def next(self, key: str) -> int | None:
        token = self.rows[key].pop(0)
        return None if token == ord("?") else token

    def prefill(self) -> list[Chosen]:
        if self.new and self.failures:
            self.failures -= 1
            lost, self.new = self.new, []
            raise StepFailed(lost, "out of memory")
        begun, self.new = self.new, []
        return [Chosen(key, self.next(key)) for key in begun if key in self.rows]

    def memory_bytes(self) -> int | None:
        return None


class Listener:
    """Collects the events of one generation."""

    def __init__(self) -> None:
        self.events: queue.Queue[Event] = queue.Queue()

    def next(self) -> Event:
        return self.events.get(timeout=DEADLINE_SECONDS)

    def answer(self) -> tuple[str, Event]:
        text = ""
        while not isinstance(event := self.next(), Finished | Failed):
            if isinstance(event, Piece):
                text += event.text
        return text, event


@contextmanager
def running(model: Letters, **limits: int) -> Iterator[tuple[InferenceEngine, queue.Queue[Report]]]:
    reports: queue.Queue[Report] = queue.Queue()

    def load(report: Callable[[Report], None]) -> Letters:
        return model

    engine = InferenceEngine(load, max_batch=2, **{"max_queue": 4, **limits})
    engine.start(reports.put)
    assert isinstance(reports.get(timeout=DEADLINE_SECONDS), Loaded)
    try:
        yield engine, reports
    finally:
        model.gate.set()
        engine.stop()


def ask(engine: InferenceEngine, text: str, name: str = "", **sampling: object) -> Listener:
    listener = Listener()
    prompt = Chat(({"role": "user", "content": text},))
    generation = Generation(name or text, prompt, Sampling(**sampling))  # type: ignore[arg-type]
    engine.submit(generation, listener.events.put)
    return listener


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_requests_beyond_the_batch_wait_and_are_all_answered() -> None:
    with running(Letters()) as (engine, _):
        asked = {text: ask(engine, text) for text in ("one", "two", "three", "four", "five")}
        for text, listener in asked.items():
            assert listener.answer() == (text, Finished("stop", len(text) + 1))
        eventually(lambda: engine.stats().running + engine.stats().waiting == 0)


def test_a_request_is_told_its_prompt_first() -> None:
    with running(Letters()) as (engine, _):
        assert ask(engine, "abc").next() == Started(3)


def test_a_full_queue_refuses() -> None:
    model = Letters()
    with running(model) as (engine, _):
        model.gate.clear()
        asked = [ask(engine, "x" * 5, f"g{index}") for index in range(6)]
        with pytest.raises(QueueFull):
            ask(engine, "one too many")
        model.gate.set()
        assert all(listener.answer()[0] == "xxxxx" for listener in asked)


def test_a_prompt_and_answer_beyond_the_context_are_refused() -> None:
    with running(Letters()) as (engine, _):
        for text, limit in (("x" * 100, None), ("x" * 90, 11)):
            failed = ask(engine, text, max_tokens=limit).answer()[1]
            assert isinstance(failed, Failed)
            assert isinstance(failed.error, Refused)
            assert failed.error.code == "context_length_exceeded"
        assert ask(engine, "x" * 90, max_tokens=10).answer()[1] == Finished("length", 10)


def test_a_refused_prompt_frees_its_place() -> None:
    with running(Letters()) as (engine, _):
        listener = Listener()
        engine.submit(Generation("none", Chat(())), listener.events.put)
        assert isinstance(listener.next(), Failed)
        eventually(lambda: engine.stats().waiting == 0)


@pytest.mark.parametrize("position", ["running", "waiting"])
def test_a_cancelled_request_frees_its_place_and_hears_nothing_more(position: str) -> None:
    model = Letters()
    with running(model) as (engine, _):
        model.gate.clear()
        first = ask(engine, "a" * 50, "first")
        eventually(lambda: engine.stats().running == 1)
        second = ask(engine, "b" * 50, "second")
        third = ask(engine, "ccc", "third")
        assert third.next() == Started(3)
        engine.cancel("first" if position == "running" else "third")
        model.gate.set()
        assert second.answer()[0] == "b" * 50
        eventually(lambda: engine.stats().running + engine.stats().waiting == 0)
        ended = first if position == "running" else third
        assert not any(isinstance(event, Finished) for event in ended.events.queue)
        assert "first" not in model.rows


def test_a_row_whose_numbers_make_no_sense_fails_alone() -> None:
    with running(Letters()) as (engine, _):
        sane, mad = ask(engine, "sane"), ask(engine, "ma?d")
        assert isinstance(mad.answer()[1], Failed)
        assert sane.answer()[0] == "sane"


def test_a_failed_step_fails_its_requests_and_the_engine_goes_on() -> None:
    model = Letters()
    model.failures = 2
    with running(model) as (engine, _):
        for _ in range(2):
            failed = ask(engine, "lost").answer()[1]
            assert isinstance(failed, Failed)
            assert type(failed.error) is EngineError
        assert ask(engine, "found").answer()[0] == "found"


def test_a_model_that_fails_again_and_again_is_broken() -> None:
    model = Letters()
    model.failures = 3
    with running(model) as (engine, reports):
        for _ in range(3):
            assert isinstance(ask(engine, "lost").answer()[1], Failed)
        report = reports.get(timeout=DEADLINE_SECONDS)
        assert isinstance(report, Broken)
        assert "out of memory" in report.reason
        eventually(lambda: refuses(engine))


def refuses(engine: InferenceEngine) -> bool:
    try:
        ask(engine, "late", f"late-{time.monotonic()}")
    except NotServing:
        return True
    return False


def test_a_drained_engine_ends_what_it_has_and_takes_no_more() -> None:
    model = Letters()
    with running(model) as (engine, _):
        model.gate.clear()
        asked = ask(engine, "almost")
        engine.drain()
        assert refuses(engine)
        model.gate.set()
        assert asked.answer()[0] == "almost"


def test_a_stopped_engine_fails_what_is_left() -> None:
    model = Letters()
    with running(model) as (engine, _):
        model.gate.clear()
        asked = ask(engine, "never")
        eventually(lambda: engine.stats().running == 1)
        engine.stop()
        model.gate.set()
        failed = asked.answer()[1]
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, NotServing)


def test_the_engine_ticks_while_idle_and_not_while_a_step_is_stuck() -> None:
    model = Letters()
    with running(model) as (engine, _):
        before = engine.stats().ticks
        eventually(lambda: engine.stats().ticks > before)
        model.gate.clear()
        ask(engine, "stuck")
        eventually(lambda: model.is_stuck)
        stuck = engine.stats().ticks
        deadline = time.monotonic() + 1.2 * IDLE_TICK_SECONDS
        while time.monotonic() < deadline:
            assert engine.stats().ticks == stuck
        model.gate.set()
        eventually(lambda: engine.stats().ticks > stuck)


def test_a_model_that_cannot_be_loaded_is_reported_with_its_cause() -> None:
    def load(report: Callable[[Report], None]) -> Letters:
        raise EngineError("cannot load the model from /m: config.json is missing")

    reports: queue.Queue[Report] = queue.Queue()
    InferenceEngine(load, max_batch=1, max_queue=1).start(reports.put)
    assert reports.get(timeout=DEADLINE_SECONDS) == Broken(
        "cannot load the model from /m: config.json is missing"
    )
