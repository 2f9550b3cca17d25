"""The whitening of the embedding space: the formula, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.calibration import Background
from engine.descriptors import concept_descriptors, normalise
from engine.distance import correlations
from engine.whitening import whitening


def cone(n: int, d: int, seed: int, spread: float = 3.0) -> np.ndarray:
    """Normalised vectors about a common direction, with ``spread`` times as much variance along the first axis."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, d))
    vectors[:, 0] *= spread
    return normalise(vectors + 2.0 * np.eye(d)[-1])


def slow_covariance(vectors: np.ndarray) -> np.ndarray:
    """Covariance entry by entry, divided by the mean of its diagonal."""
    n, d = vectors.shape
    means = [sum(float(v) for v in vectors[:, j]) / n for j in range(d)]
    c = np.zeros((d, d))
    for row in vectors.astype(np.float64):
        for i in range(d):
            for j in range(d):
                c[i, j] += (row[i] - means[i]) * (row[j] - means[j]) / n
    return c / (sum(c[i, i] for i in range(d)) / d)


def test_it_is_the_inverse_of_the_mixed_covariance_and_a_ridge() -> None:
    probes, words = cone(40, 5, 0), cone(30, 5, 1, spread=0.3)
    beta = 30 / (2 * 430)
    mixed = (1 - beta) * slow_covariance(probes) + beta * slow_covariance(words) + 0.1 * np.eye(5)
    np.testing.assert_allclose(whitening(probes, words) @ mixed, np.eye(5), atol=1e-4)


def test_by_hand() -> None:
    probes = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float32)  # variance 1/2 each way: the unit matrix
    words = np.array([[1, 0], [-1, 0]], np.float32)  # all of it along the first axis: diag(2, 0)
    words = np.repeat(words, 200, axis=0)  # 400 of them: beta is a quarter
    expected = np.diag([1 / (0.75 + 0.25 * 2 + 0.1), 1 / (0.75 + 0.1)])
    np.testing.assert_allclose(whitening(probes, words), expected, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 30), st.integers(1, 30))
def test_it_is_symmetric_and_positive_definite_even_with_few_vectors(seed: int, d: int, n: int, b: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = whitening(normalise(rng.standard_normal((n, d))), normalise(rng.standard_normal((b, d))))
    assert matrix.dtype == np.float32
    assert matrix.shape == (d, d)
    np.testing.assert_array_equal(matrix, matrix.T)
    values = np.linalg.eigvalsh(matrix.astype(np.float64))
    assert values.min() > 0
    assert values.max() <= 10 * (1 + 1e-5)  # one over the ridge


def test_vectors_that_are_all_the_same_leave_the_space_as_it_is() -> None:
    same = np.tile(normalise(np.ones((1, 4))), (6, 1))
    np.testing.assert_allclose(whitening(same, same), 10 * np.eye(4), rtol=1e-4)


def test_directions_with_much_common_variance_are_damped() -> None:
    probes, words = cone(500, 6, 2), cone(200, 6, 3)
    matrix = whitening(probes, words)
    common, rare = np.eye(6)[0], np.eye(6)[1]
    assert common @ matrix @ common < 0.4 * (rare @ matrix @ rare)
    t = normalise((common + rare)[None])
    u = t @ matrix
    assert u[0, 0] < 0.4 * u[0, 1]
    np.testing.assert_array_equal(probes, cone(500, 6, 2))  # nothing was changed


def test_only_shapes_of_the_clouds_count_not_their_places_or_sizes() -> None:
    probes, words = cone(60, 4, 4), cone(50, 4, 5)
    moved = whitening((probes * 3 + 7).astype(np.float32), (words * 0.01 - 1).astype(np.float32))
    np.testing.assert_allclose(moved, whitening(probes, words), rtol=1e-3, atol=1e-3)


def test_the_discriminant_separates_a_concept_better_than_its_embedding() -> None:
    """Fisher: of all projections ``(C + alpha I)^-1 t`` has the largest ratio of t's part to the deviation."""
    probes, words = cone(400, 8, 6), cone(400, 8, 7)
    mixed = 0.75 * slow_covariance(probes) + 0.25 * slow_covariance(words) + 0.1 * np.eye(8)
    rng = np.random.default_rng(8)
    for t in normalise(rng.standard_normal((5, 8))).astype(np.float64):

        def ratio(u: np.ndarray, t: np.ndarray = t) -> float:
            return float((t @ u) / np.sqrt(u @ mixed @ u))

        best = ratio(t @ whitening(probes, words).astype(np.float64))
        assert best >= ratio(t)
        assert all(best >= ratio(u) for u in rng.standard_normal((200, 8)))


def test_a_background_brings_the_whitening_of_its_own_words() -> None:
    probes, words = cone(50, 6, 9), cone(30, 6, 10)
    background = Background.describe([f"word {i}" for i in range(30)], words * 5, probes, 3)
    assert background.whitening is not None
    np.testing.assert_allclose(background.whitening, whitening(probes, words), rtol=1e-4, atol=1e-5)
    other = Background.describe([f"word {i}" for i in range(30)], cone(30, 6, 11, 0.2), probes, 3).whitening
    assert other is not None
    assert np.abs(other - background.whitening).max() > 0.1


def test_the_whitened_correlation_is_that_with_the_projections_on_the_discriminant() -> None:
    rng = np.random.default_rng(12)
    probes, words = cone(70, 6, 12), cone(40, 6, 13)
    matrix = whitening(probes, words)
    t = normalise(rng.standard_normal((3, 6)))
    concepts = concept_descriptors(t, probes, matrix)
    responses = rng.standard_normal((4, 70))
    z = (responses - responses.mean(1, keepdims=True)) / responses.std(1, keepdims=True)
    centred = probes.astype(np.float64) - probes.mean(0, dtype=np.float64)
    anchor = (z @ centred / 70).astype(np.float32)
    for whitened, directions in ((True, t @ matrix), (False, t)):
        expected = [[np.corrcoef(row, probes @ u)[0, 1] for row in responses] for u in directions]
        np.testing.assert_allclose(correlations(anchor, concepts, whitened), expected, atol=1e-5)
    unwhitened = concept_descriptors(t, probes)
    assert unwhitened.white is None
    np.testing.assert_array_equal(correlations(anchor, unwhitened, True), correlations(anchor, unwhitened, False))


@pytest.mark.parametrize("seed", range(3))
def test_what_all_share_decides_less(seed: int) -> None:
    """Two outputs that share only the common direction correlate less with each other's concept once whitened."""
    probes, words = cone(600, 6, seed, 5.0), cone(300, 6, seed + 50, 5.0)
    concepts = concept_descriptors(
        np.array([[1, 1, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0]], np.float32), probes, whitening(probes, words)
    )
    centred = probes.astype(np.float64) - probes.mean(0, dtype=np.float64)
    anchor = (concepts.z.astype(np.float64) @ centred / 600).astype(np.float32)
    plain, white = correlations(anchor, concepts), correlations(anchor, concepts, True)
    assert plain[0, 1] > 0.8
    assert white[0, 0] - white[0, 1] > plain[0, 0] - plain[0, 1] + 0.1


def test_a_few_words_count_little() -> None:
    probes, words = cone(200, 6, 9), cone(400, 6, 10, spread=0.2)
    alone = np.linalg.inv(slow_covariance(probes) + 0.1 * np.eye(6))
    far = [float(np.abs(whitening(probes, words[:b]) - alone).max()) for b in (12, 50, 400)]
    assert far[0] < far[1] < far[2]
    assert far[0] < 0.2 * far[2]
