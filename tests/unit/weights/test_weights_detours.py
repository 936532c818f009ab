"""Which relay a host reads, as a pure judgement of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from qwen_weights.relay.ancestor import Pace
from qwen_weights.relay.detour import Detours, Lead, Moment

MB = 1_000_000
PACE = Pace(margin_bytes=8 * MB)
SIZE = 15_000 * MB


def watched(
    detours: Detours, seconds: int, *, own: float, rates: Sequence[float], ahead: float = 0
) -> str | None:
    """What is advised within so many seconds to a host that receives `own` MB/s from the first of
    its relays, each of which receives its rate; a rate of 0 is a relay that has everything."""
    start = 100 * MB
    names = [f"gpu-{number}" for number in range(len(rates), 0, -1)]
    for second in range(seconds):
        held = start + int(own * second * MB)
        leads = []
        for name, rate in zip(names, rates, strict=True):
            far = start + int((ahead if rate > own else 0) * MB + rate * second * MB)
            gap = (SIZE if rate == 0 else far) - held
            leads.append(Lead(name, gap, max(gap, 0), rate == 0, PACE.margin_bytes))
        moment = Moment(second, frozenset(names[:1]), held, SIZE - held, tuple(leads))
        if advised := detours.advise(moment):
            return advised
    return None


def test_a_chain_in_step_is_left_alone() -> None:
    assert watched(Detours(PACE), 100, own=6, rates=[6, 6, 6]) is None


def test_a_constant_lag_is_no_reason_to_leave() -> None:
    assert watched(Detours(PACE), 100, own=6, rates=[6, 6.5, 6.5], ahead=50) is None


def test_a_slow_relay_is_left_for_the_one_that_pulls_ahead() -> None:
    assert watched(Detours(PACE), 10, own=2.5, rates=[2.5, 6]) == "gpu-1"


def test_the_nearest_relay_that_pulls_ahead_is_tried() -> None:
    assert watched(Detours(PACE), 10, own=2.5, rates=[2.5, 6, 6]) == "gpu-2"


def test_whoever_stands_behind_the_slow_one_goes_first() -> None:
    assert watched(Detours(PACE), 8, own=2.5, rates=[2.5, 6]) == "gpu-1"
    assert watched(Detours(PACE), 8, own=2.5, rates=[2.5, 2.5, 2.5, 6]) is None
    assert watched(Detours(PACE), 20, own=2.5, rates=[2.5, 2.5, 2.5, 6]) == "gpu-1"


def test_a_relay_that_has_everything_may_be_quicker() -> None:
    assert watched(Detours(PACE), 10, own=2.5, rates=[2.5, 0]) == "gpu-1"


def test_the_last_seconds_are_not_worth_a_move() -> None:
    assert watched(Detours(PACE), 10, own=6000, rates=[6000, 0]) is None


def test_what_did_not_help_is_tried_less_and_less_often() -> None:
    detours = Detours(PACE)
    tries = []
    for second in range(600):
        held = 2 * MB * second
        leads = (Lead("gpu-1", 9 * MB + 4 * held, 9 * MB + 4 * held, False, PACE.margin_bytes),)
        moment = Moment(second, frozenset({"gpu-2"}), held, SIZE, leads)
        if detours.advise(moment):
            tries.append(second)
            detours.did_not_help(second)
    pauses = [after - before for before, after in pairwise(tries)]
    assert pauses == sorted(pauses)
    assert pauses[0] >= PACE.rest_seconds
    assert len(tries) <= 6


@pytest.mark.parametrize(("in_use", "advised"), [("21", "gpu-1"), ("2", "gpu-1"), ("1", None)])
def test_what_is_read_already_is_tried_for_the_rest_only(in_use: str, advised: str | None) -> None:
    detours = Detours(PACE)
    names = frozenset(f"gpu-{number}" for number in in_use)
    found = None
    for second in range(20):
        held = MB * second
        gaps = {"gpu-2": 0, "gpu-1": 6 * held}
        leads = [Lead(name, gap, gap, False, PACE.margin_bytes) for name, gap in gaps.items()]
        found = found or detours.advise(Moment(second, names, held, SIZE, leads))
    assert found == advised


def test_a_host_that_gets_nothing_takes_what_little_another_has() -> None:
    detours = Detours(PACE)
    leads = (Lead("gpu-2", 0, 0, False, 8 * MB), Lead("gpu-1", 1000, 1000, False, 8 * MB))
    moments = [Moment(at, frozenset({"gpu-2"}), 5 * MB, 1000, leads) for at in range(10)]
    assert "gpu-1" in map(detours.advise, moments)
