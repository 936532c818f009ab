"""The inference thread over a model that computes nothing: queue, cancel, recovery, drain."""

from __future__ import annotations

import gc
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest
from qwen_service.engine import (
    Broken,
    Chat,
    Embedded,
    Embedding,
    EngineError,
    Event,
    Failed,
    Finished,
    Generation,
    Loaded,
    ModelFacts,
    NotServing,
    Piece,
    Prompt,
    QueueFull,
    Refused,
    Report,
    Sampling,
    Started,
    Text,
)
from qwen_service.inference.desk import IDLE_TICK_SECONDS
from qwen_service.inference.model import Chosen, ReadPrompt, StepFailed, Vector
from qwen_service.inference.request import Request
from qwen_service.inference.thread import InferenceEngine

DEADLINE_SECONDS = 10
END = 0


class Letters:
    """Each row spells its prompt, one letter a step, two rows at most; steps wait for `gate`."""

    facts = ModelFacts(device="cpu", dtype="float32", context_tokens=100)
    ends = (END,)

    def __init__(self) -> None:
        # What each row has yet to say, known by the whole of what it was given.
        self.rows: dict[str, list[int]] = {}
        self.new: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.is_stuck = False
        self.failures = 0
        # Rows that may begin, and that may go on.
        self.admits = self.keeps = 2
        self.added: list[str] = []

    def encode(self, prompt: Prompt) -> ReadPrompt:
        assert isinstance(prompt, Chat)
        if not prompt.messages:
            raise Refused("no messages", param="messages")
        return ReadPrompt([ord(letter) for letter in prompt.messages[-1]["content"]])

    def encode_input(self, prompt: Prompt) -> ReadPrompt:
        assert isinstance(prompt, Text)
        return ReadPrompt([ord(letter) for letter in prompt.text])

    def sampler(self, sampling: Sampling, prompt: ReadPrompt) -> list[int]:
        return list(prompt.tokens)

    def decode(self, tokens: Sequence[int], *, with_control: bool = False) -> str:
        return "".join(chr(token) for token in tokens if token != END)

    def has_room(self, length: int) -> bool:
        return len(self.rows) < self.admits

    def fits(self) -> bool:
        return len(self.rows) <= self.keeps

    def add(self, key: str, tokens: Sequence[int], sampler: list[int]) -> None:
        assert list(tokens[: len(sampler)]) == sampler
        said = len(tokens) - len(sampler)
        self.rows[key] = [*sampler, END][said:]
        self.new.append(key)
        self.added.append(key)

    def remove(self, key: str) -> None:
        self.rows.pop(key, None)

    def extend(self) -> list[Chosen]:
        running = [key for key in self.rows if key not in self.new]
        if running:
            self.is_stuck = not self.gate.is_set()
            self.gate.wait(DEADLINE_SECONDS)
        return [Chosen(key, self.next(key)) for key in running]

    def extend_alone(self) -> list[Chosen]:
        return []

    def next(self, key: str) -> int | None:
        token = self.rows[key].pop(0)
        return None if token == ord("?") else token

    def prefill(self) -> Sequence[Chosen | Vector]:
        if self.new and self.failures:
            self.failures -= 1
            lost, self.new = self.new, []
            raise StepFailed(lost, "out of memory")
        begun, self.new = self.new, []
        return [Chosen(key, self.next(key)) for key in begun if key in self.rows]

    def kv_tokens(self) -> int:
        return sum(map(len, self.rows.values()))

    def memory_bytes(self) -> int | None:
        return None


class Sums(Letters):
    """A model of embeddings: the vector of a text is the sum of its letters."""

    facts = ModelFacts(device="cpu", dtype="float32", context_tokens=100, kind="embedding")

    def add(self, key: str, tokens: Sequence[int], sampler: object) -> None:
        self.rows[key] = list(tokens)
        self.new.append(key)

    def extend(self) -> list[Chosen]:
        return []

    def prefill(self) -> list[Vector]:
        begun, self.new = self.new, []
        return [Vector(key, (float(sum(self.rows[key])),)) for key in begun if key in self.rows]


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


def both_ask(engine: InferenceEngine, model: Letters) -> tuple[Listener, Listener]:
    """The first is answered already when the second comes; both have a row in the next turn."""
    model.gate.clear()
    old = ask(engine, "o" * 30, "old")
    eventually(lambda: model.is_stuck)
    young = ask(engine, "y" * 20, "young")
    assert young.next() == Started(20)
    eventually(lambda: engine.stats().waiting == 1)
    return old, young


def test_the_youngest_gives_way_and_goes_on_where_it_was() -> None:
    model = Letters()
    with running(model) as (engine, _):
        old, young = both_ask(engine, model)
        later = ask(engine, "later")
        model.keeps = 1
        model.gate.set()
        assert old.answer() == ("o" * 30, Finished("stop", 31))
        assert young.answer() == ("y" * 20, Finished("stop", 21))
        assert later.answer()[0] == "later"
    assert model.added.count("old") == 1
    assert model.added.count("young") > 1
    # The one that gave way comes before whoever came after it.
    assert model.added[-1] == "later"


def test_a_request_that_gave_way_can_be_cancelled() -> None:
    model = Letters()

    def fits() -> bool:
        if len(model.rows) < 2:
            return True
        model.admits = 1
        model.gate.clear()
        return False

    with running(model) as (engine, _):
        old, _ = both_ask(engine, model)
        model.fits = fits  # type: ignore[method-assign]
        model.gate.set()
        eventually(lambda: model.admits == 1 and model.is_stuck)
        assert (engine.stats().running, engine.stats().waiting) == (1, 1)
        engine.cancel("young")
        assert (engine.stats().running, engine.stats().waiting) == (1, 0)
        model.gate.set()
        assert old.answer()[0] == "o" * 30
    assert model.added == ["old", "young"]


def test_what_the_memory_can_never_hold_is_refused_and_says_so() -> None:
    model = Letters()
    model.facts = replace(Letters.facts, kv_tokens=40)
    with running(model) as (engine, _):
        failed = ask(engine, "x" * 30, max_tokens=11).answer()[1]
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, Refused)
        assert failed.error.code == "context_length_exceeded"
        assert "memory for keys and values has room for 40" in str(failed.error)
        assert ask(engine, "x" * 30).answer()[1] == Finished("length", 10)


def test_texts_are_embedded() -> None:
    with running(Sums()) as (engine, _):
        listener = Listener()
        engine.submit(Embedding("one", Text("ab")), listener.events.put)
        assert listener.next() == Started(2)
        assert listener.next() == Embedded((195.0,))
        eventually(lambda: engine.stats().running == 0)


@pytest.mark.parametrize(
    ("model", "wish", "code"),
    [
        (Letters, Embedding("e", Text("a")), "not_an_embedding_model"),
        (Sums, Generation("g", Chat(())), "not_a_chat_model"),
        (Sums, Embedding("e", Text("a" * 101)), "context_length_exceeded"),
    ],
)
def test_a_model_does_only_what_it_is_for(
    model: type[Letters], wish: Generation | Embedding, code: str
) -> None:
    with running(model()) as (engine, _):
        listener = Listener()
        engine.submit(wish, listener.events.put)
        failed = listener.next()
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, Refused)
        assert failed.error.code == code


def test_a_thousand_requests_that_come_and_leave_leave_nothing_behind() -> None:
    model = Letters()
    with running(model, max_queue=2000) as (engine, _):
        model.gate.clear()
        for index in range(1000):
            ask(engine, "gone", f"gone-{index}")
            engine.cancel(f"gone-{index}")
        model.gate.set()
        assert ask(engine, "here").answer()[0] == "here"
        eventually(lambda: engine.stats().running + engine.stats().waiting == 0)
        assert not model.rows
        eventually(lambda: requests_alive() == 0)


def requests_alive() -> int:
    gc.collect()
    return sum(type(it) is Request for it in gc.get_objects())


def test_tokens_are_told_and_read_outside_of_any_request() -> None:
    with running(Letters()) as (engine, _):
        prompt = Chat(({"role": "user", "content": "ab"},))
        assert list(engine.encode(prompt)) == [97, 98]
        assert engine.decode([97, 98]) == "ab"
    unloaded = InferenceEngine(lambda report: Letters(), max_batch=1, max_queue=1)
    with pytest.raises(NotServing):
        unloaded.decode([97])
