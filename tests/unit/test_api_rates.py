"""Buckets of tokens."""

from __future__ import annotations

import random

import pytest

from query.api.rates import MOST_BUCKETS, RateLimit


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize(("per_minute", "burst"), [(600, 100), (60, 10), (6, 10), (0.5, 10), (6000, 1000)])
def test_a_burst_is_a_sixth_of_a_minute_and_at_least_ten(clock: Clock, per_minute: float, burst: int) -> None:
    rates = RateLimit(per_minute, clock)
    taken = sum(rates.take("a") == 0 for _ in range(2000))
    assert taken == burst == rates.burst


def test_the_wait_is_exactly_as_long_as_is_said(clock: Clock) -> None:
    rates = RateLimit(60, clock)  # one a second
    for _ in range(10):
        assert rates.take("a") == 0
    assert rates.take("a") == pytest.approx(1.0)
    clock.now += 0.75
    wait = rates.take("a")
    assert wait == pytest.approx(0.25)
    clock.now += wait - 0.01
    assert rates.take("a") > 0
    clock.now += 0.01
    assert rates.take("a") == 0
    assert rates.take("a") == pytest.approx(1.0)


def test_who_comes_when_told_is_let_in_at_any_rate(clock: Clock) -> None:
    """Rounding must not send a patient client away for ever."""
    generator = random.Random(0)
    for _ in range(300):
        rates = RateLimit(generator.uniform(0.1, 10_000), clock)
        while (wait := rates.take("a")) == 0:
            pass
        clock.now += wait
        assert rates.take("a") == 0


def test_never_more_than_the_bucket_allows_whatever_the_rhythm(clock: Clock) -> None:
    """Counted from outside: in any stretch of time at most the burst and what flows in meanwhile."""
    generator = random.Random(1)
    rates = RateLimit(120, clock)
    times = []
    for _ in range(5000):
        clock.now += generator.choice([0, 0, 0, 0.01, 0.3, 2.0])
        if rates.take("a") == 0:
            times.append(clock.now)
    for first in range(0, len(times), 7):
        for last in range(first, min(first + 200, len(times)), 3):
            assert last - first + 1 <= rates.burst + (times[last] - times[first]) * 2 + 1e-6


def test_refusals_cost_nothing(clock: Clock) -> None:
    rates = RateLimit(60, clock)
    for _ in range(1000):
        rates.take("a")
    clock.now += 1
    assert rates.take("a") == 0


def test_names_do_not_share(clock: Clock) -> None:
    rates = RateLimit(60, clock)
    while rates.take("a") == 0:
        pass
    assert sum(rates.take("b") == 0 for _ in range(50)) == 10


def test_a_rest_fills_the_bucket_and_no_further(clock: Clock) -> None:
    rates = RateLimit(60, clock)
    while rates.take("a") == 0:
        pass
    clock.now += 1e6
    assert sum(rates.take("a") == 0 for _ in range(50)) == 10


def test_small_costs_are_parts_of_a_token(clock: Clock) -> None:
    rates = RateLimit(60, clock)
    assert sum(rates.take("a", 0.05) == 0 for _ in range(1000)) == 200


def test_zero_is_no_limit(clock: Clock) -> None:
    rates = RateLimit(0, clock)
    assert all(rates.take("a") == 0 for _ in range(10_000))
    assert len(rates) == 0


def test_strangers_do_not_fill_the_memory(clock: Clock) -> None:
    rates = RateLimit(60, clock)
    for number in range(MOST_BUCKETS + 5000):
        rates.take(f"10.0.{number // 256}.{number % 256}")
    assert len(rates) == MOST_BUCKETS
