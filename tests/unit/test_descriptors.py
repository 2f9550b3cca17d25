"""Descriptors against values worked out by hand and a slow numpy form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.descriptors import (
    are_probabilities,
    centred_log_probabilities,
    concept_descriptors,
    normalise,
    output_descriptors,
    top_responses,
)
from engine.errors import ConceptError, InputError


def test_standardises_over_all_probes_not_only_the_kept() -> None:
    # mean 2, variance (4 + 1 + 0 + 9) / 4 = 3.5 over the four responses 0, 1, 2, 5
    responses = np.array([[0.0], [1.0], [2.0], [5.0]])
    probes = normalise(np.eye(4))
    made = output_descriptors(responses, probes, 2)
    assert made.mean[0] == 2.0
    assert made.std[0] == pytest.approx(np.sqrt(3.5))
    assert made.idx.tolist() == [[3, 2]]
    assert made.z[0] == pytest.approx([3 / np.sqrt(3.5), 0.0])


def test_anchor_by_hand() -> None:
    # two probes e1 and e2, responses 3 and 1: z = (1, -1), mean probe (1/2, 1/2)
    made = output_descriptors(np.array([[3.0], [1.0]]), normalise(np.eye(2)), 1)
    # a = 1/2 [ 1 (1/2, -1/2) - 1 (-1/2, 1/2) ] = (1/2, -1/2)
    assert made.anchor[0] == pytest.approx([0.5, -0.5])


def test_anchor_gives_the_correlation_over_all_probes() -> None:
    rng = np.random.default_rng(0)
    probes = normalise(rng.standard_normal((200, 16)))
    responses = rng.standard_normal((200, 5))
    concept = concept_descriptors(rng.standard_normal((3, 16)), probes)
    made = output_descriptors(responses, probes, 10)
    rho = concept.t @ made.anchor.T / concept.sigma[:, None]
    similarity = probes @ concept.t.T
    for c in range(3):
        for output in range(5):
            expected = np.corrcoef(similarity[:, c], responses[:, output])[0, 1]
            assert rho[c, output] == pytest.approx(expected, abs=1e-6)


def test_ties_are_broken_by_probe_order() -> None:
    responses = np.array([[1.0, 3.0, 3.0, 0.0, 3.0, 1.0]])
    assert top_responses(responses, 2).tolist() == [[1, 2]]
    assert top_responses(responses, 4).tolist() == [[1, 2, 4, 0]]


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.lists(st.integers(-3, 3), min_size=7, max_size=7), min_size=1, max_size=4), r=st.integers(1, 7))
def test_top_responses_agree_with_a_stable_sort(rows: list[list[int]], r: int) -> None:
    responses = np.array(rows, dtype=np.float64)
    expected = np.argsort(-responses, axis=1, kind="stable")[:, :r]
    assert (top_responses(responses, r) == expected).all()


def test_useless_outputs_are_left_out_with_the_reason() -> None:
    rng = np.random.default_rng(0)
    responses = rng.standard_normal((30, 5)).astype(np.float32)
    responses[:, 1] = 7.5
    responses[3, 2] = np.nan
    responses[4, 3] = np.inf
    made = output_descriptors(responses, normalise(rng.standard_normal((30, 4))), 5)
    assert made.output.tolist() == [0, 4]
    assert [(left.output, left.reason) for left in made.left_out] == [(1, "constant"), (2, "NaN"), (3, "infinite")]


def test_rounding_noise_on_a_large_constant_is_constant() -> None:
    responses = np.full((50, 1), 1000.0, np.float32)
    responses[::2] = np.nextafter(np.float32(1000), np.float32(2000))
    made = output_descriptors(responses, normalise(np.random.default_rng(0).standard_normal((50, 3))), 5)
    assert made.left_out[0].reason == "constant"
    assert made.z.shape == (0, 5)


def test_many_outputs_in_chunks_equal_one_by_one() -> None:
    rng = np.random.default_rng(3)
    probes = normalise(rng.standard_normal((40, 6)))
    responses = rng.standard_normal((40, 600)).astype(np.float32)
    whole = output_descriptors(responses, probes, 7)
    for output in (0, 255, 256, 599):
        alone = output_descriptors(responses[:, output : output + 1], probes, 7)
        assert (whole.idx[output] == alone.idx[0]).all()
        np.testing.assert_allclose(whole.anchor[output], alone.anchor[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("shape", "r"), [((5, 1), 0), ((5, 1), 6), ((4, 1), 2)])
def test_bad_shapes_are_refused(shape: tuple[int, int], r: int) -> None:
    with pytest.raises(InputError):
        output_descriptors(np.zeros(shape), normalise(np.eye(5)), r)


def test_sixty_five_thousand_probes_fit() -> None:
    n = 65_535
    rng = np.random.default_rng(0)
    made = output_descriptors(np.arange(n, dtype=np.float32)[:, None], normalise(rng.standard_normal((n, 2))), 3)
    assert made.idx[0].tolist() == [65_534, 65_533, 65_532]
    with pytest.raises(InputError, match="65535"):
        output_descriptors(np.zeros((n + 1, 1), np.float32), np.ones((n + 1, 2), np.float32), 3)


def test_concepts_are_standardised() -> None:
    rng = np.random.default_rng(0)
    made = concept_descriptors(rng.standard_normal((2, 8)) * 5, normalise(rng.standard_normal((90, 8))))
    np.testing.assert_allclose(made.z.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(made.z.std(1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(made.t, axis=1), 1, atol=1e-6)


def test_a_concept_equally_far_from_all_probes_is_refused() -> None:
    probes = np.tile(normalise(np.ones((1, 3))), (10, 1))
    with pytest.raises(ConceptError):
        concept_descriptors(np.ones((1, 3)), probes)


def test_zero_and_nan_embeddings_are_refused() -> None:
    with pytest.raises(InputError):
        normalise(np.zeros((1, 3)))
    with pytest.raises(InputError):
        normalise(np.array([[np.nan, 1.0]]))


def test_probabilities_are_recognised() -> None:
    logits = np.random.default_rng(0).standard_normal((20, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert are_probabilities(p.astype(np.float32))
    assert not are_probabilities(logits)
    assert not are_probabilities(p * 0.9)
    assert not are_probabilities(np.ones((20, 1)))  # one output that always says 1 is no distribution over classes


def test_centred_log_probabilities_by_hand() -> None:
    got = centred_log_probabilities(np.array([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]))
    # logs in units of log 2: -1, -2, -2, their mean -5/3
    assert got[0] == pytest.approx(np.log(2) * np.array([2 / 3, -1 / 3, -1 / 3]), abs=1e-6)
    assert np.isfinite(got).all()
    half = centred_log_probabilities(np.array([[0.8, 0.2]]))
    assert got.dtype == np.float32
    assert half[0, 0] == pytest.approx(np.log(0.8 / 0.2) / 2)  # two outputs: half the log-odds


def test_centred_log_probabilities_of_a_softmax_are_the_centred_logits() -> None:
    logits = np.random.default_rng(1).standard_normal((30, 6)) * 8
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(
        centred_log_probabilities(p.astype(np.float32)), logits - logits.mean(1, keepdims=True), atol=1e-4
    )


def test_divisive_normalisation_by_hand() -> None:
    """Two outputs over four probes: each probe divided by a power of its spread, then standardised again."""
    probes = normalise(np.random.default_rng(0).standard_normal((4, 3)))
    responses = np.array([[1.0, 4.0], [2.0, 1.0], [3.0, 2.0], [6.0, 9.0]])  # [n, outputs]
    z = [(column - column.mean()) / column.std() for column in responses.T]
    expected = np.zeros((2, 4))
    variance = [((z[0][i] - z[1][i]) / 2) ** 2 for i in range(4)]  # of two numbers
    usual = sum(variance) / 4
    for m in range(2):
        scaled = np.array([z[m][i] / (max(variance[i] / usual, 1e-4) ** 0.5) ** (2 / 102) for i in range(4)])
        expected[m] = (scaled - scaled.mean()) / scaled.std()
    made = output_descriptors(responses, probes, 4, "divisive")
    for m in range(2):
        np.testing.assert_allclose(made.z[m], expected[m][made.idx[m]], atol=1e-6)
        assert (np.diff(made.z[m]) <= 0).all()
        anchor = sum(expected[m][i] * (probes[i] - probes.mean(axis=0)) for i in range(4)) / 4
        np.testing.assert_allclose(made.anchor[m], anchor, atol=1e-6)
    np.testing.assert_allclose(made.mean, responses.mean(axis=0))
    np.testing.assert_allclose(made.std, responses.std(axis=0))
    plain = output_descriptors(responses, probes, 4)
    assert np.abs(plain.z - made.z).max() > 1e-3


def test_divisive_normalisation_quietens_probes_that_excite_every_output() -> None:
    rng = np.random.default_rng(1)
    probes = normalise(rng.standard_normal((50, 8)))
    clean = rng.standard_normal((50, 400))
    loud = clean.copy()
    loud[7] *= 30
    truth = output_descriptors(clean, probes, 10, "none").anchor
    none = output_descriptors(loud, probes, 10, "none").anchor
    divided = output_descriptors(loud, probes, 10, "divisive").anchor
    assert np.abs(divided - truth).mean() < 0.5 * np.abs(none - truth).mean()


def test_left_out_outputs_do_not_disturb_the_normalisation() -> None:
    rng = np.random.default_rng(2)
    probes = normalise(rng.standard_normal((30, 8)))
    responses = rng.standard_normal((30, 12))
    broken = np.concatenate([responses, np.full((30, 1), 3.0), np.full((30, 1), np.nan)], axis=1)
    alone = output_descriptors(responses, probes, 5, "divisive")
    beside = output_descriptors(broken, probes, 5, "divisive")
    np.testing.assert_array_equal(alone.z, beside.z)
    assert len(beside.left_out) == 2


def test_normalisation_of_a_single_output_and_of_equal_ones() -> None:
    probes = normalise(np.random.default_rng(3).standard_normal((6, 4)))
    one = np.random.default_rng(4).standard_normal((6, 1))
    np.testing.assert_allclose(
        output_descriptors(one, probes, 6, "divisive").z, output_descriptors(one, probes, 6).z, atol=1e-6
    )
    same = np.repeat(one, 3, axis=1)
    np.testing.assert_allclose(
        output_descriptors(same, probes, 6, "divisive").z, output_descriptors(same, probes, 6).z, atol=1e-6
    )
