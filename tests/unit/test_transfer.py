"""Directional Conductance Divergence against slow scalar forms and values worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from engine.errors import InputError
from engine.transfer import (
    EPS,
    ETA,
    GAMMA,
    deviations,
    divergence,
    importance,
    predicted_rank,
    softmax,
    source_weights,
)
from tests.support.slow_transfer import slow_divergence, slow_importance, slow_rank, slow_weights

SHAPES = [(1, 1), (2, 3), (12, 20), (24, 1), (4, 50)]


def profiles(blocks: int, sources: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return 10.0 ** rng.uniform(-4, 2, blocks), 10.0 ** rng.uniform(-4, 2, (sources, blocks))


def test_the_defaults_are_those_of_the_method() -> None:
    assert (ETA, GAMMA, EPS) == (2.0, 5.0, 1e-8)


@pytest.mark.parametrize(("blocks", "sources"), SHAPES)
@pytest.mark.parametrize(("eta", "gamma"), [(2.0, 5.0), (0.0, 5.0), (2.0, 0.0), (0.3, 20.0), (50.0, 0.01)])
def test_every_step_is_the_slow_one(blocks: int, sources: int, eta: float, gamma: float) -> None:
    for seed in range(5):
        target, known = profiles(blocks, sources, seed)
        ranks = np.random.default_rng(seed + 100).integers(1, 97, sources) / 2
        alpha, apart = importance(target, eta), divergence(target, known, eta)
        weights = source_weights(apart, gamma)
        np.testing.assert_allclose(alpha, slow_importance(target, eta), rtol=1e-12)
        np.testing.assert_allclose(apart, [slow_divergence(target, row, eta) for row in known], rtol=1e-12)
        np.testing.assert_allclose(weights, slow_weights(apart, gamma), rtol=1e-9, atol=1e-300)
        assert predicted_rank(weights, ranks) == pytest.approx(slow_rank(target, known, ranks, eta, gamma), rel=1e-9)
        assert alpha.sum() == pytest.approx(1) and weights.sum() == pytest.approx(1)
        assert ranks.min() - 1e-9 <= predicted_rank(weights, ranks) <= ranks.max() + 1e-9


def test_values_worked_out_by_hand() -> None:
    target = np.array([2.0, 1.0])
    sources = np.array([[2.0, 1.0], [1.0, 1.0], [2.0, 4.0]])
    e = math.e  # eta = 2, u = (1, 1/2): alpha = (e^2, e) / (e^2 + e) = (e, 1) / (e + 1)
    np.testing.assert_allclose(importance(target, 2.0), [e / (e + 1), 1 / (e + 1)], rtol=1e-12)
    np.testing.assert_allclose(deviations(target, sources), [[0, 0], [0.5, 0], [0, 3]], rtol=1e-7)
    expected = [0, 0.5 * e / (e + 1), 3 / (e + 1)]
    np.testing.assert_allclose(divergence(target, sources, 2.0), expected, rtol=1e-7)
    weights = source_weights(np.array([0.0, math.log(2), math.log(4)]), 1.0)
    np.testing.assert_allclose(weights, [4 / 7, 2 / 7, 1 / 7], rtol=1e-12)
    assert predicted_rank(weights, np.array([1.0, 3.0, 7.0])) == pytest.approx(17 / 7)


def test_it_is_directional() -> None:
    a, b = np.array([2.0, 1.0]), np.array([1.0, 1.0])
    assert divergence(a, b[None])[0] == pytest.approx(0.5 * math.e / (math.e + 1))
    assert divergence(b, a[None])[0] == pytest.approx(0.5)  # alpha is even here, the deviation 1


def test_without_sharpness_all_count_alike() -> None:
    target, sources = profiles(6, 4, 0)
    np.testing.assert_allclose(importance(target, 0.0), np.full(6, 1 / 6))
    np.testing.assert_allclose(divergence(target, sources, 0.0), deviations(target, sources).mean(axis=1))
    np.testing.assert_allclose(source_weights(np.array([0.0, 3.0, 1e9]), 0.0), np.full(3, 1 / 3))


def test_sharpness_changes_the_answer() -> None:
    target, sources = profiles(6, 4, 0)
    assert not np.allclose(divergence(target, sources, 1.0), divergence(target, sources, 2.0))
    apart = np.array([0.1, 0.3, 0.8])
    assert not np.allclose(source_weights(apart, 5.0), source_weights(apart, 6.0))


def test_a_target_without_conductance() -> None:
    zero = np.zeros(3)
    np.testing.assert_allclose(importance(zero), np.full(3, 1 / 3))
    np.testing.assert_array_equal(divergence(zero, np.zeros((1, 3))), [0.0])
    far = divergence(zero, np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert far[0] == pytest.approx(1 / 3 / EPS) and far[1] == 0
    np.testing.assert_array_equal(source_weights(far), [0.0, 1.0])


@pytest.mark.parametrize("scale", [1e-300, 1e-40, 1.0, 1e38])
def test_extremes_do_not_overflow(scale: float) -> None:
    target, sources = np.array([0.0, scale, scale / 7]), np.array([[scale, 0.0, scale], [0.0, scale, scale / 7]])
    apart = divergence(target, sources, 700.0)
    weights = source_weights(apart, 1e6)
    assert np.isfinite(apart).all() and apart[1] == 0
    assert weights.sum() == pytest.approx(1) and weights[1] >= weights[0]
    np.testing.assert_array_equal(source_weights(np.array([1e300, 1e300]), 1e7), [0.5, 0.5])
    np.testing.assert_array_equal(softmax(np.array([-1e308, 1e308 / 2])), [0.0, 1.0])


def test_only_relations_count() -> None:
    target, sources = profiles(8, 5, 3)
    np.testing.assert_allclose(divergence(100 * target, 100 * sources), divergence(target, sources), rtol=1e-3)


def test_half_precision_is_widened() -> None:
    target, sources = np.array([1, 2], np.float16), np.array([[1, 3]], np.float16)
    assert divergence(target, sources).dtype == np.float64
    np.testing.assert_allclose(divergence(target, sources), [slow_divergence([1.0, 2.0], [1.0, 3.0], ETA)])


def test_nothing_given_is_changed() -> None:
    target, sources = profiles(5, 3, 1)
    before = target.copy(), sources.copy()
    weights = source_weights(divergence(target, sources))
    predicted_rank(weights, np.ones(3))
    np.testing.assert_array_equal(target, before[0])
    np.testing.assert_array_equal(sources, before[1])


@pytest.mark.parametrize(
    ("target", "sources"), [((3,), (2, 4)), ((3,), (3,)), ((1, 3), (2, 3)), ((3,), (1, 2, 3)), ((), (2, 3))]
)
def test_profiles_that_do_not_fit(target: Sequence[int], sources: Sequence[int]) -> None:
    with pytest.raises(InputError, match="one value a block"):
        divergence(np.ones(target), np.ones(sources))


def test_no_source_is_an_error() -> None:
    with pytest.raises(InputError, match="no source task"):
        source_weights(np.zeros(0))
