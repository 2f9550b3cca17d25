"""The methods of an evaluation against the engine and against slow references."""

from dataclasses import replace

import numpy as np
import pytest

from engine.calibration import Background, calibrate
from engine.descriptors import concept_descriptors, normalise, output_descriptors
from engine.distance import METHODS as ENGINE_METHODS
from engine.distance import margins, rank
from engine.errors import InputError
from query.evaluate import methods, scorers
from query.evaluate.methods import METHODS, Setting, Workbench
from query.evaluate.scorers import best_outputs, best_places, kept_outputs, score_all
from query.evaluate.zoo import Zoo

L, N, D, C, B = 70, 60, 12, 7, 15
R, K = 9, 4
NAMES = tuple(f"background {i}" for i in range(B))


def make_zoo(responses, probes, starts=(0, 25, 25, L)):
    centred = responses - responses.mean(axis=1, keepdims=True)
    standard = centred / centred.std(axis=1, keepdims=True)
    outputs = len(responses)
    return Zoo(
        standard.astype(np.float32),
        probes,
        tuple(f"org/{i}" for i in range(len(starts) - 1)),
        np.asarray(starts),
        np.arange(outputs),
        (None,) * outputs,
        (frozenset(),) * outputs,
    )


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(1)
    probes = normalise(rng.standard_normal((N, D)))
    raw = 3 + 2 * (rng.standard_normal((L, D)) @ probes.T) + 0.3 * rng.standard_normal((L, N))
    concepts = rng.standard_normal((C, D))
    background = Background.describe(NAMES, rng.standard_normal((B, D)), probes, K)
    concepts = concept_descriptors(concepts, probes, background.whitening)
    return make_zoo(raw, probes), raw, concepts, background


def mean_smallest(values, k):
    return np.sort(values, axis=0)[:k].mean(axis=0)


def slow_distances(zoo, concepts, choose):
    """``sqrt(sum over chosen probes of (z_l - z_c)^2)``, one pair at a time; choose gives the probes of a pair."""
    out = np.zeros((len(concepts), len(zoo)))
    for c, z_c in enumerate(concepts.z.astype(np.float64)):
        for row, z_l in enumerate(zoo.responses.astype(np.float64)):
            probes = choose(z_l, z_c)
            out[c, row] = np.sqrt(((z_l[probes] - z_c[probes]) ** 2).sum())
    return out


CHOICES = {
    "truncated": (lambda z_l, z_c: np.argsort(-z_l)[:R], False),
    "all-probes": (lambda z_l, z_c: np.arange(N), True),
    "all-probes-uncalibrated": (lambda z_l, z_c: np.arange(N), False),
    "top-text": (lambda z_l, z_c: np.argsort(-z_c)[:R], True),
    "top-bottom": (lambda z_l, z_c: np.r_[np.argsort(-z_l)[: R - R // 2], np.argsort(z_l)[: R // 2]], True),
}


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("block", [4_000_000, 65])
def test_distance_baselines_agree_with_slow_references(world, name, block, monkeypatch):
    monkeypatch.setattr(scorers, "_BLOCK", block)  # the small one makes two blocks of outputs
    zoo, _, concepts, background = world
    choose, calibrated = CHOICES[name]
    expected = -slow_distances(zoo, concepts, choose)
    if calibrated:
        expected += mean_smallest(slow_distances(zoo, background.concepts, choose), K)
    scores = Workbench(zoo, background, Setting(R, K)).scorer(name)(concepts)
    assert scores.dtype == np.float32
    assert scores == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("name", ENGINE_METHODS)
@pytest.mark.parametrize("normalisation", ["none", "divisive"])
@pytest.mark.parametrize("calibrated_at_once", [16_384, 30])
def test_engine_methods_are_those_of_an_index(world, name, normalisation, calibrated_at_once, monkeypatch):
    """The zoo keeps only standardised responses; an index would be made from the raw ones."""
    monkeypatch.setattr(methods, "_CALIBRATED", calibrated_at_once)
    zoo, raw, concepts, background = world
    expected = np.empty((C, L))
    for start, stop in ((0, 25), (25, L)):  # an index describes one model at a time
        made = output_descriptors(raw[start:stop].T, zoo.probes, R, normalisation)
        constants = calibrate(made.idx, made.z, made.anchor, background)
        expected[:, start:stop] = margins(made.idx, made.z, made.anchor, constants, concepts, name)
    full = name if normalisation == "none" else f"{name}{methods.DIVISIVE}"
    scorer = Workbench(zoo, background, Setting(R, K)).scorer(full)
    assert scorer(concepts) == pytest.approx(expected, abs=2e-4)
    for found, row in zip(best_outputs(scorer, concepts, 5), expected, strict=True):
        assert found.tolist() == rank(row)[:5].tolist()


def test_kept_outputs_are_the_descriptors_of_an_index(world):
    zoo, raw, _, _ = world
    made = output_descriptors(raw.T, zoo.probes, R)
    idx, z, anchor = kept_outputs(zoo, R)
    assert idx.dtype == np.uint16
    assert (idx == made.idx).all()
    assert z == pytest.approx(made.z, abs=1e-5)
    assert anchor == pytest.approx(made.anchor, abs=1e-5)


def test_cosine_is_of_standardised_responses_and_similarities_as_they_are(world):
    zoo, _, concepts, background = world
    expected = np.zeros((C, L))
    for c in range(C):
        similarity = zoo.probes @ concepts.t[c]
        for row in range(L):
            z = zoo.responses[row]
            expected[c, row] = z @ similarity / np.sqrt((z @ z) * (similarity @ similarity))
    scores = Workbench(zoo, background, Setting()).scorer("cosine")(concepts)
    assert scores == pytest.approx(expected, abs=1e-5)
    other = Workbench(zoo, background, Setting()).scorer("all-probes-uncalibrated")(concepts)
    assert (scores.argsort(axis=1) == other.argsort(axis=1)).all()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_scores_some_outputs_and_single_concepts_alike(world, name):
    zoo, _, concepts, background = world
    scorer = Workbench(zoo, background, Setting(R, K), concepts).scorer(name)
    whole = scorer(concepts)
    assert whole.shape == (C, L)
    rows = np.array([60, 3, 41])
    assert scorer(concepts, rows) == pytest.approx(whole[:, rows], abs=2e-4)
    assert score_all(scorer, concepts, L) == pytest.approx(whole, abs=2e-4)
    assert best_outputs(scorer, concepts, 1)[2][0] == whole[2].argmax()


def test_scores_of_many_concepts_come_in_blocks(world, monkeypatch):
    monkeypatch.setattr(scorers, "_BLOCK", 28)  # two concepts at a time
    zoo, _, concepts, background = world
    scorer = Workbench(zoo, background, Setting(R, K), concepts).scorer("soft-wpmi")
    assert score_all(scorer, concepts, L) == pytest.approx(scorer(concepts), abs=1e-5)


@pytest.mark.parametrize(
    ("change", "unmoved"),
    [
        ({"r": 5}, {"all-probes", "all-probes-uncalibrated", "cosine", "wpmi", "soft-wpmi", "soft-wpmi-100"}),
        ({"k": 2}, {"truncated", "all-probes-uncalibrated", "cosine", "wpmi", "soft-wpmi", "soft-wpmi-100"}),
    ],
)
@pytest.mark.parametrize("name", METHODS)
def test_r_and_k_move_the_methods_that_have_them(world, name, change, unmoved):
    zoo, _, concepts, background = world
    usual = Workbench(zoo, background, Setting(R, K)).scorer(name)(concepts)
    other = Workbench(zoo, background, replace(Setting(R, K), **change)).scorer(name)(concepts)
    assert np.allclose(usual, other) == (name in unmoved)


@pytest.mark.parametrize("name", [*ENGINE_METHODS, "all-probes", "top-text", "top-bottom"])
def test_the_background_moves_calibrated_methods(world, name):
    zoo, _, concepts, background = world
    rng = np.random.default_rng(9)
    other = Background.describe(NAMES, rng.standard_normal((B, D)), zoo.probes, K)
    usual = Workbench(zoo, background, Setting(R, K)).scorer(name)(concepts)
    assert not np.allclose(Workbench(zoo, other, Setting(R, K)).scorer(name)(concepts), usual)


def test_top_bottom_with_one_probe_has_no_bottom(world):
    zoo, _, concepts, background = world
    choose = CHOICES["truncated"][0]
    bench = Workbench(zoo, background, Setting(1, K))
    assert bench.top_and_bottom()[0].tolist() == [[choose(z, None)[0]] for z in zoo.responses]
    assert bench.scorer("top-bottom")(concepts).shape == (C, L)


def test_best_places_keeps_equal_scores_in_order():
    scores = np.array([[1, 3, 3, 0, 3], [0, 0, 0, 0, 0], [1, 2, 3, 4, 5]], dtype=np.float32)
    assert best_places(scores, 2).tolist() == [[1, 2], [0, 1], [4, 3]]
    assert best_places(scores, 9).tolist() == [rank(row).tolist() for row in scores]


def test_what_cannot_be_scored(world):
    zoo, _, _, background = world
    with pytest.raises(InputError, match=r"method 'cosin' is unknown: use one of .*probelog, .*top-bottom"):
        Workbench(zoo, background, Setting()).scorer("cosin")
    for r in (0, N + 1):
        with pytest.raises(InputError, match=f"top r is {r}"):
            Workbench(zoo, background, Setting(r, K)).scorer("probelog")
        with pytest.raises(InputError, match=f"top r is {r}"):
            kept_outputs(zoo, r)
    with pytest.raises(InputError, match="needs more than k = 15"):
        Workbench(zoo, background, Setting(R, B)).scorer("probelog")
    with pytest.raises(InputError, match="k is 0"):
        Workbench(zoo, background, Setting(R, 0)).scorer("probelog")


def test_every_method_is_documented():
    for name in METHODS:
        assert name.removesuffix(methods.DIVISIVE) in ENGINE_METHODS or f"``{name}``" in (methods.__doc__ or "")
