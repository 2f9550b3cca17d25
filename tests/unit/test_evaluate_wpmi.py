"""WPMI and soft WPMI against values worked out by hand and a slow reference."""

from dataclasses import replace
from math import log

import numpy as np
import pytest

from engine.descriptors import ConceptDescriptors
from query.evaluate import wpmi
from query.evaluate.scorers import WpmiScorer, some_concepts
from query.evaluate.wpmi import WpmiSetting
from query.evaluate.zoo import Zoo


def make_zoo(responses, probes):
    outputs = len(responses)
    return Zoo(
        np.asarray(responses, np.float32),
        np.asarray(probes, np.float32),
        ("org/a",),
        np.array([0, outputs]),
        np.arange(outputs),
        (None,) * outputs,
        (frozenset(),) * outputs,
    )


def concepts_of(t):
    t = np.asarray(t, np.float32)
    return ConceptDescriptors(t, np.zeros((len(t), 1), np.float32), np.ones(len(t), np.float32))


@pytest.fixture
def by_hand():
    """Three probes, two outputs, two concepts.

    Similarities log 3, 0 against 0, 0 against 0, log 3 make p(t_1 | x) = 3/4, 1/2, 1/4 at a = 1. The first output's
    top two probes are 0 and 1, the second's are 2 and 0.
    """
    zoo = make_zoo([[1.2, 0.1, -1.3], [0.2, -1.3, 1.1]], [[log(3), 0], [0, 0], [0, log(3)]])
    return zoo, concepts_of(np.eye(2))


def test_wpmi_by_hand(by_hand):
    zoo, concepts = by_hand
    setting = WpmiSetting(top=2, temperature=1.0, lam=1.0, soft=False, floor=0.0)
    # p(t_1 | B): 3/4 1/2 = 12/32 and 1/4 3/4 = 6/32, mean 9/32.
    # p(t_2 | B): 1/4 1/2 = 4/32 and 3/4 1/4 = 6/32, mean 5/32.
    expected = np.log([[12 / 9, 6 / 9], [4 / 5, 6 / 5]])
    assert WpmiScorer(zoo, setting)(concepts) == pytest.approx(expected, abs=1e-6)
    half = np.log([[12 / 32, 6 / 32], [4 / 32, 6 / 32]]) - 0.5 * np.log([[9 / 32], [5 / 32]])
    assert WpmiScorer(zoo, replace(setting, lam=0.5))(concepts) == pytest.approx(half, abs=1e-6)


def test_soft_wpmi_by_hand(by_hand):
    zoo, concepts = by_hand
    setting = WpmiSetting(top=2, temperature=1.0, lam=1.0, soft=True, first=0.8, last=0.4, floor=0.0)
    # p(x in B) is 0.8 and 0.6. First output: (1 - 0.8/4)(1 - 0.6/2) = 0.56 and (1 - 0.8 3/4)(1 - 0.6/2) = 0.28;
    # second: (1 - 0.8 3/4)(1 - 0.6/4) = 0.34 and (1 - 0.8/4)(1 - 0.6 3/4) = 0.44; means 0.45 and 0.36.
    expected = np.log([[56 / 45, 34 / 45], [28 / 36, 44 / 36]])
    assert WpmiScorer(zoo, setting)(concepts) == pytest.approx(expected, abs=1e-6)


def slow(similarity, responses, setting):
    """The equations, one output and one concept at a time."""
    scaled = np.exp(setting.temperature * similarity)
    p = scaled / scaled.sum(axis=0)
    likelihood = np.zeros((len(similarity), len(responses)))
    for output, response in enumerate(responses):
        for place, i in enumerate(np.argsort(-response, kind="stable")[: setting.top]):
            for j in range(len(similarity)):
                if setting.soft:
                    member = setting.first - place / setting.top * (setting.first - setting.last)
                    likelihood[j, output] += log(1 + member * (p[j, i] - 1) + setting.floor)
                else:
                    likelihood[j, output] += log(p[j, i] + setting.floor)
    frequency = np.log(np.exp(likelihood).mean(axis=1, keepdims=True))
    return likelihood - setting.lam * frequency


@pytest.fixture
def drawn():
    rng = np.random.default_rng(3)
    zoo = make_zoo(rng.standard_normal((9, 50)), rng.standard_normal((50, 6)))
    return zoo, concepts_of(0.3 * rng.standard_normal((5, 6)))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("blocks", [(4096, 64), (2, 2)])
def test_agrees_with_the_equations(drawn, soft, blocks, monkeypatch):
    monkeypatch.setattr(wpmi, "_ROWS", blocks[0])
    monkeypatch.setattr(wpmi, "_CONCEPTS", blocks[1])
    zoo, concepts = drawn
    setting = WpmiSetting(top=40, temperature=3.0, lam=0.6, soft=soft)  # more than the factors of one product
    similarity = (concepts.t @ zoo.probes.T).astype(np.float64)
    expected = slow(similarity, zoo.responses, setting)
    assert WpmiScorer(zoo, setting)(concepts) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("soft", [False, True])
def test_every_constant_matters(drawn, soft):
    zoo, concepts = drawn
    setting = WpmiSetting(top=20, temperature=3.0, lam=0.6, soft=soft, floor=1e-3)
    changes = {"top": 10, "temperature": 5.0, "lam": 1.0, "floor": 1e-7}
    if soft:
        changes |= {"first": 0.9, "last": 0.5}
    usual = WpmiScorer(zoo, setting)(concepts)
    for name, value in changes.items():
        assert not np.allclose(WpmiScorer(zoo, replace(setting, **{name: value}))(concepts), usual), name


def test_the_concept_set_is_the_vocabulary(drawn):
    zoo, concepts = drawn
    whole = WpmiScorer(zoo, wpmi.SOFT)(concepts)
    one = some_concepts(concepts, slice(2, 3))
    assert WpmiScorer(zoo, wpmi.SOFT, concepts)(one) == pytest.approx(whole[2:3], abs=1e-5)
    assert WpmiScorer(zoo, wpmi.SOFT, one).within(concepts)(one) == pytest.approx(whole[2:3], abs=1e-5)
    # Alone in its set a concept has probability 1 everywhere, so nothing tells the outputs apart.
    assert WpmiScorer(zoo, wpmi.SOFT)(one) == pytest.approx(np.zeros((1, 9)), abs=1e-4)


def test_some_outputs_share_the_frequency_of_all(drawn):
    zoo, concepts = drawn
    scorer = WpmiScorer(zoo, wpmi.HARD)
    rows = np.array([7, 1])
    assert scorer(concepts, rows) == pytest.approx(scorer(concepts)[:, rows], abs=1e-5)
    other = some_concepts(concepts, slice(1, 4))  # the remembered frequencies are those of other concepts
    assert scorer(other, rows) == pytest.approx(scorer(other)[:, rows], abs=1e-5)


def test_defaults_of_the_published_code():
    assert (wpmi.HARD.top, wpmi.HARD.temperature, wpmi.HARD.lam, wpmi.HARD.soft) == (28, 2, 0.6, False)
    assert (wpmi.SOFT.top, wpmi.SOFT.temperature, wpmi.SOFT.lam, wpmi.SOFT.soft) == (100, 10, 1, True)
    assert (wpmi.SOFT.first, wpmi.SOFT.last, wpmi.SOFT.floor) == (0.998, 0.97, 1e-7)
    assert replace(wpmi.SOFT, temperature=100.0) == wpmi.SOFT_100


def test_improbable_concepts_stay_finite():
    """A hundred factors of 1e-7 are below the smallest float64."""
    zoo = make_zoo(np.random.default_rng(0).standard_normal((3, 120)), np.tile([1.0, 0.0], (120, 1)))
    scores = WpmiScorer(zoo, replace(wpmi.SOFT_100, first=1.0, last=1.0))(concepts_of([[1.0, 0.0], [-1.0, 0.0]]))
    assert np.isfinite(scores).all()
