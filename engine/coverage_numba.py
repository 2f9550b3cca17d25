"""The compiled margins behind ``coverage``: bounds of all models, intervals of some outputs, float64 for a few pairs.

Every margin is wanted, so an output is compared with eight concepts at once, which is one vector register. What a
method is stands in ``_weight``, ``_interval`` and ``_value`` alone, and in ``ScanArrays.terms``.

Compiled once per machine (numba keeps the result on disk) and run without the interpreter's lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from engine.coverage_margins import ABOVE, Floats, Ints, Mask
from engine.descriptors import ConceptDescriptors
from engine.distance import LAMBDA, Method, weights
from engine.outputs import FloatArray
from engine.scan import ROUNDING, Query, ScanArrays, decode_anchors

_MATHS = {"reassoc", "contract", "arcp", "nsz"}  # sums may be reordered, which is what lets them use vector registers
_LANES = 8  # concepts
_BLOCK = 512  # rows that stay in the cache while every concept visits them, or a little more


class _Outputs(NamedTuple):
    """The columns of ``ScanArrays`` that the kernels read."""

    head_idx: npt.NDArray[np.uint16]
    head_z: FloatArray
    tail_idx: npt.NDArray[np.uint16]
    tail_z: FloatArray
    h: FloatArray  # this and the next five are the method's ``Terms``
    s: FloatArray
    g: FloatArray
    q: FloatArray
    prior: FloatArray
    code: npt.NDArray[np.int8]
    scale: FloatArray
    error: FloatArray


class _Concepts(NamedTuple):
    """The columns of ``Query``."""

    z: FloatArray  # [c / 8, n, 8], the last filled with zeros
    direction: npt.NDArray[np.int16]
    step: FloatArray
    length: FloatArray
    missed: FloatArray


@intrinsic
def _add_squares(typing, square, table, idx, z, weight, i):  # type: ignore[no-untyped-def]
    """``square[:8] += sum over j of weight[j] * (z[i, j] - table[idx[i, j], :8]) ** 2``, all C-contiguous.

    Written in the compiler's own terms because numba does not turn eight equal sums into one of vectors.
    """
    vector = ir.VectorType(ir.FloatType(), _LANES)

    def generate(context, builder, _, arguments):  # type: ignore[no-untyped-def]
        kinds = (square, table, idx, z, weight)
        *given, row = arguments
        arrays = [context.make_array(kind)(context, builder, one) for kind, one in zip(kinds, given, strict=True)]
        sums, rows, places, values, factors = (array.data for array in arrays)
        count = cgutils.unpack_tuple(builder, arrays[2].shape, 2)[1]
        first = builder.mul(row, count)
        flags = ("reassoc", "contract", "nsz")

        def spread(number: Any) -> Any:
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(
                one, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)
            )

        home = builder.bitcast(sums, vector.as_pointer())
        total = cgutils.alloca_once_value(builder, builder.load(home, align=4))
        with cgutils.for_range(builder, count) as loop:
            at = builder.add(first, loop.index)
            place = builder.zext(builder.load(builder.gep(places, [at])), count.type)
            begin = builder.gep(rows, [builder.mul(place, ir.Constant(count.type, _LANES))])
            concept = builder.load(builder.bitcast(begin, vector.as_pointer()), align=4)
            gap = builder.fsub(spread(builder.load(builder.gep(values, [at]))), concept, flags=flags)
            factor = spread(builder.load(builder.gep(factors, [loop.index])))
            term = builder.fmul(factor, builder.fmul(gap, gap, flags=flags), flags=flags)
            builder.store(builder.fadd(builder.load(total), term, flags=flags), total)
        builder.store(builder.load(total), home, align=4)
        return context.get_dummy_value()

    return types.void(square, table, idx, z, weight, i), generate


@numba.njit(fastmath=_MATHS, error_model="numpy")
def _weight(z, half, uniform):  # type: ignore[no-untyped-def]
    """Weight of a kept probe, float32; ``half`` is 1 / (2 max z), for z + |z| is 2 max(z, 0) without a branch."""
    ratio = (z + abs(z)) * half
    return np.float32(1) if uniform else ratio * ratio * ratio


@numba.njit(fastmath=_MATHS, error_model="numpy")
def _interval(  # type: ignore[no-untyped-def]
    i, c, square, both, h, s, g, q, prior, code, scale, error, direction, step, length, missed
):
    """Margin of row i for concept c, which are at that squared distance, and its possible error, float32."""
    distance = np.sqrt(square)
    margin = h[i] - distance
    slack = np.float32(ROUNDING) * (h[i] + distance)
    if both:
        whole = np.int32(0)
        for j in range(np.uint64(code.shape[1])):
            whole = np.int32(whole + np.int32(np.int32(code[i, j]) * np.int32(direction[c, j])))
        local, other = np.float32(1) / s[i], np.float32(LAMBDA) / q[i]
        correlation = np.float32(whole) * step[c] * scale[i]
        doubt = error[i] * length[c] + scale[i] * missed[c] + np.float32(2 * ROUNDING)
        margin = margin * local + (correlation - g[i]) * other
        slack = slack * local + doubt * other
    if prior.shape[0]:
        margin += prior[i]
        slack += np.float32(ROUNDING) * abs(prior[i])
    return margin, slack


@numba.njit(fastmath=_MATHS, error_model="numpy")
def _value(i, distance, correlation, both, h, s, g, q, prior):  # type: ignore[no-untyped-def]
    """Margin of row i in float64."""
    margin = np.float64(h[i]) - distance
    if both:
        margin = margin / s[i] + np.float64(LAMBDA) * (correlation - g[i]) / q[i]
    if prior.shape[0]:
        margin += prior[i]
    return margin


@numba.njit(fastmath=_MATHS, error_model="numpy")
def _compare(i, table, square, head, tail, uniform, head_idx, head_z, tail_idx, tail_z):  # type: ignore[no-untyped-def]
    """Squared distances of row i to the eight concepts of a table; ``head`` and ``tail`` are room for weights."""
    half = np.float32(0.5) / head_z[i, 0]
    for j in range(np.uint64(head.shape[0])):
        head[j] = _weight(head_z[i, j], half, uniform)
    for j in range(np.uint64(tail.shape[0])):
        tail[j] = _weight(tail_z[i, j], half, uniform)
    square[:] = 0
    _add_squares(square, table, head_idx, head_z, head, i)
    _add_squares(square, table, tail_idx, tail_z, tail, i)


def _compile_bounds(uniform: bool, both: bool):  # type: ignore[no-untyped-def]
    """The sweep of one method: what it is must be known to the compiler for the inner loops to be tight."""

    @numba.njit(nogil=True, cache=True, fastmath=_MATHS, error_model="numpy")
    def bounds(o, w, starts, models, sizes, mask, floor, ceiling, total):  # type: ignore[no-untyped-def]
        """Sums of each model's best upper ends, at least ``floor``, over the concepts; no more of them than outputs."""
        head_idx, head_z, tail_idx, tail_z, h, s, g, q, prior, code, scale, error = o
        tables, direction, step, length, missed = w
        count = direction.shape[0]
        square = np.empty(_LANES, np.float32)
        head, tail = np.empty(head_z.shape[1], np.float32), np.empty(tail_z.shape[1], np.float32)
        first = 0
        while first < models.shape[0]:
            last, rows = first, 0
            while last < models.shape[0] and (last == first or rows < _BLOCK):
                rows += starts[models[last] + 1] - starts[models[last]]
                last += 1
            best = np.full((last - first, count), floor, np.float32)
            for b in range(tables.shape[0]):
                table = tables[b]
                for m in range(first, last):
                    for i in range(np.uint64(starts[models[m]]), np.uint64(starts[models[m] + 1])):
                        if mask.shape[0] and not mask[i]:
                            continue
                        _compare(i, table, square, head, tail, uniform, head_idx, head_z, tail_idx, tail_z)
                        for lane in range(min(_LANES, count - _LANES * b)):
                            c = np.uint64(_LANES * b + lane)
                            margin, slack = _interval(
                                i, c, square[lane], both, h, s, g, q, prior, code, scale, error, direction, step,
                                length, missed,
                            )  # fmt: skip
                            best[m - first, c] = max(best[m - first, c], margin + slack)
            for m in range(first, last):
                if sizes[m] < count:
                    best[m - first].sort()
                total[m] = 0.0
                for j in range(max(0, count - sizes[m]), count):
                    value = np.float64(best[m - first, j])
                    total[m] += value if value <= ceiling else ceiling + ABOVE * (value - ceiling)
            first = last

    return bounds


def _compile_intervals(uniform: bool, both: bool):  # type: ignore[no-untyped-def]
    """The intervals of one method."""

    @numba.njit(nogil=True, cache=True, fastmath=_MATHS, error_model="numpy")
    def intervals(o, w, first, rows, lower, upper):  # type: ignore[no-untyped-def]
        """Lower and upper ends ``[concepts, rows]`` for the concepts from ``first`` on."""
        head_idx, head_z, tail_idx, tail_z, h, s, g, q, prior, code, scale, error = o
        tables, direction, step, length, missed = w
        last = first + lower.shape[0]
        square = np.empty(_LANES, np.float32)
        head, tail = np.empty(head_z.shape[1], np.float32), np.empty(tail_z.shape[1], np.float32)
        for block in range(0, rows.shape[0], _BLOCK):
            for b in range(first // _LANES, (last + _LANES - 1) // _LANES):
                table = tables[b]
                for j in range(block, min(block + _BLOCK, rows.shape[0])):
                    i = np.uint64(rows[j])
                    _compare(i, table, square, head, tail, uniform, head_idx, head_z, tail_idx, tail_z)
                    for c in range(max(first, _LANES * b), min(last, _LANES * b + _LANES)):
                        margin, slack = _interval(
                            i, np.uint64(c), square[c - _LANES * b], both, h, s, g, q, prior, code, scale, error,
                            direction, step, length, missed,
                        )  # fmt: skip
                        lower[c - first, j], upper[c - first, j] = margin - slack, margin + slack

    return intervals


def _compile_precise(_uniform: bool, both: bool):  # type: ignore[no-untyped-def]
    """The float64 margins of one method; the weights come as numbers."""

    @numba.njit(nogil=True, cache=True, fastmath=_MATHS, error_model="numpy")
    def precise(o, rows, idx, z, weight, anchor, concepts, direction, pairs, place, which, out):  # type: ignore[no-untyped-def]
        """Margins of pairs: of row ``rows[place]`` for concept ``which``."""
        _, _, _, _, h, s, g, q, prior, _, _, _ = o
        for p in pairs:
            u, c = np.uint64(place[p]), np.uint64(which[p])
            square, correlation = 0.0, 0.0
            for j in range(np.uint64(idx.shape[1])):
                gap = np.float64(z[u, j]) - np.float64(concepts[c, idx[u, j]])
                square += np.float64(weight[u, j]) * gap * gap
            if both:
                for j in range(np.uint64(anchor.shape[1])):
                    correlation += anchor[u, j] * direction[c, j]
            out[p] = _value(np.uint64(rows[u]), np.sqrt(square), correlation, both, h, s, g, q, prior)

    return precise


_BOUNDS, _INTERVALS, _PRECISE = (
    {
        "probelog": make(True, False),
        "weighted": make(False, False),
        "dual": make(False, True),
    }
    for make in (_compile_bounds, _compile_intervals, _compile_precise)
)
for _kernels in (_BOUNDS, _INTERVALS, _PRECISE):
    _kernels["whitened"] = _kernels["dual"]


def compiled_margins(arrays: ScanArrays, concepts: ConceptDescriptors, query: Query, method: Method) -> CompiledMargins:
    """Margins of the outputs of an index for some concepts; ``query`` is what ``scan`` makes of them."""
    c, n = query.z.shape
    table = np.zeros((-(-c // _LANES) * _LANES, n), np.float32)
    table[:c] = query.z
    table = np.ascontiguousarray(table.reshape(-1, _LANES, n).transpose(0, 2, 1))
    terms = arrays.terms(method)
    outputs = _Outputs(
        np.ascontiguousarray(arrays.head_idx),
        np.ascontiguousarray(arrays.head_z),
        np.ascontiguousarray(arrays.tail_idx),
        np.ascontiguousarray(arrays.tail_z),
        *terms,
        arrays.code,
        arrays.scale,
        arrays.error,
    )
    both = len(terms.q) > 0
    directions = concepts.directions(method == "whitened") if both else np.zeros((c, 0))
    wanted = _Concepts(table, query.direction, query.step, query.length, query.missed)
    return CompiledMargins(arrays, concepts, method, outputs, wanted, directions)


@dataclass(frozen=True)
class CompiledMargins:
    """See ``coverage_margins.Margins`` and ``compiled_margins``."""

    arrays: ScanArrays
    concepts: ConceptDescriptors
    method: Method
    outputs: _Outputs
    wanted: _Concepts
    directions: Floats  # what an anchor is multiplied with, [c, d]; [c, 0] where it is not

    def bounds(
        self, starts: Ints, models: Ints, sizes: Ints, mask: Mask | None, floor: float, ceiling: float
    ) -> Floats:
        """See ``coverage_margins.Margins``."""
        total = np.empty(len(models))
        allowed = np.zeros(0, np.bool_) if mask is None else mask
        _BOUNDS[self.method](
            self.outputs, self.wanted, starts, models, sizes, allowed, np.float32(floor), float(ceiling), total
        )
        return total / len(self.concepts)

    def intervals(self, rows: Ints, chosen: slice) -> tuple[FloatArray, FloatArray]:
        """See ``coverage_margins.Margins``."""
        lower = np.empty((chosen.stop - chosen.start, len(rows)), np.float32)
        upper = np.empty_like(lower)
        _INTERVALS[self.method](self.outputs, self.wanted, chosen.start, rows, lower, upper)
        return lower, upper

    def precise(self, rows: Ints, place: Ints, which: Ints) -> Floats:
        """See ``coverage_margins.Margins``: only the order of the sums differs from ``exact_margins``."""
        out = np.empty(len(place))
        used = np.zeros(len(rows), np.bool_)
        used[place] = True
        needed, place = rows[used], (np.cumsum(used) - 1)[place]
        both = self.directions.shape[1] > 0
        for first in range(0, len(needed), _BLOCK):  # anchors in float64: 2 MB at a time
            some = needed[first : first + _BLOCK]
            idx, z = self.arrays.kept(some)
            anchor = decode_anchors(self.arrays, some) if both else np.zeros((len(some), 0))
            pairs = np.nonzero((place >= first) & (place < first + len(some)))[0]
            _PRECISE[self.method](
                self.outputs, some, idx, z, weights(z, self.method), anchor, self.concepts.z, self.directions, pairs,
                place - first, which, out,
            )  # fmt: skip
        return out
