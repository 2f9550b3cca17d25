"""The fast exact scan: the top k outputs of an index by margin, for several concepts at once.

Every output is visited once. The local part is computed in float32 from the kept probes; the global part of ``dual``
from anchors in 8 bits, whose rounding error is bounded by Cauchy and Schwarz. So every output has an interval that
holds its margin; a running k-th best lower end decides who can still be among the top k, and those few are finished in
float64 from the full anchors. The answer is therefore exact, whichever kernel computed the intervals.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import numpy as np
import numpy.typing as npt

from engine.descriptors import ConceptDescriptors
from engine.distance import LAMBDA, Method, weights
from engine.outputs import Calibration, FloatArray

Kernel = Literal["auto", "numba", "numpy"]

ONE_THREAD_ROWS = 200_000
"""Below this many outputs one thread is faster than starting several."""

NUMPY_WORK = 100_000
"""Below this many outputs times concepts plain numpy answers before numba is even imported."""

ROUNDING = 4e-6
"""Bound on the relative float32 error of a distance over at most a few hundred kept probes."""

HEAD = 8
"""How many of the strongest probes are stored apart."""

_CODE = 127  # largest anchor code


@dataclass(frozen=True)
class ScanArrays:
    """The L outputs of an index as the scan reads them.

    The 8 strongest probes stand apart from the others: they rule most outputs out, and a scan that reads nothing else
    of those streams a sixth of the bytes. An anchor is ``scale * (code + rest)``: 8-bit codes for the scan, the rest
    in float16 for the finish, together precise to about 2e-6 of the row's largest entry.

    Attributes:
        head_idx: Probes of the ``min(8, r)`` largest responses, uint16 ``[L, 8]``.
        head_z: Standardised responses there, float32 ``[L, 8]``, descending along each row.
        tail_idx: The other kept probes, uint16 ``[L, r - 8]``.
        tail_z: Standardised responses there, float32 ``[L, r - 8]``, descending.
        h_uniform: float32 ``[L]``, and so are ``h``, ``s``, ``g``, ``q`` (see ``Calibration``).
        code: int8 ``[L, d]``.
        scale: float32 ``[L]``.
        error: Length of what the codes leave out, ``|a - scale * code|``, float32 ``[L]``.
        rest: float16 ``[L, d]``, in -0.5..0.5.
    """

    head_idx: npt.NDArray[np.uint16]
    head_z: FloatArray
    tail_idx: npt.NDArray[np.uint16]
    tail_z: FloatArray
    h_uniform: FloatArray
    h: FloatArray
    s: FloatArray
    g: FloatArray
    q: FloatArray
    code: npt.NDArray[np.int8]
    scale: FloatArray
    error: FloatArray
    rest: npt.NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.head_idx)

    def kept(self, rows: npt.NDArray[np.integer] | slice) -> tuple[npt.NDArray[np.uint16], FloatArray]:
        """All kept probes ``[rows, r]`` and the standardised responses there ``[rows, r]`` of some outputs."""
        return (
            np.concatenate([self.head_idx[rows], self.tail_idx[rows]], axis=1),
            np.concatenate([self.head_z[rows], self.tail_z[rows]], axis=1),
        )

    def bytes_scanned(self, method: Method) -> int:
        """Bytes that one scan reads for each output at most."""
        read: list[npt.NDArray[np.generic]] = [self.head_idx, self.head_z, self.tail_idx, self.tail_z]
        if method == "probelog":
            read.append(self.h_uniform)
        else:
            read.append(self.h)
        if method == "dual":
            read += [self.s, self.g, self.q, self.code, self.scale, self.error]
        return sum(array.itemsize * int(np.prod(array.shape[1:])) for array in read)


@dataclass(frozen=True)
class Query:
    """c concepts in the form the kernels take.

    Attributes:
        z: Standardised similarities, float32 ``[c, n]``.
        direction: ``t / sigma`` in whole steps, int16 ``[c, d]``.
        step: Their size, float32 ``[c]``.
        length: ``|t / sigma|``, float32 ``[c]``.
        missed: Bound on what the steps leave out of a product with the codes, float32 ``[c]``.
    """

    z: FloatArray
    direction: npt.NDArray[np.int16]
    step: FloatArray
    length: FloatArray
    missed: FloatArray


def encode_anchors(
    anchor: FloatArray,
) -> tuple[npt.NDArray[np.int8], FloatArray, FloatArray, npt.NDArray[np.float16]]:
    """Splits anchors into codes, scales, error lengths and rests.

    Args:
        anchor: float32 ``[m, d]``.

    Returns:
        ``code`` int8 ``[m, d]``, ``scale`` float32 ``[m]``, ``error`` float32 ``[m]``, ``rest`` float16 ``[m, d]``.
    """
    largest = np.abs(anchor).max(axis=1, initial=0)
    scale = np.where(largest > 0, largest / _CODE, 1).astype(np.float32)
    units = anchor.astype(np.float64) / scale[:, None]
    code = np.clip(np.rint(units), -_CODE, _CODE)
    rest = units - code
    error = scale * np.linalg.norm(rest, axis=1) * (1 + 1e-6)
    return code.astype(np.int8), scale, error.astype(np.float32), rest.astype(np.float16)


def pack(idx: npt.NDArray[np.uint16], z: FloatArray, anchor: FloatArray, calibration: Calibration) -> ScanArrays:
    """Outputs in the form that is scanned.

    Args:
        idx: uint16 ``[m, r]``.
        z: float32 ``[m, r]``.
        anchor: float32 ``[m, d]``.
        calibration: Their constants.
    """
    code, scale, error, rest = encode_anchors(anchor)
    c = calibration
    return ScanArrays(
        np.ascontiguousarray(idx[:, :HEAD]),
        np.ascontiguousarray(z[:, :HEAD]),
        np.ascontiguousarray(idx[:, HEAD:]),
        np.ascontiguousarray(z[:, HEAD:]),
        c.h_uniform,
        c.h,
        c.s,
        c.g,
        c.q,
        code,
        scale,
        error,
        rest,
    )


def decode_anchors(arrays: ScanArrays, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Anchors of some outputs, float64 ``[rows, d]``."""
    units = arrays.code[rows].astype(np.float64) + arrays.rest[rows]
    return np.asarray(arrays.scale[rows, None].astype(np.float64) * units)


def top_k(
    arrays: ScanArrays,
    concepts: ConceptDescriptors,
    k: int,
    method: Method,
    *,
    mask: npt.NDArray[np.bool_] | None = None,
    threads: int | None = None,
    kernel: Kernel = "auto",
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    """The exact top k outputs by margin for each concept.

    Args:
        arrays: L outputs.
        concepts: c concepts.
        k: How many, >= 1.
        method: Which margin (see ``distance.margins``).
        mask: bool ``[L]``: outputs that may be found; None for all.
        threads: At least 1; by default one below 200,000 outputs, else one a core.
        kernel: ``numba``, ``numpy``, or ``auto``: numpy where numba is missing or the work is too small to import it.

    Returns:
        For each concept rows and margins (float64), best first, equal margins by row; fewer than k where there are
        fewer outputs.
    """
    if not len(arrays) or not len(concepts):
        return [(np.zeros(0, np.int64), np.zeros(0)) for _ in range(len(concepts))]
    k = min(k, len(arrays))
    query = _prepare(concepts)
    if kernel == "auto":
        small = len(arrays) * len(concepts) <= NUMPY_WORK or arrays.head_idx.shape[1] < HEAD
        kernel = "numpy" if small or find_spec("numba") is None else "numba"
    visit = _visit_numpy if kernel == "numpy" else _numba_visitor()
    count = threads or (1 if len(arrays) < ONE_THREAD_ROWS else len(os.sched_getaffinity(0)))
    bounds = np.linspace(0, len(arrays), count + 1).astype(np.int64)
    parts = list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
    if count == 1:
        found = [visit(arrays, query, k, method, mask, *parts[0])]
    else:
        with ThreadPoolExecutor(count) as pool:
            found = list(pool.map(lambda part: visit(arrays, query, k, method, mask, *part), parts))
    results = []
    for c in range(len(concepts)):
        rows = np.concatenate([part[c][0] for part in found])
        lower = np.concatenate([part[c][1] for part in found])
        upper = np.concatenate([part[c][2] for part in found])
        if len(rows) > k:
            rows = rows[upper >= np.partition(lower, len(lower) - k)[len(lower) - k]]
        rows.sort()
        exact = exact_margins(arrays, rows, concepts, c, method)
        order = np.lexsort((rows, -exact))[:k]
        results.append((rows[order], exact[order]))
    return results


def exact_margins(
    arrays: ScanArrays, rows: npt.NDArray[np.int64], concepts: ConceptDescriptors, c: int, method: Method
) -> npt.NDArray[np.float64]:
    """Margins of some outputs for concept c in float64, ``[rows]``."""
    local, correlation = evidence(arrays, rows, concepts, c, method)
    if method == "probelog":
        return np.asarray(arrays.h_uniform[rows] - local)
    if method == "weighted":
        return np.asarray(arrays.h[rows] - local)
    return (arrays.h[rows] - local) / arrays.s[rows] + LAMBDA * (correlation - arrays.g[rows]) / arrays.q[rows]


def evidence(
    arrays: ScanArrays, rows: npt.NDArray[np.int64], concepts: ConceptDescriptors, c: int, method: Method
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Distances (with the method's weights) and correlations of some outputs to concept c, float64 ``[rows]`` each."""
    idx, z = arrays.kept(rows)
    gap = z.astype(np.float64) - concepts.z[c][idx]
    distance = np.sqrt((weights(z, method) * gap * gap).sum(axis=1))
    direction = concepts.t[c].astype(np.float64) / concepts.sigma[c]
    # Row by row, so that a margin has the same last digit whatever other rows come along.
    correlation = (decode_anchors(arrays, rows) * direction).sum(axis=1)
    return distance, correlation


Intervals = list[tuple[npt.NDArray[np.int64], FloatArray, FloatArray]]
Visitor = Callable[[ScanArrays, Query, int, Method, "npt.NDArray[np.bool_] | None", int, int], Intervals]


def _prepare(concepts: ConceptDescriptors) -> Query:
    """Rounds the directions ``t / sigma`` to integers small enough for a 32-bit sum with the codes."""
    direction = concepts.t.astype(np.float64) / concepts.sigma[:, None].astype(np.float64)
    d = direction.shape[1]
    largest = min(32_767, (2**31 - 1) // (_CODE * d))
    step = np.abs(direction).max(axis=1) / largest
    rounded = np.rint(direction / step[:, None])
    missed = np.linalg.norm(direction - rounded * step[:, None], axis=1) * _CODE * np.sqrt(d)
    return Query(
        np.ascontiguousarray(concepts.z),
        rounded.astype(np.int16),
        step.astype(np.float32),
        (np.linalg.norm(direction, axis=1) * (1 + 1e-6)).astype(np.float32),
        missed.astype(np.float32),
    )


def _numba_visitor() -> Visitor:
    from engine.scan_numba import visit

    return visit


def _visit_numpy(
    arrays: ScanArrays, query: Query, k: int, method: Method, mask: npt.NDArray[np.bool_] | None, start: int, stop: int
) -> Intervals:
    """Intervals of the outputs that can be among the top k of ``start..stop``, in plain numpy."""
    rows = np.arange(start, stop) if mask is None else start + np.nonzero(mask[start:stop])[0]
    block = 8_192
    lower = np.empty((len(query.z), len(rows)), np.float32)
    upper = np.empty_like(lower)
    for at in range(0, len(rows), block):
        part = rows[at : at + block]
        idx, z = arrays.kept(part)
        w = weights(z, method)
        for c in range(len(query.z)):
            gap = z - query.z[c][idx]
            distance = np.sqrt(np.einsum("mr,mr,mr->m", w, gap, gap))
            h = arrays.h_uniform[part] if method == "probelog" else arrays.h[part]
            margin, slack = h - distance, ROUNDING * (h + distance)
            if method == "dual":
                s, q, scale = arrays.s[part], arrays.q[part], arrays.scale[part]
                whole = arrays.code[part].astype(np.float32) @ query.direction[c].astype(np.float32)
                rho = whole * query.step[c] * scale
                margin = margin / s + LAMBDA * (rho - arrays.g[part]) / q
                off = arrays.error[part] * query.length[c] + scale * query.missed[c] + ROUNDING * 10
                slack = slack / s + LAMBDA * off / q
            span = slice(at, at + len(margin))
            lower[c, span], upper[c, span] = margin - slack, margin + slack
    found: Intervals = []
    for low, high in zip(lower, upper, strict=True):
        near = np.arange(len(rows)) if len(rows) <= k else np.nonzero(high >= np.partition(low, len(low) - k)[-k])[0]
        found.append((rows[near], low[near], high[near]))
    return found
