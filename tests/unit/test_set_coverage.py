"""Set coverage against a slow reference; its bounds against many samples of populations that are known whole."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from engine.errors import InputError
from engine.profiles import ImageProfiles
from engine.transfer import divergence, importance
from query.evaluate import set_coverage as module
from query.evaluate.set_coverage import (
    coverage_distances,
    coverage_report,
    deviation_at,
    deviation_bound,
    expected_coverage_bound,
    set_coverage,
    uncovered_probability,
)

BLOCKS = ("b0", "b1", "b2")
SHARES = np.linspace(0.02, 0.6, 30)


def slow_distances(target: Any, source: Any, alpha: Any) -> list[float]:
    return [
        min(sum(a * abs(p - q) / (abs(p) + 1e-8) for a, p, q in zip(alpha, x, y, strict=True)) for y in source)
        for x in target
    ]


def images(count: int, seed: int, scale: float = 1.0) -> Any:
    return np.random.default_rng(seed).gamma(3.0, scale, (count, 3))


def test_distances_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = images(7, 0), images(5, 1)
    alpha = importance(x.mean(axis=0), 3.0)
    expected = slow_distances(x, y, alpha)
    np.testing.assert_allclose(coverage_distances(x, y, 3.0), expected, rtol=1e-12)
    assert set_coverage(x, y, 3.0) == pytest.approx(sum(expected) / 7)
    given = np.array([0.7, 0.3, 0.0])
    np.testing.assert_allclose(coverage_distances(x, y, 3.0, given), slow_distances(x, y, given), rtol=1e-12)
    monkeypatch.setattr(module, "_CHUNK", 20)  # one target image at a time
    np.testing.assert_allclose(coverage_distances(x, y, 3.0), expected, rtol=1e-12)


def test_it_is_zero_where_all_is_covered_and_directed() -> None:
    x = images(6, 0)
    more = np.concatenate([x, images(20, 1, 2.0)])
    assert set_coverage(x, more) == 0.0
    assert set_coverage(more, x) > 0.1


def test_one_image_each_is_the_divergence_of_profiles() -> None:
    x, y = images(1, 0), images(1, 1)
    assert set_coverage(x, y, 2.0) == pytest.approx(divergence(x[0], y, 2.0)[0], rel=1e-12)


def test_eta_decides_and_more_source_images_never_harm() -> None:
    x, y = images(6, 0), images(30, 1)
    assert abs(set_coverage(x, y, 0.0) - set_coverage(x, y, 8.0)) > 1e-3
    found = [set_coverage(x, y[:m]) for m in (1, 3, 10, 30)]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize(
    ("target", "source"),
    [((2, 3), (2, 4)), ((0, 3), (2, 3)), ((2, 3), (0, 3)), ((3,), (2, 3))],
)
def test_images_that_do_not_fit_are_refused(target: tuple[int, ...], source: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="one row an image"):
        set_coverage(np.ones(target), np.ones(source))


def test_an_importance_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="importance of shape"):
        set_coverage(np.ones((2, 3)), np.ones((2, 3)), alpha=np.ones(2))


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("n", [5, 20])
@pytest.mark.parametrize("two_points", [True, False])
def test_the_deviation_bound_holds_for_samples_of_a_known_population(n: int, two_points: bool, replace: bool) -> None:
    """Samples of a population of 40 target images, alpha and source fixed; two far points are the hardest case."""
    if two_points:
        c = np.repeat([0.0, 1.0], 20)
    else:
        population, source = images(40, 0), images(10, 1, 1.3)
        c = coverage_distances(population, source, alpha=importance(population.mean(axis=0)))
    largest, truth = c.max(), c.mean()
    rng = np.random.default_rng(2)
    draws = 20_000
    samples = rng.integers(0, len(c), (draws, n)) if replace else rng.random((draws, len(c))).argsort(axis=1)[:, :n]
    off = np.abs(c[samples].mean(axis=1) - truth)
    bounds = np.array([deviation_bound(n, share * largest, largest) for share in SHARES])
    frequency = np.array([(off >= share * largest).mean() for share in SHARES])
    assert (frequency <= bounds).all()
    assert (bounds < 0.5).any()  # not vacuous
    assert frequency.max() > 0.1  # and something did deviate
    if two_points and replace:
        # A bound with four times the exponent is broken here: the test can fail.
        assert (frequency > np.minimum(1, 2 * np.exp(-8 * n * SHARES**2))).any()


def test_the_deviation_bound_by_hand() -> None:
    assert deviation_bound(50, 0.2, 1.0) == pytest.approx(2 * math.exp(-4))
    assert deviation_bound(50, 0.4, 2.0) == pytest.approx(2 * math.exp(-4))
    assert deviation_bound(1, 0.0, 1.0) == 1.0
    t = deviation_at(25, 0.05, 3.0)
    assert t == pytest.approx(3 * math.sqrt(math.log(40) / 50))
    assert deviation_bound(25, t, 3.0) == pytest.approx(0.05)
    assert deviation_at(100, 0.05, 3.0) == pytest.approx(t / 2)


@pytest.mark.parametrize("m", [1, 4, 12])
def test_source_samples_miss_an_image_as_often_as_the_formula_says(m: int) -> None:
    """The share of samples with no image near x is (1 - p)^m drawn with replacement, and no more without."""
    x, population = images(1, 3), images(60, 4)
    alpha = importance(x[0])
    d = np.array([slow_distances(x, population[j : j + 1], alpha)[0] for j in range(60)])
    radius = float(np.quantile(d, 0.15))
    near = d <= radius
    expected = uncovered_probability(np.array([near.mean()]), m)[0]
    rng = np.random.default_rng(5)
    independent = rng.integers(0, 60, (20_000, m))
    missed = (~near[independent].any(axis=1)).mean()
    assert missed == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 20_000))
    apart = rng.random((20_000, 60)).argsort(axis=1)[:, :m]
    assert (~near[apart].any(axis=1)).mean() <= expected + 4 * math.sqrt(0.25 / 20_000)
    assert math.comb(60 - int(near.sum()), m) / math.comb(60, m) <= expected + 1e-12


@pytest.mark.parametrize("m", [2, 10, 40])
def test_the_expected_divergence_to_sampled_sources_is_below_its_bound(m: int) -> None:
    target, population = images(8, 6), images(50, 7)
    alpha = importance(target.mean(axis=0))
    d = np.array([slow_distances(target, population[j : j + 1], alpha) for j in range(50)]).T
    largest = float(d.max())
    rng = np.random.default_rng(8)
    sampled = np.mean([d[:, rng.integers(0, 50, m)].min(axis=1).mean() for _ in range(4000)])
    bounds = []
    for radius in np.linspace(0, largest, 15):
        mass = (d <= radius).mean(axis=1)
        bounds.append(expected_coverage_bound(mass, m, radius, largest))
        assert sampled <= bounds[-1] + 1e-9
    assert min(bounds) < largest * 0.8
    assert bounds[-1] == pytest.approx(largest)


def test_the_source_formulas_by_hand() -> None:
    np.testing.assert_allclose(uncovered_probability(np.array([0.0, 0.5, 1.0]), 3), [1, 0.125, 0])
    assert expected_coverage_bound(np.array([0.5, 1.0]), 2, 0.1, 1.1) == pytest.approx((0.1 + 0.25 + 0.1) / 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda: deviation_bound(0, 0.1, 1.0),
        lambda: deviation_bound(5, -0.1, 1.0),
        lambda: deviation_bound(5, 0.1, 0.0),
        lambda: deviation_at(5, 0.0, 1.0),
        lambda: deviation_at(5, 1.5, 1.0),
        lambda: uncovered_probability(np.array([1.5]), 3),
        lambda: uncovered_probability(np.array([np.nan]), 3),
        lambda: uncovered_probability(np.array([0.5]), 0),
        lambda: expected_coverage_bound(np.array([0.5]), 3, 2.0, 1.0),
        lambda: coverage_report({}),
        lambda: coverage_report({"m": ImageProfiles("m", BLOCKS, {"a": np.ones((1, 3))})}, draws=0),
        lambda: coverage_report({"m": ImageProfiles("m", BLOCKS, {"a": np.ones((1, 3))})}, images=0),
    ],
)
def test_arguments_out_of_their_range_are_refused(call: Any) -> None:
    with pytest.raises(InputError):
        call()


def profiles() -> dict[str, ImageProfiles]:
    made = [
        ImageProfiles("m0", BLOCKS, {"a": images(6, 0), "b": images(4, 1), "c": images(5, 2, 2.0)}),
        ImageProfiles("m1", BLOCKS[:2], {"a": images(6, 3)[:, :2], "c": images(5, 4)[:, :2], "d": images(3, 5)[:, :2]}),
    ]
    return {own.model: own for own in made}


def test_the_report_has_all_pairs_of_tasks() -> None:
    told: list[tuple[int, int]] = []
    first, second = profiles().values()
    report = coverage_report(profiles(), 1.0, progress=lambda done, total: told.append((done, total)))
    assert report.tasks == ("a", "b", "c", "d")
    assert told == [(1, 2), (2, 2)]
    for i, t in enumerate(report.tasks):
        for j, s in enumerate(report.tasks):
            both = [p for p in (first, second) if t in p.images and s in p.images]
            if both:
                expected = np.mean([set_coverage(p.images[t], p.images[s], 1.0) for p in both])
                assert report.divergences[i][j] == pytest.approx(expected, rel=1e-9, abs=1e-12)
            else:
                assert report.divergences[i][j] is None
    assert (report.divergences[0][0], report.divergences[1][3]) == (0.0, None)
    pairs = [(t, s) for t in "abc" for s in "abc" if t != s]
    values = [set_coverage(first.images[t], first.images[s], 1.0) for t, s in pairs]
    gaps = [divergence(first.mean(t), first.mean(s)[None], 1.0)[0] for t, s in pairs]
    assert report.models[0].mean == pytest.approx(np.mean(values))
    assert report.models[0].agreement == pytest.approx(spearmanr(values, gaps).statistic)
    json.dumps(report.model_dump(mode="json"), allow_nan=False)


def test_the_reports_samples_stay_below_the_bound() -> None:
    report = coverage_report(profiles(), images=10, draws=3000, seed=1)
    assert [point.share for point in report.tail] == list(module.TAIL_SHARES)
    for point in report.tail:
        assert point.bound == deviation_bound(10, point.share, 1.0)
        assert point.mean <= point.worst <= point.bound
    assert report.tail[0].worst > 0.1
    assert report.tail == coverage_report(profiles(), images=10, draws=3000, seed=1).tail
    assert report.tail != coverage_report(profiles(), images=10, draws=3000, seed=2).tail
    assert report.tail[0].mean > coverage_report(profiles(), images=40, draws=3000, seed=1).tail[0].mean


def test_a_model_with_one_task_has_no_pairs() -> None:
    report = coverage_report({"m": ImageProfiles("m", BLOCKS, {"a": images(3, 0)})})
    assert (report.models[0].mean, report.models[0].agreement, report.tail) == (None, None, ())
    assert report.divergences == ((0.0,),)
