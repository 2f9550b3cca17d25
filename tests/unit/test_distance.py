"""Distances and margins against loops written from the formulas."""

from __future__ import annotations

import numpy as np
import pytest

from engine.calibration import Background, background_fingerprint, calibrate, draw_background, percentiles
from engine.descriptors import ConceptDescriptors, concept_descriptors, normalise, output_descriptors
from engine.distance import LAMBDA, METHODS, check_method, correlations, distances, margins, weights
from engine.errors import InputError

N, D, R, M, C, B, K = 60, 12, 9, 14, 5, 40, 10


@pytest.fixture(scope="module")
def world() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "probes": normalise(rng.standard_normal((N, D))),
        "responses": rng.standard_normal((N, M)),
        "concepts": rng.standard_normal((C, D)),
        "background": rng.standard_normal((B, D)),
    }


def slow_standardise(values: np.ndarray) -> np.ndarray:
    return np.array([(v - values.mean()) / values.std() for v in values])


def slow_spread(probes: np.ndarray, words: np.ndarray) -> np.ndarray:
    """The ridged covariance of what is to be told apart, one pair of directions at a time."""

    def covariance(rows: np.ndarray) -> np.ndarray:
        gaps = rows - rows.mean(axis=0)
        whole = sum(np.outer(gap, gap) for gap in gaps) / len(gaps)
        return np.asarray(whole / (np.diag(whole).sum() / len(whole)))

    beta = 0.5 * len(words) / (len(words) + 400)
    return np.asarray((1 - beta) * covariance(probes) + beta * covariance(words) + 0.1 * np.eye(probes.shape[1]))


def slow_margin(world: dict[str, np.ndarray], output: int, concept: np.ndarray, method: str) -> float:
    """The margin straight from the design, one output and one concept, all in float64."""
    probes = world["probes"].astype(np.float64)
    z_l = slow_standardise(world["responses"][:, output])
    kept = sorted(range(N), key=lambda i: (-z_l[i], i))[:R]

    words = np.stack([b / np.linalg.norm(b) for b in world["background"]])
    spread = slow_spread(probes, words)

    def parts(text: np.ndarray) -> tuple[float, float]:
        unit = text / np.linalg.norm(text)
        z_c = slow_standardise(probes @ unit)
        compared = z_c
        if method == "whitened":
            compared = slow_standardise(probes @ np.linalg.solve(spread, unit))
        total = 0.0
        for i in kept:
            w = 1.0 if method == "probelog" else (max(z_l[i], 0.0) / max(z_l[j] for j in kept)) ** 3
            total += w * (z_l[i] - z_c[i]) ** 2
        return float(np.sqrt(total)), float((z_l * compared).mean())

    d, rho = parts(concept)
    background = [parts(b) for b in world["background"]]
    near = sorted(b[0] for b in background)
    h = np.mean(near[:K])
    if method in {"weighted", "probelog"}:
        return float(h - d)
    s, q = np.std(near), np.std([b[1] for b in background])
    g = np.mean(sorted((b[1] for b in background), reverse=True)[:K])
    if method == "whitened":
        moment = sum(z_l[i] ** 4 for i in kept) / N
        return float((h - d) / s + (rho - g) / q - 0.4 * np.log(moment / 5))
    return float((h - d) / s + LAMBDA * (rho - g) / q)


@pytest.mark.parametrize("method", METHODS)
def test_margins_agree_with_the_slow_form(world: dict[str, np.ndarray], method: str) -> None:
    made = output_descriptors(world["responses"], world["probes"], R)
    background = Background.describe(tuple(map(str, range(B))), world["background"], world["probes"], K)
    constants = calibrate(made.idx, made.z, made.anchor, background)
    concepts = concept_descriptors(world["concepts"], world["probes"], background.whitening)
    got = margins(made.idx, made.z, made.anchor, constants, concepts, check_method(method))
    expected = [[slow_margin(world, m, world["concepts"][c], method) for m in range(M)] for c in range(C)]
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_distance_by_hand() -> None:
    idx = np.array([[2, 0]], np.uint16)
    z = np.array([[2.0, 1.0]], np.float32)
    z_c = np.array([[0.5, 9.0, -1.0]], np.float32)
    # gaps 2 - (-1) = 3 and 1 - 0.5 = 0.5
    assert distances(idx, z, z_c, "probelog")[0, 0] == pytest.approx(np.sqrt(9 + 0.25))
    # weights 1 and (1/2)^3
    assert distances(idx, z, z_c, "weighted")[0, 0] == pytest.approx(np.sqrt(9 + 0.25 / 8))


def test_negative_responses_weigh_nothing() -> None:
    z = np.array([[2.0, -1.0]], np.float32)
    assert weights(z, "weighted").tolist() == [[1.0, 0.0]]
    assert weights(z, "probelog").tolist() == [[1.0, 1.0]]


def test_linear_form_equals_the_distance(world: dict[str, np.ndarray]) -> None:
    made = output_descriptors(world["responses"], world["probes"], R)
    concept = concept_descriptors(world["concepts"], world["probes"]).z[0].astype(np.float64)
    w = weights(made.z, "weighted").astype(np.float64)
    d = distances(made.idx, made.z, concept[None].astype(np.float32), "weighted")[0]
    h = 5.0
    at = concept[made.idx]
    inner = (w * made.z * 2 * at).sum(1) + (w * -(at**2)).sum(1) + h**2 - (w * made.z.astype(np.float64) ** 2).sum(1)
    np.testing.assert_allclose(inner, h**2 - d.astype(np.float64) ** 2, atol=1e-4)


def test_blocks_do_not_change_distances(world: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    made = output_descriptors(world["responses"], world["probes"], R)
    concepts = concept_descriptors(world["concepts"], world["probes"])
    whole = distances(made.idx, made.z, concepts.z, "weighted")
    monkeypatch.setattr("engine.distance._BLOCK", 1)
    assert (distances(made.idx, made.z, concepts.z, "weighted") == whole).all()


def test_arrays_given_are_not_changed(world: dict[str, np.ndarray]) -> None:
    made = output_descriptors(world["responses"], world["probes"], R)
    concepts = concept_descriptors(world["concepts"], world["probes"])
    copies = made.z.copy(), concepts.z.copy()
    distances(made.idx, made.z, concepts.z, "weighted")
    assert (made.z == copies[0]).all()
    assert (concepts.z == copies[1]).all()


def test_percentile_counts_the_background_that_does_as_well(world: dict[str, np.ndarray]) -> None:
    made = output_descriptors(world["responses"], world["probes"], R)
    described = concept_descriptors(world["background"], world["probes"])
    background = Background(tuple(map(str, range(B))), described, K)
    constants = calibrate(made.idx, made.z, made.anchor, background)
    for method in METHODS:
        own = margins(made.idx, made.z, made.anchor, constants, described, method)
        for place in (0, 7, B - 1):
            falling = np.vstack([own.max(axis=0) + 1, np.sort(own, axis=0)[::-1]])
            value = falling[place : place + 2].mean(axis=0)  # between two: `place` background concepts do better
            got = percentiles(made.idx, made.z, made.anchor, constants, value, background, method)
            np.testing.assert_allclose(got, 100 * (1 + place) / (1 + B), atol=1e-9)


def test_k_changes_the_hubness(world: dict[str, np.ndarray]) -> None:
    made = output_descriptors(world["responses"], world["probes"], R)
    described = concept_descriptors(world["background"], world["probes"])
    names = tuple(map(str, range(B)))
    few = calibrate(made.idx, made.z, made.anchor, Background(names, described, 1))
    many = calibrate(made.idx, made.z, made.anchor, Background(names, described, 20))
    assert (few.h < many.h).all()
    assert (few.g > many.g).all()
    np.testing.assert_array_equal(few.s, many.s)


def test_equal_background_does_not_divide_by_zero() -> None:
    rng = np.random.default_rng(0)
    probes = normalise(rng.standard_normal((N, D)))
    same = np.tile(rng.standard_normal((1, D)), (12, 1))
    made = output_descriptors(rng.standard_normal((N, 3)), probes, R)
    constants = calibrate(
        made.idx, made.z, made.anchor, Background(tuple(map(str, range(12))), concept_descriptors(same, probes), 10)
    )
    assert (constants.s > 0).all()
    assert (constants.q > 0).all()


def test_background_needs_more_than_k() -> None:
    z = np.zeros((5, 4), np.float32)
    with pytest.raises(InputError, match="5 phrases"):
        Background(tuple("abcde"), ConceptDescriptors(z, z, np.ones(5, np.float32)), 10)


def test_background_is_drawn_by_seed_without_barred_names() -> None:
    first = draw_background(50, seed=1)
    assert first == draw_background(50, seed=1)
    assert first != draw_background(50, seed=2)
    assert len(set(first)) == 50
    again = draw_background(50, seed=1, without=[first[0].upper()])
    assert first[0] not in again
    with pytest.raises(InputError, match="only"):
        draw_background(10**6)
    assert background_fingerprint(first) != background_fingerprint(first[::-1])
    assert background_fingerprint(first, 10) != background_fingerprint(first, 5)


def test_unknown_method_is_refused() -> None:
    with pytest.raises(InputError, match="use one of whitened"):
        check_method("cosine")


def test_correlations_shape() -> None:
    z = np.zeros((2, 3), np.float32)
    concepts = ConceptDescriptors(np.eye(2, 3, dtype=np.float32), z, np.full(2, 0.5, np.float32))
    assert correlations(np.ones((4, 3), np.float32), concepts).tolist() == [[2.0] * 4] * 2
