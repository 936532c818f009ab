"""Self-tests of an engine, and when what it tells means that it is stuck."""

from __future__ import annotations

import pytest
from qwen_service.engine import EngineError, Failed, Generation, ModelFacts, Stats
from qwen_service.lifecycle import progress, selftest, supervisor
from qwen_service.lifecycle.progress import Progress
from qwen_service.lifecycle.readiness import SelfTests
from qwen_service.lifecycle.selftest import SelfTest

from tests.fake_engine import FakeEngine

FACTS = ModelFacts("cpu", "float32", 100)


class Scene:
    """An engine that answers when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.engine = FakeEngine(holds=True)
        self.engine.start(lambda report: None)
        self.tested = SelfTests()
        self.test = SelfTest(self.engine, self.tested, lambda: self.now)

    def after(self, seconds: float) -> bool:
        self.now += seconds
        return self.test.run_if_idle(FACTS)

    def ask(self, name: str) -> None:
        prompt = selftest.PROMPT
        self.test.submit(Generation(name, prompt), lambda event: None)


def test_a_test_follows_a_test_while_nobody_else_asks() -> None:
    scene = Scene()
    assert not scene.after(1.0)
    assert scene.after(selftest.EVERY_SECONDS)
    assert not scene.after(selftest.EVERY_SECONDS), "one at a time"
    scene.engine.release()
    assert (scene.tested.passed, scene.tested.last_seconds) == (1, selftest.EVERY_SECONDS)


def test_a_slow_engine_is_tested_less_often_and_one_bad_moment_does_not_count() -> None:
    scene = Scene()
    for seconds in (0.5, 6.0):
        assert scene.after(20 * 0.5)
        scene.now += seconds
        scene.engine.release()
    assert not scene.after(9.9)
    assert scene.after(0.1)
    assert (scene.tested.least_seconds, scene.tested.last_seconds) == (0.5, 6.0)


def test_real_work_ends_a_test_before_it_joins_the_queue() -> None:
    scene = Scene()
    assert scene.after(selftest.EVERY_SECONDS)
    scene.ask("real")
    assert scene.engine.cancelled == ["self-test-1"]
    assert scene.test.stats().running == 1
    assert not scene.after(60), "there is work"
    scene.engine.release()
    assert scene.after(0.0)
    assert scene.tested.passed == 0


def test_a_test_is_in_nobodys_numbers() -> None:
    scene = Scene()
    assert scene.after(selftest.EVERY_SECONDS)
    assert scene.engine.stats().running == 1
    assert scene.test.stats().running == 0
    told = [0]

    def stats() -> Stats:
        return Stats(tokens=told[0])

    scene.engine.stats = stats  # type: ignore[method-assign]
    told[0] = 1  # counted by the engine before the answer comes
    assert scene.test.stats().tokens == 0
    scene.engine.release()
    told[0] = 2  # what the fake engine says that it took
    assert scene.test.stats().tokens == 0
    told[0] = 12
    assert scene.test.stats().tokens == 10


def test_a_test_that_fails_says_why_until_one_passes() -> None:
    scene = Scene()
    scene.engine.failure = EngineError("no memory")
    assert scene.after(selftest.EVERY_SECONDS)
    scene.engine.release()
    assert (scene.tested.failed, scene.tested.error) == (1, "no memory")
    scene.engine.failure = None
    assert scene.after(selftest.EVERY_SECONDS)
    scene.engine.release()
    assert (scene.tested.passed, scene.tested.error) == (1, "")


def test_an_engine_that_refuses_is_a_test_that_failed() -> None:
    scene = Scene()
    scene.engine.drain()
    assert scene.after(selftest.EVERY_SECONDS)
    assert scene.tested.error == "the engine takes no requests"


def test_an_answer_that_comes_after_its_test_was_called_off_says_nothing() -> None:
    scene = Scene()
    assert scene.after(selftest.EVERY_SECONDS)
    scene.test.give_way()
    scene.test._hear("self-test-1", Failed(EngineError("late")))
    assert (scene.tested.failed, scene.tested.error) == (0, "")


def judge(
    watched: Progress, ticks: int, *, test_seconds: float = 0.0, tested: SelfTests | None = None
) -> str | None:
    stats = Stats(ticks=ticks)
    return watched.judge(stats, tested or SelfTests(), seconds=0.5, test_seconds=test_seconds)


def test_an_engine_that_takes_no_step_is_stuck_until_it_takes_one() -> None:
    watched = Progress()
    assert judge(watched, 1) is None
    silent = [judge(watched, 1) for _ in range(12)]
    assert silent == [None] * 11 + ["the engine has made no step for 6 s"]
    assert not watched.has_moved
    assert judge(watched, 2) is None
    assert watched.has_moved


def test_a_test_without_an_answer_is_a_stuck_engine_too() -> None:
    watched = Progress()
    assert judge(watched, 1, test_seconds=5.9) is None
    assert judge(watched, 2, test_seconds=6.0) == "the self-test has had no answer for 6 s"
    slow = SelfTests(least_seconds=3.0)
    assert judge(watched, 3, test_seconds=29.0, tested=slow) is None
    assert judge(watched, 4, test_seconds=30.0, tested=slow) is not None


def test_a_failed_test_is_the_reason() -> None:
    assert judge(Progress(), 1, tested=SelfTests(error="no memory")) == (
        "the self-test failed: no memory"
    )


@pytest.mark.parametrize("is_idle", [False, True])
def test_nobody_waits_longer_than_ten_seconds_to_be_told(is_idle: bool) -> None:
    longest = progress.STUCK_SECONDS + 2 * supervisor.PULSE_SECONDS
    assert longest + (selftest.EVERY_SECONDS if is_idle else 0) < 10
