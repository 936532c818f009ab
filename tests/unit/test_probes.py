from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any

import pytest

from qwen_deploy import probes
from qwen_deploy.facts import Facts
from qwen_deploy.probes import Readiness
from tests.fakes import ACTIVE_SOCKET, ACTIVE_UNIT, FAILED_UNIT, answers, facts_of

RELEASE = "r-3f9c2a1b"
LOADING_UNIT = ACTIVE_UNIT | {"ActiveState": "activating", "SubState": "start"}


def seen(unit: dict[str, str], service: dict[str, Any] | None = None) -> Facts:
    return facts_of(units={"qwen.service": unit, "qwen.socket": ACTIVE_SOCKET}, service=service)


READY = seen(ACTIVE_UNIT, answers(RELEASE))
LOADING = seen(LOADING_UNIT | {"StatusText": "loading: 3 of 8 shards"})


class Clock:
    """Time passes only where somebody waits."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def wait(
    *states: Facts, deadline_seconds: float = 10, canceled: Sequence[bool] = ()
) -> tuple[Readiness, list[str], Clock]:
    """The last state lasts."""
    inspections, told, clock = chain(states, repeat(states[-1])), list[str](), Clock()
    cancellations = chain(canceled, repeat(False))
    readiness = probes.wait_ready(
        lambda: next(inspections),
        RELEASE,
        deadline_seconds=deadline_seconds,
        is_canceled=lambda: next(cancellations),
        tell=told.append,
        clock=clock,
        pause=clock.pause,
    )
    return readiness, told, clock


def test_a_ready_release_is_believed_at_once() -> None:
    readiness, told, clock = wait(READY)
    assert readiness == Readiness(True, "", READY)
    assert (told, clock.pauses) == ([], [])


def test_a_loading_release_is_asked_again_until_it_is_ready() -> None:
    readiness, told, clock = wait(LOADING, seen(LOADING_UNIT), READY)
    assert readiness.is_ready
    assert told == ["loading: 3 of 8 shards", "the unit is activating"]
    assert clock.pauses == [probes.INTERVAL_SECONDS] * 2


def test_a_release_that_never_gets_ready_is_given_up_at_the_deadline() -> None:
    readiness, _, clock = wait(LOADING, deadline_seconds=10)
    assert readiness == Readiness(
        False, "it was not ready within 10 s: loading: 3 of 8 shards", LOADING
    )
    assert clock.now == 110


def test_an_interruption_ends_the_wait() -> None:
    readiness, _, _ = wait(LOADING, canceled=(False, False, True))
    assert readiness == Readiness(False, probes.INTERRUPTED, LOADING)


def test_a_release_that_got_ready_in_time_outweighs_an_interruption() -> None:
    assert wait(READY, canceled=(True,))[0].is_ready


JUDGED: dict[str, tuple[Facts, str | None]] = {
    "ready": (READY, ""),
    "failed": (seen(FAILED_UNIT), "the unit failed (exit-code)"),
    "about to be restarted": (
        seen(LOADING_UNIT | {"SubState": "auto-restart", "Result": "watchdog"}),
        "the unit failed (watchdog)",
    ),
    "restarted behind our back": (
        seen(ACTIVE_UNIT | {"NRestarts": "1", "ExecMainStatus": "3"}, answers(RELEASE)),
        "the unit failed (exit status 3)",
    ),
    "about to be started again": (
        seen(LOADING_UNIT | {"SubState": "auto-restart", "ExecMainStatus": "1"}),
        "the unit failed (exit status 1)",
    ),
    "failed before it ran": (
        seen({"ActiveState": "failed", "NRestarts": "0", "Result": "success"}),
        "the unit failed (exit status unknown)",
    ),
    "failed without a result": (
        seen({"ActiveState": "failed", "NRestarts": "0"}),
        "the unit failed (unknown)",
    ),
    "starting": (seen(LOADING_UNIT), None),
    "active without an answer": (seen(ACTIVE_UNIT), None),
    "draining": (seen(ACTIVE_UNIT, {"status": 503, "ready": {"status": "draining"}}), None),
    "nobody listens": (seen(ACTIVE_UNIT, {"status": 0, "ready": "refused"}), None),
    "another release": (
        seen(ACTIVE_UNIT, answers("r-00000000")),
        "the service says it is r-00000000, not r-3f9c2a1b",
    ),
    "a stranger": (
        seen(ACTIVE_UNIT, {"status": 200, "ready": "<html>"}),
        "the service says it is None, not r-3f9c2a1b",
    ),
    "no completion": (
        seen(ACTIVE_UNIT, answers(RELEASE, completion=False)),
        "no completion came back: out of memory",
    ),
    "not asked for a completion": (
        seen(ACTIVE_UNIT, answers(RELEASE) | {"completion": None}),
        "no completion came back: ",
    ),
}


@pytest.mark.parametrize(("facts", "verdict"), JUDGED.values(), ids=JUDGED)
def test_only_identity_and_a_completion_prove_a_release(facts: Facts, verdict: str | None) -> None:
    assert probes.judge(facts, RELEASE) == verdict


def test_the_status_is_what_the_unit_says_else_what_the_service_says() -> None:
    loading = {"status": 503, "ready": {"status": "loading", "reason": "warming up"}}
    assert probes.status(seen(LOADING_UNIT, loading)) == "warming up"
    assert probes.status(seen(LOADING_UNIT | {"StatusText": "2 of 3"}, loading)) == "2 of 3"
    assert probes.status(facts_of(units={})) == "the unit is unknown"


def test_a_unit_that_is_active_behind_a_closed_port_is_given_up_soon() -> None:
    closed = seen(ACTIVE_UNIT, {"status": 0, "ready": "Connection refused"})
    readiness, _, clock = wait(closed, deadline_seconds=1800)
    assert readiness.reason == "its port does not answer: Connection refused"
    assert sum(clock.pauses) < 15


def test_a_port_that_answers_again_is_waited_for() -> None:
    closed = seen(ACTIVE_UNIT, {"status": 0, "ready": "timed out"})
    states = (*[closed] * 5, LOADING, *[closed] * 19, READY)
    readiness, _, _ = wait(*states, deadline_seconds=60)
    assert readiness.is_ready
