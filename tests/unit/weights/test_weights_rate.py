from __future__ import annotations

import threading
from datetime import datetime, time

import pytest
from qwen_weights.pull.rate import Limiter, Rates


class Clock(threading.Event):
    """Waiting for the stop is what makes time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.now = datetime(2026, 1, 1, 12)

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds += timeout or 0
        return self.is_set()


def limiter_of(clock: Clock, rates: Rates) -> Limiter:
    return Limiter(rates, clock, clock=lambda: clock.seconds, now=lambda: clock.now)


def take(limiter: Limiter, count: int) -> None:
    while count > 0:
        count -= limiter.allow(count)


def test_without_a_rate_nobody_waits() -> None:
    clock = Clock()
    assert limiter_of(clock, Rates()).allow(1 << 30) == 1 << 30
    assert clock.seconds == 0


@pytest.mark.parametrize("rate", [10_000, 1_000_000, 100_000_000])
def test_bytes_take_the_time_that_the_rate_gives(rate: int) -> None:
    clock = Clock()
    take(limiter_of(clock, Rates(day=rate)), 20 * rate)
    assert clock.seconds == pytest.approx(20, rel=0.05)


def test_a_pause_saves_up_no_more_than_a_moment() -> None:
    clock = Clock()
    limiter = limiter_of(clock, Rates(day=1000_000))
    clock.seconds = 3600
    before = clock.seconds
    take(limiter, 10_000_000)
    assert clock.seconds - before == pytest.approx(10, rel=0.05)


def test_a_read_that_got_less_pays_for_less() -> None:
    clock = Clock()
    limiter = limiter_of(clock, Rates(day=1_000_000))
    for _ in range(1000):
        limiter.give_back(limiter.allow(100_000) - 10_000)
    assert clock.seconds == pytest.approx(10, rel=0.05)


def test_the_night_has_its_own_rate() -> None:
    clock = Clock()
    limiter = limiter_of(clock, Rates(day=1000, night=None))
    clock.now = datetime(2026, 1, 1, 23, 30)
    assert limiter.allow(1 << 30) == 1 << 30
    clock.now = datetime(2026, 1, 2, 6, 0)
    assert limiter.allow(1 << 30) <= 1024


@pytest.mark.parametrize(
    ("begin", "end", "nights", "days"),
    [
        (time(22), time(6), (time(22), time(0), time(5, 59)), (time(6), time(21, 59))),
        (time(1), time(5), (time(1), time(4)), (time(0), time(5), time(23))),
    ],
)
def test_a_night_may_have_midnight_in_it(
    begin: time, end: time, nights: tuple[time, ...], days: tuple[time, ...]
) -> None:
    rates = Rates(1, 2, begin, end)
    assert {rates.at(moment) for moment in nights} == {2}
    assert {rates.at(moment) for moment in days} == {1}


def test_a_stop_ends_the_wait() -> None:
    clock = Clock()
    limiter = limiter_of(clock, Rates(day=1))
    limiter.allow(1024)
    clock.set()
    assert limiter.allow(10_000) == 0
