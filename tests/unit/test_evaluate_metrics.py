"""Measures of retrieval against slow references and values worked out by hand."""

import numpy as np
import pytest

from engine.distance import rank
from query.evaluate.metrics import (
    average_precision,
    coverage,
    first_hit_ranks,
    half_coverage,
    hit_at,
    mean_reciprocal_rank,
)


def slow_first_hit(scores, right):
    found = []
    for row, good in zip(scores, right, strict=True):
        order = rank(row)
        places = [place + 1 for place, at in enumerate(order) if good[at]]
        found.append(places[0] if places else 0)
    return found


@pytest.mark.parametrize("levels", [3, 1000])
def test_first_hit_ranks_agree_with_sorting(levels):
    rng = np.random.default_rng(0)
    scores = rng.integers(0, levels, (60, 17)).astype(np.float32)  # few levels: many ties
    right = rng.random((60, 17)) < 0.15
    assert first_hit_ranks(scores, right).tolist() == slow_first_hit(scores, right)


def test_first_hit_ranks_by_hand():
    scores = np.array([[0.1, 0.9, 0.5], [0.5, 0.5, 0.5], [0.3, 0.2, 0.1], [1.0, -np.inf, -np.inf]])
    right = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 0], [0, 0, 1]], dtype=bool)
    assert first_hit_ranks(scores, right).tolist() == [2, 3, 0, 3]
    assert first_hit_ranks(np.zeros((2, 0)), np.zeros((2, 0), dtype=bool)).tolist() == [0, 0]


def test_hits_and_reciprocal_rank_by_hand():
    ranks = np.array([1, 2, 5, 6, 0])
    assert hit_at(ranks, 1) == pytest.approx(0.2)
    assert hit_at(ranks, 5) == pytest.approx(0.6)
    assert mean_reciprocal_rank(ranks) == pytest.approx((1 + 1 / 2 + 1 / 5 + 1 / 6) / 5)
    none = np.zeros(0, np.int64)
    assert np.isnan(hit_at(none, 1))
    assert np.isnan(mean_reciprocal_rank(none))


def test_coverage_counts_the_most_frequent_answers_first():
    top = np.array([7, 7, 7, 3, 3, 9, 1, 2])
    assert coverage(top) == pytest.approx([3 / 8, 5 / 8, 6 / 8, 7 / 8, 1])
    assert half_coverage(top) == 2
    assert half_coverage(np.array([4, 4, 4, 1])) == 1
    assert half_coverage(np.array([4, 4, 1, 2])) == 1  # exactly half
    assert half_coverage(np.arange(9)) == 5
    assert half_coverage(np.zeros(0, np.int64)) == 0


def slow_average_precision(scores, right):
    """The definition, threshold by threshold."""
    area, recall = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        retrieved = scores >= threshold
        now = (retrieved & right).sum() / right.sum()
        area += (now - recall) * (retrieved & right).sum() / retrieved.sum()
        recall = now
    return area


@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_average_precision_agrees_with_its_definition(levels):
    rng = np.random.default_rng(levels)
    scores = rng.integers(0, levels, (40, 23)).astype(np.float32)
    right = rng.random(23) < 0.3
    expected = [slow_average_precision(row, right) for row in scores]
    assert average_precision(scores, right) == pytest.approx(expected)


def test_average_precision_by_hand():
    right = np.array([True, False, True, False])
    scores = np.array([[4, 3, 2, 1], [1, 2, 3, 4], [1, 1, 1, 1]], dtype=np.float32)
    # First: 1/2 * 1/1 + 1/2 * 2/3; second: 1/2 * 1/2 + 1/2 * 2/4; all tied: precision at the only threshold.
    assert average_precision(scores, right) == pytest.approx([5 / 6, 1 / 2, 1 / 2])
    with pytest.raises(ValueError, match="needs something"):
        average_precision(scores, np.zeros(4, dtype=bool))
