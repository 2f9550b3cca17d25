"""Measures of a ranking against slow forms, scipy and values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from query.evaluate.ranking import kendall_tau, measures, ndcg, ndcg_strict, regret, regrets

NAN = float("nan")


def slow_rank(figures: list[float], ties: str) -> list[float]:
    known = [x for x in figures if not math.isnan(x)]
    found = []
    for place, x in enumerate(figures):
        before = sum(other == x for other in figures[:place])
        extra = {"average": (known.count(x) - 1) / 2, "ordinal": before, "min": 0}[ties]
        found.append(NAN if math.isnan(x) else 1 + sum(other < x for other in known) + extra)
    return found


def slow(predicted: list[float], truth: list[float], k: int, ties: str) -> tuple[float, float, float]:
    """The definition, with lists."""
    true = slow_rank(truth, ties)
    guess = slow_rank([NAN if math.isnan(t) else p for p, t in zip(predicted, truth, strict=True)], ties)
    top = [i for i, rank in enumerate(true) if rank <= k]
    both = sorted((i for i in top if guess[i] <= k), key=lambda i: (guess[i], i))
    if len(both) < 2:
        return 0.0, 0.0, 0.0

    def gain(order: list[int]) -> float:
        return sum((2 ** (k - true[i] + 1) - 1) / math.log2(place + 2) for place, i in enumerate(order))

    tau = kendalltau([guess[i] for i in both], [true[i] for i in both]).statistic
    ideal = gain(sorted(both, key=lambda i: true[i]))
    strict = gain(sorted(top, key=lambda i: true[i]))
    return gain(both) / ideal, gain(both) / strict, 0.0 if math.isnan(tau) else float(tau)


figures = st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.5, 7.0, 8.0, 9.0, NAN])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(figures, figures), min_size=1, max_size=12),
    st.integers(1, 8),
    st.sampled_from(["average", "ordinal", "min"]),
)
def test_measures_are_those_of_the_definition(pairs: list[tuple[float, float]], k: int, ties: str) -> None:
    predicted, truth = [p for p, _ in pairs], [t for _, t in pairs]
    expected = slow(predicted, truth, k, ties)
    found = (ndcg(predicted, truth, k, ties), ndcg_strict(predicted, truth, k, ties))
    assert (*found, kendall_tau(predicted, truth, k, ties)) == pytest.approx(expected, abs=1e-12)


def test_many_rankings_at_once() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.integers(0, 12, (40, 15)).astype(float)
    predicted[rng.random((40, 15)) < 0.1] = np.nan
    truth = rng.permutation(15).astype(float)
    before = predicted.copy()
    for ties in ("average", "ordinal"):
        found = measures(predicted, truth, (3, 7), ties)
        for k in (3, 7):
            expected = np.array([slow(row, truth.tolist(), k, ties) for row in predicted.tolist()])
            for place, name in enumerate(("ndcg", "ndcg_strict", "tau")):
                np.testing.assert_allclose(found[f"{name}@{k}"], expected[:, place], atol=1e-12)
            np.testing.assert_allclose(found[f"sum@{k}"], expected[:, 0] + expected[:, 2], atol=1e-12)
    np.testing.assert_array_equal(predicted, before)


def test_by_hand() -> None:
    """True order A B C D E, predicted B D A ...: A and B are in both tops, in the wrong order."""
    predicted, truth = [3, 1, 5, 2, 4], [1, 2, 3, 4, 5]
    got = 3 + 7 / math.log2(3)
    assert ndcg(predicted, truth, 3) == pytest.approx(got / (7 + 3 / math.log2(3)))
    assert ndcg_strict(predicted, truth, 3) == pytest.approx(got / (7 + 3 / math.log2(3) + 1 / 2))
    assert kendall_tau(predicted, truth, 3) == -1
    for measure in (ndcg, ndcg_strict, kendall_tau):
        assert measure(truth, truth, 3) == pytest.approx(1)
        assert measure([4, 5, 1, 2, 3], truth, 3) == 0  # only C is in both
        assert measure(predicted, truth, 3) != measure(predicted, truth, 5)


def test_ties_at_the_border_of_the_top() -> None:
    """Ranks 2.5 and 2.5 are no top 2; in the order of the models the first of them is."""
    predicted, truth = [1, 2, 2, 4], [1, 2, 3, 4]
    assert ndcg(predicted, truth, 2, "average") == 0
    assert ndcg(predicted, truth, 2, "ordinal") == pytest.approx(1)
    assert ndcg(predicted, truth, 2, "min") == pytest.approx(1)


def test_models_that_are_not_ranked_or_do_not_count() -> None:
    truth = [1.0, 2.0, 3.0, 4.0]
    assert ndcg_strict([NAN, 1, 2, 3], truth, 3) < 1  # the best was missed
    assert ndcg([2, NAN, NAN, NAN], truth, 3) == 0
    # A model without a true rank takes nobody's place, however well it is predicted to be.
    assert ndcg_strict([1, 2, 3, 4], [NAN, 1, 2, 3], 2) == pytest.approx(1)


def test_regret_in_points() -> None:
    values = [0.5, 0.8, 0.7, NAN]
    assert regret([3, 1, 2, 4], values) == 0
    assert regret([1, 3, 2, 0], values) == pytest.approx(30)  # the last has no value: it is not taken
    assert regret([2, NAN, 1, 0], values) == pytest.approx(10)  # the best was not ranked, and is missed
    assert regret([1, 5, 1, 9], values) == pytest.approx(20)
    assert regret([1, 5, 1, 9], values, "ordinal") == pytest.approx(30)
    assert math.isnan(regret([NAN, NAN, NAN, 1], values))
    np.testing.assert_allclose(regrets(np.array([[1.0, 2], [2, 1]]), np.array([[0.1, 0.4], [0.1, 0.4]])), [30, 0])
