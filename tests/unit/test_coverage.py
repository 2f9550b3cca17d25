"""Models that cover a list of concepts: held to every permutation of every model's outputs, whichever kernel."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import coverage, coverage_margins
from engine.calibration import Background, calibrate
from engine.coverage import ModelMatch, Require, best_assignment, top_models
from engine.descriptors import ConceptDescriptors, concept_descriptors, normalise, output_descriptors
from engine.distance import METHODS, Method
from engine.errors import InputError
from engine.scan import ScanArrays, exact_margins, pack, top_k

N, D, R = 60, 17, 13
KERNELS = ("numpy", "numba")
BOTH: tuple[Require, ...] = ("all", "any")


def make(sizes: list[int], seed: int, c: int) -> tuple[ScanArrays, np.ndarray, ConceptDescriptors]:
    """Models with so many outputs each, some of which recognise a concept, and c concepts."""
    rng = np.random.default_rng(seed)
    probes = normalise(rng.standard_normal((N, D)))
    whitening = (np.eye(D) + 0.2 * rng.standard_normal((D, D))).astype(np.float32)
    concepts = concept_descriptors(rng.standard_normal((c, D)), probes, whitening)
    rows = sum(sizes)
    responses = rng.standard_normal((rows, N)) + 1.5 * rng.random((rows, 1)) * concepts.z[rng.integers(0, c, rows)]
    made = output_descriptors(responses.T, probes, R)
    others = concept_descriptors(rng.standard_normal((30, D)), probes, whitening)
    background = Background(tuple(map(str, range(30))), others, 10)
    constants = calibrate(made.idx, made.z, made.anchor, background)
    return pack(made.idx, made.z, made.anchor, constants), np.cumsum([0, *sizes]), concepts


def dense(arrays: ScanArrays, concepts: ConceptDescriptors, method: Method) -> np.ndarray:
    everything = np.arange(len(arrays))
    return np.array([exact_margins(arrays, everything, concepts, c, method) for c in range(len(concepts))])


def by_permutations(margins: np.ndarray, require: Require) -> float | None:
    """The best sum of margins over c, by trying every assignment; None where there is none."""
    c, m = margins.shape
    if require == "any":
        margins = np.maximum(np.hstack([margins, np.zeros((c, c))]), 0)  # c outputs that mean "unmatched"
        m += c
    sums = [sum(margins[i, column] for i, column in enumerate(chosen)) for chosen in permutations(range(m), c)]
    return max(sums) / c if sums else None


def expected_values(
    arrays: ScanArrays, starts: np.ndarray, concepts: ConceptDescriptors, method: Method, require: Require, mask: object
) -> dict[int, float]:
    margins = dense(arrays, concepts, method)
    values = {}
    for model in range(len(starts) - 1):
        rows = np.arange(starts[model], starts[model + 1])
        value = by_permutations(margins[:, rows if mask is None else rows[mask[rows]]], require)  # type: ignore[index]
        if value is not None and (require == "all" or value > 0):
            values[model] = value
    return values


def check(
    found: list[ModelMatch], values: dict[int, float], k: int, margins: np.ndarray, starts: np.ndarray, require: Require
) -> None:
    order = sorted(values, key=lambda model: (-values[model], model))[:k]
    np.testing.assert_allclose([match.margin for match in found], [values[model] for model in order], atol=1e-9)
    for match in found:
        assert match.margin == pytest.approx(values[match.model], abs=1e-9)
        matched = match.rows >= 0
        assert matched.all() or require == "any"
        assert len(set(match.rows[matched].tolist())) == matched.sum()
        assert (np.isnan(match.margins) == ~matched).all()
        assert (match.rows[matched] >= starts[match.model]).all()
        assert (match.rows[matched] < starts[match.model + 1]).all()
        np.testing.assert_allclose(match.margins[matched], margins[matched, match.rows[matched]], atol=1e-12)
        assert match.margin == pytest.approx(np.nansum(match.margins) / len(match.rows), abs=1e-12)
        assert require == "all" or (match.margins[matched] > 0).all()


@pytest.mark.parametrize("require", BOTH)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("method", METHODS)
def test_top_models_are_those_of_every_permutation(method: Method, kernel: str, require: Require) -> None:
    for seed, c, masked in ((0, 1, False), (1, 2, True), (2, 3, False), (3, 3, True), (4, 4, False)):
        rng = np.random.default_rng(seed)
        sizes = [0, *rng.integers(0, 6, 25).tolist(), 1, 0]
        arrays, starts, concepts = make(sizes, seed, c)
        mask = rng.random(len(arrays)) < 0.7 if masked else None
        values = expected_values(arrays, starts, concepts, method, require, mask)
        margins = dense(arrays, concepts, method)
        assert (margins < 0).any()
        assert (margins > 0).any()
        for k in (1, 3, 100):
            found = top_models(
                arrays,
                starts,
                concepts,
                k,
                method,
                require=require,
                mask=mask,
                kernel=kernel,  # type: ignore[arg-type]
            )
            check(found, values, k, margins, starts, require)
            assert mask is None or all(mask[match.rows[match.rows >= 0]].all() for match in found)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), c=st.integers(1, 6), k=st.integers(1, 12), require=st.sampled_from(BOTH))
def test_kernels_agree(seed: int, c: int, k: int, require: Require) -> None:
    sizes = np.random.default_rng(seed).integers(0, 20, 40).tolist()
    arrays, starts, concepts = make(sizes, seed, c)
    for method in METHODS:
        plain = top_models(arrays, starts, concepts, k, method, require=require, kernel="numpy")
        fast = top_models(arrays, starts, concepts, k, method, require=require, kernel="numba")
        assert [match.model for match in plain] == [match.model for match in fast]
        for a, b in zip(plain, fast, strict=True):
            assert a.rows.tolist() == b.rows.tolist()
            assert a.margin == b.margin
            np.testing.assert_array_equal(a.margins, b.margins)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("require", BOTH)
def test_visiting_gives_what_solving_every_model_gives(require: Require, kernel: str) -> None:
    from scipy.optimize import linear_sum_assignment

    sizes = np.random.default_rng(5).integers(8, 40, 300).tolist()
    arrays, starts, concepts = make(sizes, 5, 7)
    for method in METHODS:
        margins = dense(arrays, concepts, method)
        gains = margins if require == "all" else np.maximum(margins, 0)
        values = {}
        for model in range(len(sizes)):
            part = gains[:, starts[model] : starts[model + 1]]
            values[model] = float(part[linear_sum_assignment(part, maximize=True)].sum() / 7)
        found = top_models(arrays, starts, concepts, 20, method, require=require, kernel=kernel)  # type: ignore[arg-type]
        check(found, values, 20, margins, starts, require)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("method", METHODS)
def test_bounds_lie_above_and_few_models_are_visited(
    method: Method, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = np.random.default_rng(6).integers(1, 30, 400).tolist()
    arrays, starts, concepts = make(sizes, 6, 4)
    margins = coverage.make_margins(arrays, concepts, method, kernel)  # type: ignore[arg-type]
    models = np.arange(len(sizes))
    best = np.maximum.reduceat(dense(arrays, concepts, method), starts[:-1], axis=1)
    for floor in (-np.inf, 0.0):
        bounds = margins.bounds(starts, models, np.diff(starts), None, floor, np.inf)
        ordered = np.sort(np.maximum(best, floor), axis=0)[::-1]
        truth = np.where(np.arange(4)[:, None] < np.diff(starts), ordered, 0).sum(axis=0) / 4  # no more than outputs
        assert (bounds >= truth).all()
        assert (bounds <= truth + 0.5).all()
    visited: list[int] = []
    independent = coverage._independent
    monkeypatch.setattr(
        coverage, "_independent", lambda m, s, wave, *rest: (visited.extend(wave), independent(m, s, wave, *rest))[1]
    )
    top_models(arrays, starts, concepts, 3, method, kernel=kernel)  # type: ignore[arg-type]
    assert 3 <= len(visited) < 100
    assert len(set(visited)) == len(visited)


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_concept_is_the_scan_reduced_to_the_best_output_of_each_model(kernel: str) -> None:
    arrays, starts, concepts = make([3, 1, 7, 0, 12, 2, 9] * 5, 7, 1)
    for method in METHODS:
        rows, margins = top_k(arrays, concepts, len(arrays), method)[0]
        places = np.searchsorted(starts, rows, side="right") - 1
        seen = {}
        for place, row, margin in zip(places.tolist(), rows.tolist(), margins.tolist(), strict=True):
            seen.setdefault(place, (place, row, margin))
        for k in (1, 8, 1_000):
            found = top_models(arrays, starts, concepts, k, method, kernel=kernel)  # type: ignore[arg-type]
            assert [(m.model, int(m.rows[0]), m.margin) for m in found] == list(seen.values())[:k]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("require", BOTH)
def test_blocks_and_threads_do_not_change_the_answer(
    require: Require, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays, starts, concepts = make([5, 1, 30, 0, 12, 17, 40] * 4, 8, 9)
    mask = np.random.default_rng(0).random(len(arrays)) < 0.8

    def answer(threads: int) -> list[tuple[int, float, list[int]]]:
        found = top_models(
            arrays,
            starts,
            concepts,
            6,
            "dual",
            require=require,
            mask=mask,
            threads=threads,
            kernel=kernel,  # type: ignore[arg-type]
        )
        return [(match.model, match.margin, match.rows.tolist()) for match in found]

    whole = answer(1)
    assert len(whole) == 6
    assert answer(3) == whole
    assert answer(50) == whole  # more threads than models
    for pairs, rows, wave in ((40, 20, 1), (7, 1, 3), (1, 64, 2)):
        monkeypatch.setattr(coverage, "PAIRS", pairs)
        monkeypatch.setattr(coverage_margins, "PAIRS", pairs)
        monkeypatch.setattr(coverage_margins, "ROWS", rows)
        monkeypatch.setattr(coverage, "WAVE", wave)
        assert answer(2) == whole


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("require", BOTH)
def test_equal_models_come_by_place_and_equal_outputs_are_used_once(require: Require, kernel: str) -> None:
    arrays, _, concepts = make([4], 9, 2)
    twice = ConceptDescriptors(*(np.repeat(part[:1], 2, axis=0) for part in (concepts.t, concepts.z, concepts.sigma)))
    best = int(np.argmax(dense(arrays, twice, "dual")[0]))
    pick = np.concatenate([np.full(3, best), np.tile(np.arange(4), 40)])
    many = ScanArrays(**{name: getattr(arrays, name)[pick] for name in arrays.__dict__})
    starts = np.array([0, 3, *range(7, 164, 4)])
    margins = dense(many, twice, "dual")
    found = top_models(many, starts, twice, 4, "dual", require=require, kernel=kernel)  # type: ignore[arg-type]
    assert [match.model for match in found] == [0, 1, 2, 3]  # the first has the best output three times
    check(found, expected_values(many, starts, twice, "dual", require, None), 4, margins, starts, require)
    assert found[0].margins[0] == found[0].margins[1]
    assert found[1].margin == found[3].margin


def test_few_kept_probes_and_more_concepts_than_a_register_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(make.__globals__, "R", 5)
    arrays, starts, concepts = make([12, 30, 11, 10, 25, 14], 12, 11)
    for method in METHODS:
        plain, fast = (
            top_models(arrays, starts, concepts, 9, method, kernel=kernel)  # type: ignore[arg-type]
            for kernel in KERNELS
        )
        assert len(plain) == 5
        assert [(m.model, m.margin, m.rows.tolist()) for m in plain] == [
            (m.model, m.margin, m.rows.tolist()) for m in fast
        ]


def test_more_concepts_than_outputs() -> None:
    arrays, starts, concepts = make([2, 3, 1, 3], 10, 4)
    for kernel in KERNELS:
        assert top_models(arrays, starts, concepts, 5, "dual", kernel=kernel) == []  # type: ignore[arg-type]
        found = top_models(arrays, starts, concepts, 5, "dual", require="any", kernel=kernel)  # type: ignore[arg-type]
        assert found
        assert all((match.rows == -1).any() for match in found)
        nothing = np.zeros(len(arrays), np.bool_)
        for require in BOTH:
            assert top_models(arrays, starts, concepts, 5, "dual", require=require, mask=nothing) == []  # type: ignore[index]
    with pytest.raises(InputError, match="4 concepts but 3 outputs"):
        best_assignment(np.zeros((4, 3)))


@pytest.mark.parametrize("c", [30, 60])
def test_many_concepts(c: int) -> None:
    """As many concepts as a model has outputs, and half as many: nearly every model needs an assignment."""
    from scipy.optimize import linear_sum_assignment

    arrays, starts, concepts = make([60] * 6 + [20] * 5, 11, c)
    margins = dense(arrays, concepts, "dual")
    values = {}
    for model in range(6):
        part = margins[:, starts[model] : starts[model + 1]]
        values[model] = float(part[linear_sum_assignment(part, maximize=True)].sum() / c)
    for kernel in KERNELS:
        found = top_models(arrays, starts, concepts, 4, "dual", kernel=kernel)  # type: ignore[arg-type]
        check(found, values, 4, margins, starts, "all")


def test_greedy_would_be_wrong() -> None:
    """Concept 0 likes output 0 best, and so does concept 1, which has nothing else."""
    margins = np.array([[5.0, 4.0, 0.0], [4.5, -3.0, -6.0]])
    assert best_assignment(margins)[0].tolist() == [1, 0]  # greedy: 5 - 3 = 2, not 4 + 4.5
    assert best_assignment(margins)[1] == 4.25
    columns, value = best_assignment(np.array([[5.0, -1.0], [3.0, -2.0]]), "any")
    assert columns.tolist() == [0, -1]
    assert value == 2.5
    assert best_assignment(np.array([[5.0, -1.0], [3.0, -2.0]]), "all")[1] == 1.5  # 5 - 2, over 2
    columns, value = best_assignment(np.array([[2.0], [7.0], [0.0]]), "any")
    assert columns.tolist() == [-1, 0, -1]
    assert value == pytest.approx(7 / 3)


def test_pairs_that_must_not_be_matched() -> None:
    never = -np.inf
    assert best_assignment(np.array([[9.0, 1.0], [8.0, never]]))[0].tolist() == [1, 0]
    with pytest.raises(InputError, match="cannot be matched"):
        best_assignment(np.array([[9.0, never], [8.0, never]]))
    with pytest.raises(InputError, match="cannot be matched"):
        best_assignment(np.array([[9.0, 1.0], [never, never]]))
    assert best_assignment(np.array([[9.0, never], [8.0, never]]), "any")[0].tolist() == [0, -1]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 100_000),
    c=st.integers(0, 4),
    m=st.integers(0, 5),
    whole=st.booleans(),
    mode=st.sampled_from(BOTH),
)
def test_best_assignment_is_the_best_permutation(seed: int, c: int, m: int, whole: bool, mode: Require) -> None:
    margins = np.random.default_rng(seed).normal(-0.2, 2, (c, m))
    if whole:
        margins = np.round(margins)  # many ties and zeros
    before = margins.copy()
    if mode == "all" and m < c:
        with pytest.raises(InputError):
            best_assignment(margins, mode)
        return
    columns, value = best_assignment(margins, mode)
    np.testing.assert_array_equal(margins, before)
    matched = np.nonzero(columns >= 0)[0]
    assert value == pytest.approx(by_permutations(margins, mode) if c else 0.0, abs=1e-12)
    assert value * c == pytest.approx(margins[matched, columns[matched]].sum(), abs=1e-12)
    assert len(set(columns[matched].tolist())) == len(matched)
    assert len(matched) == c if mode == "all" else (margins[matched, columns[matched]] > 0).all()


@pytest.mark.parametrize("require", BOTH)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_ceiling_ranks_by_what_counts(require: Require, kernel: str) -> None:
    """Every model solved by permutations over damped margins; without a ceiling another one wins."""
    changed = 0
    for seed in range(6):
        arrays, starts, concepts = make([3, 5, 4, 6, 3, 7, 4, 5], seed, 3)
        exact = dense(arrays, concepts, "dual")
        ceiling = float(np.quantile(exact, 0.8))
        counted = np.minimum(exact, ceiling) + 0.01 * np.maximum(exact - ceiling, 0)
        values = {}
        for model in range(len(starts) - 1):
            value = by_permutations(counted[:, starts[model] : starts[model + 1]], require)
            if value is not None and (require == "all" or value > 0):
                values[model] = value
        found = top_models(arrays, starts, concepts, 4, "dual", require=require, ceiling=ceiling, kernel=kernel)  # type: ignore[arg-type]
        order = sorted(values, key=lambda model: (-values[model], model))[:4]
        assert [match.model for match in found] == order
        for match in found:
            assert match.margin == pytest.approx(np.nansum(match.margins) / 3)
        plain = top_models(arrays, starts, concepts, 4, "dual", require=require, kernel=kernel)  # type: ignore[arg-type]
        changed += [match.model for match in plain] != order
    assert changed
