"""The fast scan is held to the plain form: same rows, same margins, whichever kernel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.calibration import Background, calibrate
from engine.descriptors import ConceptDescriptors, concept_descriptors, normalise, output_descriptors
from engine.distance import METHODS, Method, margins
from engine.scan import ScanArrays, decode_anchors, encode_anchors, pack, top_k

N, D, R = 120, 33, 21
KERNELS = ("numpy", "numba")


def make(rows: int, seed: int, r: int = R) -> tuple[ScanArrays, ConceptDescriptors, dict[Method, np.ndarray]]:
    rng = np.random.default_rng(seed)
    probes = normalise(rng.standard_normal((N, D)))
    made = output_descriptors(rng.standard_normal((N, rows)) ** 3, probes, r)
    background = Background.describe(tuple(map(str, range(30))), rng.standard_normal((30, D)), probes, 10)
    constants = calibrate(made.idx, made.z, made.anchor, background)
    concepts = concept_descriptors(rng.standard_normal((4, D)), probes, background.whitening)
    expected = {m: margins(made.idx, made.z, made.anchor, constants, concepts, m) for m in METHODS}
    return pack(made.idx, made.z, made.anchor, constants), concepts, expected


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("rows", "k"), [(1, 3), (700, 1), (700, 10), (700, 700), (5_000, 25)])
def test_top_k_is_exact(rows: int, k: int, method: Method, kernel: str) -> None:
    arrays, concepts, expected = make(rows, seed=rows + k)
    found = top_k(arrays, concepts, k, method, kernel=kernel)  # type: ignore[arg-type]
    for c, (got_rows, got_margins) in enumerate(found):
        order = np.argsort(-expected[method][c], kind="stable")[:k]
        np.testing.assert_allclose(got_margins, expected[method][c][order], atol=2e-4)
        np.testing.assert_allclose(got_margins, expected[method][c][got_rows], atol=2e-4)
        assert len(set(got_rows.tolist())) == min(k, rows)
        assert (np.diff(got_margins) <= 0).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 300), k=st.integers(1, 40), masked=st.booleans())
def test_kernels_agree_to_the_last_digit(seed: int, rows: int, k: int, masked: bool) -> None:
    arrays, concepts, _ = make(rows, seed)
    mask = np.random.default_rng(seed).random(rows) < 0.5 if masked else None
    for method in METHODS:
        plain = top_k(arrays, concepts, k, method, mask=mask, kernel="numpy")
        fast = top_k(arrays, concepts, k, method, mask=mask, kernel="numba")
        for (a_rows, a_margins), (b_rows, b_margins) in zip(plain, fast, strict=True):
            assert a_rows.tolist() == b_rows.tolist()
            assert a_margins.tolist() == b_margins.tolist()


@pytest.mark.parametrize("kernel", KERNELS)
def test_threads_do_not_change_the_answer(kernel: str) -> None:
    arrays, concepts, _ = make(999, seed=5)
    for method in METHODS:
        alone = top_k(arrays, concepts, 12, method, threads=1, kernel=kernel)  # type: ignore[arg-type]
        many = top_k(arrays, concepts, 12, method, threads=4, kernel=kernel)  # type: ignore[arg-type]
        assert [rows.tolist() for rows, _ in alone] == [rows.tolist() for rows, _ in many]


@pytest.mark.parametrize("kernel", KERNELS)
def test_mask_leaves_the_top_of_the_rest(kernel: str) -> None:
    arrays, concepts, expected = make(400, seed=8)
    mask = np.zeros(400, np.bool_)
    mask[100:137] = True
    rows, _ = top_k(arrays, concepts, 10, "dual", mask=mask, kernel=kernel)[0]  # type: ignore[arg-type]
    allowed = np.nonzero(mask)[0]
    order = allowed[np.argsort(-expected["dual"][0][allowed], kind="stable")[:10]]
    assert rows.tolist() == order.tolist()
    nothing = top_k(arrays, concepts, 10, "dual", mask=np.zeros(400, np.bool_), kernel=kernel)  # type: ignore[arg-type]
    assert all(len(rows) == 0 for rows, _ in nothing)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("method", METHODS)
def test_equal_outputs_come_in_row_order_and_lists_overflow_safely(method: Method, kernel: str) -> None:
    arrays, concepts, _ = make(1, seed=3)
    many = ScanArrays(**{name: np.repeat(getattr(arrays, name), 20_000, axis=0) for name in arrays.__dict__})
    rows, got = top_k(many, concepts, 5, method, kernel=kernel)[0]  # type: ignore[arg-type]
    assert rows.tolist() == [0, 1, 2, 3, 4]
    assert len(set(got.tolist())) == 1


def test_anchors_come_back_precisely_and_the_error_bounds_the_codes() -> None:
    anchor = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32) * 0.03
    anchor[7] = 0
    code, scale, error, rest = encode_anchors(anchor)
    missed = np.linalg.norm(anchor.astype(np.float64) - scale[:, None].astype(np.float64) * code, axis=1)
    assert (missed <= error).all()
    assert (error <= missed * 1.001 + 1e-9).all()
    arrays, _, _ = make(50, seed=1)
    back = decode_anchors(replace(arrays, code=code, scale=scale, error=error, rest=rest), np.arange(50))
    np.testing.assert_allclose(back, anchor, atol=3e-6 * np.abs(anchor).max())


def test_bounds_hold_for_hostile_anchors() -> None:
    """Anchors with one large entry have coarse codes: the answer must still be exact."""
    arrays, concepts, _ = make(2_000, seed=11)
    rng = np.random.default_rng(0)
    anchor = rng.standard_normal((2_000, D)).astype(np.float32) * 1e-3
    anchor[:, 0] += 5.0
    constants = replace(arrays.constants(slice(None)), q=np.full_like(arrays.q, 1e-3))
    hostile = pack(*arrays.kept(slice(None)), anchor, constants)
    exact = margins(*arrays.kept(slice(None)), anchor, constants, concepts, "dual")
    for kernel in KERNELS:
        rows, _ = top_k(hostile, concepts, 10, "dual", kernel=kernel)[0]  # type: ignore[arg-type]
        worst = exact[0][rows].min()
        assert (exact[0] > worst + 0.05).sum() < 10


def test_few_kept_probes_use_the_plain_kernel() -> None:
    arrays, concepts, expected = make(300, seed=2, r=5)
    rows, _ = top_k(arrays, concepts, 4, "weighted")[0]
    assert rows.tolist() == np.argsort(-expected["weighted"][0], kind="stable")[:4].tolist()


def test_bytes_within_the_budget() -> None:
    rng = np.random.default_rng(0)
    probes = normalise(rng.standard_normal((100, 384)))
    made = output_descriptors(rng.standard_normal((100, 3)), probes, 50)
    background = Background.describe(tuple(map(str, range(12))), rng.standard_normal((12, 384)), probes)
    arrays = pack(made.idx, made.z, made.anchor, calibrate(made.idx, made.z, made.anchor, background))
    assert arrays.bytes_scanned("dual") <= 350 + 384
    assert arrays.bytes_scanned("whitened") == arrays.bytes_scanned("dual") + 4
    assert arrays.bytes_scanned("probelog") == 304
    assert arrays.bytes_scanned("weighted") == 304
