"""The scan's compiled kernel: one pass over the arrays, several concepts, bounded candidates.

Compiled once per machine (numba keeps the result on disk) and run without the interpreter's lock.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from engine.distance import LAMBDA, Method
from engine.scan import HEAD, ROUNDING, Intervals, Query, ScanArrays

_MATHS = {"reassoc", "contract", "arcp", "nsz"}  # sums may be reordered, which is what lets them use vector registers
_HEAD = HEAD
_BLOCK = 512  # rows
_LIKELY = 64  # one probe in so many is very similar to a concept


@numba.njit
def _push(heap, value):  # type: ignore[no-untyped-def]
    """Replaces the smallest of a min-heap and restores its order."""
    i, size = 0, heap.shape[0]
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if value <= heap[child]:
            break
        heap[i] = heap[child]
        i = child
    heap[i] = value


@numba.njit
def _add(i, low, high, beat, rows, lower, upper, count):  # type: ignore[no-untyped-def]
    """Appends a candidate; makes room by dropping those that were overtaken. False if there is none to be made."""
    capacity = len(rows)
    if count[0] == capacity:
        kept = 0
        for j in range(capacity):
            if upper[j] >= beat:
                rows[kept], lower[kept], upper[kept] = rows[j], lower[j], upper[j]
                kept += 1
        count[0] = kept
        if kept == capacity:
            return False
    at = count[0]
    rows[at], lower[at], upper[at] = i, low, high
    count[0] = at + 1
    return True


def _compile(uniform: bool, dual: bool):  # type: ignore[no-untyped-def]  # noqa: PLR0915
    """The kernel of one method: what the method is must be known to the compiler for the inner loops to be tight."""

    @numba.njit(nogil=True, cache=True, fastmath=_MATHS)
    def scan(  # type: ignore[no-untyped-def]  # noqa: PLR0912, PLR0915 - a kernel is one loop
        head_idx, head_z, tail_idx, tail_z, h, s, g, q, prior, code, scale, error,
        concepts, direction, step, length, missed, likely, mask, start, stop, heap, rows, lower, upper, count,
    ):  # fmt: skip
        """Fills the candidate lists; returns the row at which a list was full, or ``stop``."""
        # First only outputs whose strongest probe is one that the concept is very similar to: few, but nearly all that
        # matter, so that the k-th best is high before the others come.
        for first_sweep in (True, False):
            for block in range(start, stop, _BLOCK):  # so few rows that all concepts find them in the cache
                for c in range(np.uint64(concepts.shape[0])):
                    for i in range(np.uint64(block), np.uint64(min(block + _BLOCK, stop))):
                        if first_sweep and concepts[c, head_idx[i, 0]] < likely[c]:
                            continue
                        if mask.shape[0] and not mask[i]:
                            continue
                        beat = heap[c, 0]
                        other, doubt = np.float32(0), np.float32(0)  # the global part and its possible error, times s
                        if dual:
                            whole = np.int32(0)
                            for j in range(np.uint64(code.shape[1])):
                                whole = np.int32(whole + np.int32(np.int32(code[i, j]) * np.int32(direction[c, j])))
                            weight = np.float32(LAMBDA) * s[i] / q[i]
                            other = (np.float32(whole) * step[c] * scale[i] - g[i]) * weight
                            doubt = (error[i] * length[c] + scale[i] * missed[c] + np.float32(ROUNDING)) * weight
                            if prior.shape[0]:
                                other += prior[i] * s[i]
                                doubt += np.float32(ROUNDING) * abs(prior[i]) * s[i]
                            beat *= s[i]
                        # The margin times s is h - distance + other: only a distance within reach beats the k-th best.
                        reach = (h[i] + other + doubt - beat) * np.float32(1 + 4 * ROUNDING)
                        reach += np.float32(ROUNDING) * h[i]
                        if reach < 0:
                            continue
                        peak = head_z[i, 0] + head_z[i, 0]
                        unit = np.float32(1) if uniform else peak * peak * peak
                        limit = reach * reach * unit
                        # Cubic weights are times (2 max z)^3 here, for z + |z| is 2 max(z, 0) without a branch.
                        square = np.float32(0)
                        for j in range(np.uint64(_HEAD)):
                            gap = head_z[i, j] - concepts[c, head_idx[i, j]]
                            twice = head_z[i, j] + abs(head_z[i, j])
                            square += gap * gap if uniform else twice * twice * twice * (gap * gap)
                        if square > limit:
                            continue
                        # In steps of one constant length: the compiler unrolls them, and few rows see the last.
                        at, end = np.uint64(0), np.uint64(tail_z.shape[1])
                        while at + np.uint64(_HEAD) <= end and square <= limit:
                            for j in range(np.uint64(_HEAD)):
                                gap = tail_z[i, at + j] - concepts[c, tail_idx[i, at + j]]
                                twice = tail_z[i, at + j] + abs(tail_z[i, at + j])
                                square += gap * gap if uniform else twice * twice * twice * (gap * gap)
                            at += np.uint64(_HEAD)
                        if square > limit:
                            continue
                        for j in range(at, end):
                            gap = tail_z[i, j] - concepts[c, tail_idx[i, j]]
                            twice = tail_z[i, j] + abs(tail_z[i, j])
                            square += gap * gap if uniform else twice * twice * twice * (gap * gap)
                        if square > limit:
                            continue
                        distance = np.sqrt(square / unit)
                        slack = np.float32(ROUNDING) * (h[i] + distance) + doubt
                        margin = h[i] - distance + other
                        if dual:
                            margin, slack = margin / s[i], slack / s[i]
                        counted = not first_sweep and concepts[c, head_idx[i, 0]] >= likely[c]
                        if margin - slack > heap[c, 0] and not counted:
                            _push(heap[c], margin - slack)
                        if first_sweep:
                            continue  # its turn comes: here it only had to raise the k-th best
                        low, high, best = margin - slack, margin + slack, heap[c, 0]
                        if not _add(i, low, high, best, rows[c], lower[c], upper[c], count[c]):
                            return np.int64(i)
        return np.int64(stop)

    return scan


_UNIFORM, _LOCAL, _BOTH = _compile(True, False), _compile(False, False), _compile(False, True)
_SCANS = {"probelog": _UNIFORM, "weighted": _LOCAL, "dual": _BOTH, "whitened": _BOTH}


def visit(
    arrays: ScanArrays, query: Query, k: int, method: Method, mask: npt.NDArray[np.bool_] | None, start: int, stop: int
) -> Intervals:
    """Intervals of the outputs that can be among the top k of ``start..stop``; see ``scan.top_k``."""
    terms = arrays.terms(method)
    c = len(query.z)
    allowed = np.zeros(0, np.bool_) if mask is None else mask
    k = min(k, stop - start)
    capacity = max(4_096, 8 * k)
    # Few outputs are not worth two visits.
    last = max(query.z.shape[1] - 1 - query.z.shape[1] // _LIKELY, 0)
    likely = np.partition(query.z, last, axis=1)[:, last] if stop - start > capacity else np.full(c, np.inf, np.float32)
    while True:
        heap = np.full((c, max(k, 1)), np.finfo(np.float32).min / 4, np.float32)
        rows = np.empty((c, capacity), np.int64)
        lower = np.empty((c, capacity), np.float32)
        upper = np.empty((c, capacity), np.float32)
        count = np.zeros((c, 1), np.int64)
        end = _SCANS[method](
            arrays.head_idx, arrays.head_z, arrays.tail_idx, arrays.tail_z, terms.h, terms.s, terms.g, terms.q,
            terms.prior, arrays.code, arrays.scale, arrays.error,
            query.z, query.direction, query.step, query.length, query.missed, likely, allowed,
            start, stop, heap, rows, lower, upper, count,
        )  # fmt: skip
        if end == stop:
            break
        capacity *= 8  # so many outputs are equally good that their intervals overlap: rare, and still exact
    found: Intervals = []
    for i in range(c):
        near = slice(0, int(count[i, 0]))
        keep = upper[i, near] >= heap[i, 0]
        found.append((rows[i, near][keep], lower[i, near][keep], upper[i, near][keep]))
    return found
