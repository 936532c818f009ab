"""How much of a prompt one step reads on machines of any speed."""

from __future__ import annotations

import pytest
from qwen_service.engines.pace import LEAST_TOKENS, MOST_TOKENS, STEP_SECONDS, Pace

pytestmark = pytest.mark.contract


@pytest.mark.parametrize("tokens_per_second", [1, 20, 100, 300, 1000, 10**6])
def test_parts_take_about_a_second_once_the_machine_is_known(tokens_per_second: float) -> None:
    pace, seconds = Pace(), []
    for _ in range(12):
        seconds.append(pace.tokens / tokens_per_second)
        pace.record(pace.tokens, seconds[-1])
    assert LEAST_TOKENS <= pace.tokens <= MOST_TOKENS
    if tokens_per_second >= LEAST_TOKENS:
        assert max(seconds[1:]) <= STEP_SECONDS
    if LEAST_TOKENS <= tokens_per_second <= MOST_TOKENS:
        assert seconds[-1] > STEP_SECONDS / 2


def test_a_machine_that_was_slow_once_is_not_slow_for_ever() -> None:
    pace = Pace()
    pace.record(64, 60.0)
    assert pace.tokens == LEAST_TOKENS
    for _ in range(5):
        pace.record(pace.tokens, 0.001)
    assert pace.tokens == MOST_TOKENS


def test_a_short_prompt_does_not_make_a_fast_machine_slow() -> None:
    pace = Pace()
    for _ in range(5):
        pace.record(pace.tokens, 0.01)
    pace.record(1, 0.02)
    assert pace.tokens >= 32
