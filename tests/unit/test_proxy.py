"""Proxies of performance gaps, and the correlation of models, against numbers worked out the slow way."""

from __future__ import annotations

import json
import math
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cosine, jensenshannon
from scipy.stats import pearsonr, rankdata, spearmanr

from engine.errors import InputError
from engine.performance import PerformanceTable
from engine.profiles import ImageProfiles
from query.evaluate.proxy import (
    correlation,
    gaps,
    model_correlation,
    proxy_reliability,
    tower_family,
)

TASKS = ("a", "b", "c", "d", "e")
VIT = tuple(f"visual.transformer.resblocks.{i}" for i in range(3))


def profiles_of(model: str, rng: np.random.Generator, tasks: tuple[str, ...] = TASKS, d: int = 3) -> ImageProfiles:
    return ImageProfiles(model, VIT[:d], {task: rng.gamma(2.0, 1.0, (4, d)) for task in tasks})


def by_model(*profiles: ImageProfiles) -> dict[str, ImageProfiles]:
    return {own.model: own for own in profiles}


def constant(model: str) -> ImageProfiles:
    return ImageProfiles(model, VIT, {task: np.ones((2, 3)) for task in TASKS})


@pytest.fixture
def small() -> tuple[PerformanceTable, dict[str, ImageProfiles]]:
    rng = np.random.default_rng(3)
    profiles = [profiles_of(f"m{i}", rng) for i in range(4)]
    table = PerformanceTable(tuple(p.model for p in profiles), TASKS, rng.uniform(0.1, 0.9, (4, 5)))
    return table, by_model(*profiles)


def slow_dcd(target: Any, source: Any, eta: float) -> float:
    powers = [math.exp(eta * v / max(target)) for v in target]
    relative = [abs(t - s) / (t + 1e-8) for t, s in zip(target, source, strict=True)]
    return sum(p / sum(powers) * r for p, r in zip(powers, relative, strict=True))


def test_gaps_are_those_of_the_definitions() -> None:
    rng = np.random.default_rng(0)
    v = rng.gamma(2.0, 1.0, (4, 6))
    dcd, cos, jsd = (gaps(name, v, 2.0) for name in ("dcd", "cosine", "jsd"))
    for t in range(4):
        for s in range(4):
            assert dcd[t, s] == pytest.approx(slow_dcd(v[t], v[s], 2.0), abs=1e-12)
            assert cos[t, s] == pytest.approx(cosine(v[t], v[s]), abs=1e-12)
            assert jsd[t, s] == pytest.approx(jensenshannon(v[t], v[s]), abs=1e-12)
    assert abs(dcd - dcd.T).max() > 0.01  # directed
    assert abs(gaps("dcd", v, 0.0) - dcd).max() > 0.01


def test_profiles_of_zeros_have_finite_gaps() -> None:
    v = np.array([[0.0, 0.0], [1.0, 3.0]])
    np.testing.assert_allclose(gaps("cosine", v), [[1, 1], [1, 0]], atol=1e-12)
    uniform = np.array([[0.5, 0.5], [0.25, 0.75]])
    np.testing.assert_allclose(gaps("jsd", v)[0, 1], jensenshannon(*uniform))


@pytest.mark.parametrize("gap", ["accuracy", "rank"])
def test_reliability_is_spearman_over_pairs(small: Any, gap: Any) -> None:
    table, profiles = small
    text = np.random.default_rng(9).normal(size=(5, 7))
    report = proxy_reliability(table, profiles, gap, eta=1.5, text=text)
    achieved = table.values
    if gap == "rank":
        achieved = np.stack([rankdata(-column) for column in table.values.T], axis=1)
    for i, (own, found) in enumerate(zip(profiles.values(), report.models, strict=True)):
        mean = [own.images[task].mean(axis=0) for task in TASKS]
        a = achieved[i]
        ordered, unordered = list(permutations(range(5), 2)), list(combinations(range(5), 2))
        expected = {
            "dcd": spearmanr(
                [slow_dcd(mean[t], mean[s], 1.5) for t, s in ordered], [abs(a[s] - a[t]) for t, s in ordered]
            ),
            "cosine": spearmanr(
                [cosine(mean[t], mean[s]) for t, s in unordered], [abs(a[s] - a[t]) for t, s in unordered]
            ),
            "jsd": spearmanr(
                [jensenshannon(mean[t], mean[s]) for t, s in unordered], [abs(a[s] - a[t]) for t, s in unordered]
            ),
            "text": spearmanr(
                [cosine(text[t], text[s]) for t, s in unordered], [abs(a[s] - a[t]) for t, s in unordered]
            ),
        }
        for name, result in expected.items():
            assert found.correlations[name] == pytest.approx(result.statistic, abs=1e-9), name
    for proxy in report.proxies:
        values = [own.correlations[proxy.proxy] for own in report.models]
        assert proxy.mean == pytest.approx(np.mean(values))
        assert proxy.sd == pytest.approx(np.std(values, ddof=1))
        assert (proxy.models, proxy.left_out) == (4, {})


def test_a_symmetric_gap_counted_once_or_twice_correlates_the_same(small: Any) -> None:
    table, profiles = small
    apart = gaps("cosine", np.stack([profiles["m0"].mean(task) for task in TASKS]))
    missed = np.abs(table.values[0][:, None] - table.values[0])
    off = ~np.eye(5, dtype=bool)
    twice = spearmanr(apart[off], missed[off]).statistic
    assert proxy_reliability(table, profiles).models[0].correlations["cosine"] == pytest.approx(twice)


def test_a_perfect_proxy_has_reliability_one() -> None:
    """With one block the divergence from T is |v_T - v_S| / v_T: gaps in proportion to it rank alike for each T."""
    values = np.array([0.1, 0.2, 0.4, 0.8])
    own = ImageProfiles("m", ("b0",), {t: np.array([[100 + v]]) for t, v in zip("abcd", values, strict=True)})
    report = proxy_reliability(PerformanceTable(("m",), tuple("abcd"), values[None]), by_model(own))
    assert report.models[0].correlations["dcd"] == pytest.approx(1.0, abs=0.02)
    assert report.models[0].correlations["cosine"] is None  # one block: all directions are the same
    assert report.proxies[1].left_out == {"constant": 1}
    assert (report.proxies[1].mean, report.proxies[1].sd, report.proxies[0].sd) == (None, None, None)


def test_missing_figures_are_left_out_and_counted(small: Any) -> None:
    table, profiles = small
    values = table.values.copy()
    values[0, 2:] = np.nan  # one pair is left
    values[1, 4] = np.nan
    values[2] = np.nan
    holes = PerformanceTable(table.models, TASKS, values)
    report = proxy_reliability(holes, profiles | by_model(constant("stranger")))
    assert report.unknown == ("m2", "stranger")
    assert [own.tasks for own in report.models] == [2, 4, 5]
    assert report.proxies[1].left_out == {"too few pairs": 1}
    assert report.proxies[1].models == 2
    fewer = PerformanceTable(("m1",), TASKS[:4], values[1:2, :4])
    assert report.models[1].correlations == pytest.approx(proxy_reliability(fewer, profiles).models[0].correlations)
    assert "NaN" not in json.dumps(report.model_dump(mode="json"), allow_nan=False)


def test_constant_gaps_are_no_correlation(small: Any) -> None:
    table, profiles = small
    report = proxy_reliability(table, profiles | by_model(constant("m0")))
    assert report.models[0].correlations == {"dcd": None, "cosine": None, "jsd": None}
    assert all(proxy.left_out == {"constant": 1} and proxy.models == 3 for proxy in report.proxies)
    same = PerformanceTable(table.models, TASKS, np.full((4, 5), 0.5))
    assert all(proxy.left_out == {"constant": 4} for proxy in proxy_reliability(same, profiles).proxies)


def test_a_task_without_text_is_left_out_of_the_text_gap_alone(small: Any) -> None:
    table, profiles = small
    text = np.random.default_rng(1).normal(size=(5, 3))
    holed = text.copy()
    holed[4] = np.nan
    with_hole = proxy_reliability(table, profiles, text=holed).models[0].correlations
    four = PerformanceTable(table.models, TASKS[:4], table.values[:, :4])
    assert with_hole["text"] == pytest.approx(
        proxy_reliability(four, profiles, text=text[:4]).models[0].correlations["text"]
    )
    assert with_hole["dcd"] == proxy_reliability(table, profiles).models[0].correlations["dcd"]


def test_ties_decide_rank_gaps() -> None:
    rng = np.random.default_rng(0)
    profiles = by_model(*(profiles_of(f"m{i}", rng) for i in range(3)))
    values = np.array([[0.5, 0.5, 0.1, 0.9, 0.2], [0.5, 0.4, 0.1, 0.9, 0.3], [0.1, 0.5, 0.3, 0.9, 0.2]])
    table = PerformanceTable(("m0", "m1", "m2"), TASKS, values)
    found = [proxy_reliability(table, profiles, "rank", ties=ties).models for ties in ("average", "ordinal")]
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gap": "speed"}, "use accuracy or rank"),
        ({"text": np.ones((4, 2))}, "one row a task"),
        ({"profiles": by_model(constant("x"))}, "import figures"),
    ],
)
def test_what_cannot_be_computed_is_refused(small: Any, change: dict[str, Any], message: str) -> None:
    table, profiles = small
    with pytest.raises(InputError, match=message):
        proxy_reliability(**{"table": table, "profiles": profiles, **change})


def test_correlation_skips_unknown_entries_and_says_why_it_is_none() -> None:
    a, b = np.array([1.0, 2, np.nan, 4, 9]), np.array([2.0, 1, 5, 7, 8])
    keep = [0, 1, 3, 4]
    assert correlation(a, b)[0] == pytest.approx(spearmanr(a[keep], b[keep]).statistic)
    assert correlation(a, b, "pearson")[0] == pytest.approx(pearsonr(a[keep], b[keep]).statistic)
    assert correlation(a[:3], b[:3]) == (None, "too few pairs")
    assert correlation(b, np.full(5, 0.1) + np.array([0, 0, 1e-17, 0, 0])) == (None, "constant")
    with pytest.raises(InputError, match="spearman or pearson"):
        correlation(a, b, "kendall")


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_model_correlation_is_that_of_the_off_diagonal_divergences(kind: Any) -> None:
    rng = np.random.default_rng(5)
    profiles = [profiles_of("m0", rng), profiles_of("m1", rng, d=2), profiles_of("m2", rng, TASKS[1:])]
    told: list[tuple[int, int]] = []
    report = model_correlation(by_model(*profiles), 1.0, kind, progress=lambda done, total: told.append((done, total)))
    measure = spearmanr if kind == "spearman" else pearsonr
    for i in range(3):
        for j in range(3):
            shared = [task for task in TASKS if task in profiles[i].images and task in profiles[j].images]
            ours, theirs = (
                [slow_dcd(own.mean(t), own.mean(s), 1.0) for t, s in permutations(shared, 2)]
                for own in (profiles[i], profiles[j])
            )
            assert report.matrix[i][j] == pytest.approx(measure(ours, theirs).statistic, abs=1e-9)
    assert report.families[0] == report.families[2] != report.families[1]
    assert report.within == report.matrix[0][2]
    first, second = report.matrix[0][1], report.matrix[2][1]
    assert first is not None
    assert second is not None
    assert report.across == pytest.approx((first + second) / 2)
    assert (report.pairs_within, report.pairs_across) == (1, 2)
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_model_to_which_all_tasks_are_alike_correlates_with_none() -> None:
    rng = np.random.default_rng(5)
    report = model_correlation(
        by_model(profiles_of("m0", rng), constant("same"), profiles_of("far", rng, tuple("xyz")))
    )
    assert report.matrix[0][1] is None
    assert report.matrix[0][0] == 1.0
    assert report.left_out == {"constant": 1, "too few pairs": 2}
    assert (report.within, report.pairs_within) == (None, 0)
    json.dumps(report.model_dump(mode="json"), allow_nan=False)
    with pytest.raises(InputError, match="at least two"):
        model_correlation(by_model(constant("one")))


def test_families_are_blocks_without_their_numbers_unless_given() -> None:
    assert tower_family(VIT) == "visual.transformer.resblocks.* x3"
    assert tower_family(VIT[:2]) != tower_family(VIT)
    assert tower_family([f"visual.layer{i}" for i in range(1, 5)]) == "visual.layer* x4"
    rng = np.random.default_rng(5)
    profiles = by_model(profiles_of("m0", rng), profiles_of("m1", rng))
    report = model_correlation(profiles, families={"m0": "left", "m1": "right"})
    assert report.families == ("left", "right")
    assert (report.within, report.pairs_across) == (None, 1)
