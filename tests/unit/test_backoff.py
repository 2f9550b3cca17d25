"""Waits between tries, against values worked out by hand."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexers.crawl.backoff import RETRY_AFTER_LIMIT_S, Backoff


class Draws(random.Random):
    """A generator that draws what it is told."""

    def __init__(self, *values: float) -> None:
        super().__init__(0)
        self.values = list(values)

    def random(self) -> float:
        return self.values.pop(0)


@pytest.mark.parametrize(
    ("attempt", "draw", "wait_s"),
    [
        (1, 0.5, 5),  # of 10
        (2, 0.5, 10),  # of 20
        (3, 0.75, 30),  # of 40
        (9, 0.5, 1280),  # of 2560
        (10, 0.5, 1800),  # of 5120, but no more than 3600
        (5000, 0.25, 900),  # 2 ** 4999 is no float
        (1, 0.0, 1),  # never less than a tenth of the base
        (4, 0.0, 1),
    ],
)
def test_grows_up_to_the_longest(attempt: int, draw: float, wait_s: float) -> None:
    assert Backoff().wait_s(attempt, None, Draws(draw)) == wait_s


@pytest.mark.parametrize(
    ("asked_s", "wait_s"),
    [
        (30, 35),  # and half of the base, so that not all come back at once
        (2, 7),
        (1e9, RETRY_AFTER_LIMIT_S + 5),
        (math.inf, RETRY_AFTER_LIMIT_S + 5),
        (0, 5),
        (-3, 5),
        (math.nan, 5),
        (None, 5),
    ],
)
def test_waits_as_long_as_it_is_asked_to(asked_s: float | None, wait_s: float) -> None:
    assert Backoff().wait_s(1, asked_s, Draws(0.5)) == wait_s


def test_its_own_wait_holds_where_it_is_longer() -> None:
    assert Backoff().wait_s(8, 30, Draws(0.5)) == 640


def test_a_seeded_generator_gives_known_waits() -> None:
    # The first numbers of CPython's generator seeded with 0: 0.8444218515250481, 0.7579544029403025, 0.420571580830845.
    rng = random.Random(0)
    waits = [Backoff(base_s=1, factor=3).wait_s(attempt, None, rng) for attempt in (1, 2, 3)]
    assert waits == pytest.approx([0.8444218515250481, 3 * 0.7579544029403025, 9 * 0.420571580830845], rel=1e-12)


@given(
    attempt=st.integers(1, 10_000),
    asked_s=st.none() | st.floats(0, 1e5),
    base_s=st.floats(0.01, 100),
    factor=st.floats(1, 10),
    seed=st.integers(0, 1000),
)
def test_stays_in_its_bounds(attempt: int, asked_s: float | None, base_s: float, factor: float, seed: int) -> None:
    wait_s = Backoff(base_s, factor, longest_s=500).wait_s(attempt, asked_s, random.Random(seed))
    asked_s = min(asked_s or 0.0, RETRY_AFTER_LIMIT_S)
    assert max(base_s / 10, asked_s) <= wait_s <= max(500, asked_s + base_s)


def test_the_mean_is_half_of_the_longest() -> None:
    rng = random.Random(1)
    waits = [Backoff().wait_s(3, None, rng) for _ in range(4000)]
    assert sum(waits) / len(waits) == pytest.approx(20, rel=0.03)
    assert max(waits) > 39 and min(waits) < 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_s": 0}, {"base_s": math.nan}, {"factor": 0.5}, {"longest_s": 1}, {"longest_s": math.inf},
        {"attempts": 0},
    ],
)  # fmt: skip
def test_refuses_what_is_no_backoff(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Backoff(**wrong)  # type: ignore[arg-type]


def test_attempts_are_counted_from_one() -> None:
    with pytest.raises(ValueError):
        Backoff().wait_s(0, None, Draws(0.5))
