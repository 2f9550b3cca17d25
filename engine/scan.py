"""The fast exact scan: the top k outputs of an index by margin, for several concepts at once.

Every output is visited once. The local part is computed in float32 from the kept probes; the global part of ``dual``
and ``whitened`` from anchors in 8 bits, whose rounding error is bounded by Cauchy and Schwarz. So every output has an
interval that holds its margin; a running k-th best lower end decides who can still be among the top k, and those few
are finished in float64 from the full anchors. The answer is therefore exact, whichever kernel computed the intervals.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Literal, NamedTuple

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

NUMPY_WORK_LOADED = 2_000
"""The same in a process that has imported numba already."""

ROUNDING = 4e-6
"""Bound on the relative float32 error of a distance over at most a few hundred kept probes."""

HEAD = 8
"""How many of the strongest probes are stored apart."""

_CODE = 127  # largest anchor code


_NONE = np.zeros(0, np.float32)


class Terms(NamedTuple):
    """What the margin of a method is made of: ``(h - d) / s + lambda (rho - g) / q + prior``.

    Attributes:
        h: Hubness that a distance is taken from, float32 ``[L]``.
        s: What their difference is divided by, ``[L]``; empty where there is no global part (and s = 1).
        g: Hubness of the correlation, ``[L]`` or empty.
        q: Its scale, ``[L]`` or empty.
        prior: Added to every margin, ``[L]`` or empty.
    """

    h: FloatArray
    s: FloatArray
    g: FloatArray
    q: FloatArray
    prior: FloatArray


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
        h_uniform: float32 ``[L]``, and so are the other constants of ``Calibration``.
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
    g_white: FloatArray
    q_white: FloatArray
    prior: FloatArray
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

    def constants(self, rows: npt.NDArray[np.integer] | slice) -> Calibration:
        """The calibration constants of some outputs."""
        return Calibration(**{field.name: getattr(self, field.name)[rows] for field in fields(Calibration)})

    def terms(self, method: Method) -> Terms:
        """What a method makes a margin of."""
        if method == "whitened":
            return Terms(self.h, self.s, self.g_white, self.q_white, self.prior)
        if method == "dual":
            return Terms(self.h, self.s, self.g, self.q, _NONE)
        return Terms(self.h_uniform if method == "probelog" else self.h, _NONE, _NONE, _NONE, _NONE)

    def bytes_scanned(self, method: Method) -> int:
        """Bytes that one scan reads for each output at most."""
        read: list[npt.NDArray[np.generic]] = [self.head_idx, self.head_z, self.tail_idx, self.tail_z]
        terms = self.terms(method)
        read += [array for array in terms if len(array)]
        if len(terms.q):
            read += [self.code, self.scale, self.error]
        return sum(array.itemsize * int(np.prod(array.shape[1:])) for array in read)


@dataclass(frozen=True)
class Query:
    """c concepts in the form the kernels take.

    Attributes:
        z: Standardised similarities, float32 ``[c, n]``.
        direction: ``t / sigma``, or ``u / tau`` for ``whitened``, in whole steps, int16 ``[c, d]``.
        step: Their size, float32 ``[c]``.
        length: Length of the direction, float32 ``[c]``.
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
    return ScanArrays(
        head_idx=np.ascontiguousarray(idx[:, :HEAD]),
        head_z=np.ascontiguousarray(z[:, :HEAD]),
        tail_idx=np.ascontiguousarray(idx[:, HEAD:]),
        tail_z=np.ascontiguousarray(z[:, HEAD:]),
        code=code,
        scale=scale,
        error=error,
        rest=rest,
        **{field.name: getattr(calibration, field.name) for field in fields(Calibration)},
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
        kernel: ``numba``, ``numpy``, or ``auto`` (``choose_kernel``).

    Returns:
        For each concept rows and margins (float64), best first, equal margins by row; fewer than k where there are
        fewer outputs.
    """
    if not len(arrays) or not len(concepts):
        return [(np.zeros(0, np.int64), np.zeros(0)) for _ in range(len(concepts))]
    k = min(k, len(arrays))
    query = prepare(concepts, method)
    if kernel == "auto":
        kernel = choose_kernel(arrays, len(arrays) * len(concepts))
    visit = visit_numpy if kernel == "numpy" else _numba_visitor()
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


def choose_kernel(arrays: ScanArrays, work: int) -> Literal["numba", "numpy"]:
    """The kernel that answers first: numpy where numba is missing or importing it would take longer than it saves.

    Args:
        arrays: What is scanned; the compiled kernels need at least ``HEAD`` kept probes.
        work: Outputs times concepts.
    """
    least = NUMPY_WORK_LOADED if "engine.scan_numba" in sys.modules else NUMPY_WORK
    plain = work <= least or arrays.head_idx.shape[1] < HEAD or find_spec("numba") is None
    return "numpy" if plain else "numba"


def exact_margins(
    arrays: ScanArrays, rows: npt.NDArray[np.int64], concepts: ConceptDescriptors, c: int, method: Method
) -> npt.NDArray[np.float64]:
    """Margins of some outputs for concept c in float64, ``[rows]``."""
    distance, correlation = evidence(arrays, rows, concepts, c, method)
    terms = arrays.terms(method)
    margin = terms.h[rows] - distance
    if len(terms.q):
        margin = margin / terms.s[rows] + LAMBDA * (correlation - terms.g[rows]) / terms.q[rows]
    if len(terms.prior):
        margin = margin + terms.prior[rows]
    return np.asarray(margin)


def evidence(
    arrays: ScanArrays, rows: npt.NDArray[np.int64], concepts: ConceptDescriptors, c: int, method: Method
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Distances (with the method's weights) and correlations of some outputs to concept c, float64 ``[rows]`` each."""
    idx, z = arrays.kept(rows)
    gap = z.astype(np.float64) - concepts.z[c][idx]
    distance = np.sqrt((weights(z, method) * gap * gap).sum(axis=1))
    direction = concepts.take(c).directions(method == "whitened")[0]
    # Row by row, so that a margin has the same last digit whatever other rows come along.
    correlation = (decode_anchors(arrays, rows) * direction).sum(axis=1)
    return distance, correlation


Intervals = list[tuple[npt.NDArray[np.int64], FloatArray, FloatArray]]
Visitor = Callable[[ScanArrays, Query, int, Method, "npt.NDArray[np.bool_] | None", int, int], Intervals]


def prepare(concepts: ConceptDescriptors, method: Method) -> Query:
    """Rounds the concepts' directions to integers small enough for a 32-bit sum with the codes."""
    direction = concepts.directions(method == "whitened")
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


def visit_numpy(
    arrays: ScanArrays, query: Query, k: int, method: Method, mask: npt.NDArray[np.bool_] | None, start: int, stop: int
) -> Intervals:
    """Intervals of the outputs that can be among the top k of ``start..stop``, in plain numpy."""
    rows = np.arange(start, stop) if mask is None else start + np.nonzero(mask[start:stop])[0]
    block = 8_192
    terms = arrays.terms(method)
    lower = np.empty((len(query.z), len(rows)), np.float32)
    upper = np.empty_like(lower)
    for at in range(0, len(rows), block):
        part = rows[at : at + block]
        idx, z = arrays.kept(part)
        w = weights(z, method)
        for c in range(len(query.z)):
            gap = z - query.z[c][idx]
            distance = np.sqrt(np.einsum("mr,mr,mr->m", w, gap, gap))
            h = terms.h[part]
            margin, slack = h - distance, ROUNDING * (h + distance)
            if len(terms.q):
                s, q, scale = terms.s[part], terms.q[part], arrays.scale[part]
                whole = arrays.code[part].astype(np.float32) @ query.direction[c].astype(np.float32)
                rho = whole * query.step[c] * scale
                margin = margin / s + LAMBDA * (rho - terms.g[part]) / q
                off = arrays.error[part] * query.length[c] + scale * query.missed[c] + ROUNDING * 10
                slack = slack / s + LAMBDA * off / q
            if len(terms.prior):
                margin = margin + terms.prior[part]
                slack = slack + ROUNDING * np.abs(terms.prior[part])
            span = slice(at, at + len(margin))
            lower[c, span], upper[c, span] = margin - slack, margin + slack
    found: Intervals = []
    for low, high in zip(lower, upper, strict=True):
        near = np.arange(len(rows)) if len(rows) <= k else np.nonzero(high >= np.partition(low, len(low) - k)[-k])[0]
        found.append((rows[near], low[near], high[near]))
    return found
