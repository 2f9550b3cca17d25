"""Margins behind ``coverage``: bounds for all models, intervals for some outputs, float64 values for a few pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engine.descriptors import ConceptDescriptors
from engine.distance import Method
from engine.outputs import FloatArray
from engine.scan import Kernel, Query, ScanArrays, exact_margins, prepare, visit_numpy

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

PAIRS = 2_000_000
"""How many margins of (concept, output) pairs are held at once: 40 MB with what belongs to them."""

ROWS = 8_192
"""How many outputs the plain sweep copies at once, unless one model has more: 15 MB."""

ABOVE = 0.01
"""What counts of a margin above the ceiling: enough to prefer the better output, too little to make up for others."""


class Margins(Protocol):
    """Margins of the outputs of an index for c concepts: bounds for all, intervals and float64 values for some."""

    def bounds(
        self, starts: Ints, models: Ints, sizes: Ints, mask: Mask | None, floor: float, ceiling: float
    ) -> Floats:
        """Bounds of the values of models, float64 ``[models]``.

        The sum over the concepts of the best upper end, at least ``floor``, damped above ``ceiling``, divided by c;
        where a model has fewer outputs than there are concepts (``sizes``: how many are allowed, >= 1), over as many of
        the best concepts.
        """
        ...

    def intervals(self, rows: Ints, chosen: slice) -> tuple[FloatArray, FloatArray]:
        """Lower and upper ends for some concepts, float32 ``[chosen, rows]`` each."""
        ...

    def precise(self, rows: Ints, place: Ints, which: Ints) -> Floats:
        """Margins of ``rows[place]`` for the concepts ``which``, ``[place]``, within ``SAME`` of ``exact_margins``."""
        ...


@dataclass(frozen=True)
class PlainMargins:
    """Margins by the plain numpy of ``scan``."""

    arrays: ScanArrays
    concepts: ConceptDescriptors
    query: Query
    method: Method

    def bounds(
        self, starts: Ints, models: Ints, sizes: Ints, mask: Mask | None, floor: float, ceiling: float
    ) -> Floats:
        """See ``Margins``."""
        c = len(self.concepts)
        total = np.empty(len(models))
        for some in groups(starts[models + 1] - starts[models], ROWS):
            rows, counts = rows_of(starts, models[some], mask)
            best = np.empty((len(counts), c), np.float32)
            for chosen in blocks(c, len(rows)):
                upper = self.intervals(rows, chosen)[1]
                best[:, chosen] = np.maximum.reduceat(upper, offsets_of(counts), axis=1).T
            counted = damped(np.sort(np.maximum(best, floor), axis=1)[:, ::-1], ceiling)
            total[some] = np.where(np.arange(c) < sizes[some, None], counted, 0).sum(axis=1, dtype=np.float64)
        return total / c

    def intervals(self, rows: Ints, chosen: slice) -> tuple[FloatArray, FloatArray]:
        """See ``Margins``."""
        part = ScanArrays(**{f.name: getattr(self.arrays, f.name)[rows] for f in fields(ScanArrays)})
        query = Query(**{f.name: getattr(self.query, f.name)[chosen] for f in fields(Query)})
        found = visit_numpy(part, query, len(rows), self.method, None, 0, len(rows))
        return np.stack([lower for _, lower, _ in found]), np.stack([upper for _, _, upper in found])

    def precise(self, rows: Ints, place: Ints, which: Ints) -> Floats:
        """See ``Margins``."""
        return exact_pairs(self.arrays, self.concepts, self.method, rows[place], which)


@dataclass(frozen=True)
class CeiledMargins:
    """Margins of which little counts above a ceiling."""

    inner: Margins
    ceiling: float

    def bounds(
        self, starts: Ints, models: Ints, sizes: Ints, mask: Mask | None, floor: float, ceiling: float
    ) -> Floats:
        """See ``Margins``."""
        return self.inner.bounds(starts, models, sizes, mask, floor, min(ceiling, self.ceiling))

    def intervals(self, rows: Ints, chosen: slice) -> tuple[FloatArray, FloatArray]:
        """See ``Margins``."""
        lower, upper = self.inner.intervals(rows, chosen)
        room = np.float32(1e-6)  # more than float32 loses here
        return (
            damped(lower, self.ceiling).astype(np.float32) - room,
            damped(upper, self.ceiling).astype(np.float32) + room,
        )

    def precise(self, rows: Ints, place: Ints, which: Ints) -> Floats:
        """See ``Margins``."""
        return damped(self.inner.precise(rows, place, which), self.ceiling)


def damped(margins: npt.NDArray[np.floating], ceiling: float) -> Floats:
    """Margins of which a hundredth counts above the ceiling, float64."""
    values = margins.astype(np.float64)
    return values if ceiling == np.inf else np.minimum(values, ceiling) + ABOVE * np.maximum(values - ceiling, 0)


def make_margins(arrays: ScanArrays, concepts: ConceptDescriptors, method: Method, kernel: Kernel) -> Margins:
    """The margins of all outputs for some concepts, computed by a kernel."""
    query = prepare(concepts, method)
    if kernel == "numpy":
        return PlainMargins(arrays, concepts, query, method)
    from engine.coverage_numba import compiled_margins

    return compiled_margins(arrays, concepts, query, method)


def exact_pairs(arrays: ScanArrays, concepts: ConceptDescriptors, method: Method, rows: Ints, which: Ints) -> Floats:
    """``exact_margins`` of pairs: of each row for the concept beside it."""
    values = np.empty(len(rows))
    order = np.argsort(which, kind="stable")
    begins = np.searchsorted(which[order], np.arange(len(concepts) + 1))
    for i in np.unique(which).tolist():
        pick = order[begins[i] : begins[i + 1]]
        values[pick] = exact_margins(arrays, rows[pick], concepts, i, method)
    return values


def counts_of(starts: Ints, mask: Mask | None) -> Ints:
    """How many allowed outputs each model has."""
    if mask is None:
        return np.diff(starts)
    return np.diff(np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])[starts])


def rows_of(starts: Ints, models: Ints, mask: Mask | None) -> tuple[Ints, Ints]:
    """The allowed rows of some models, one after another, and how many each has."""
    sizes = starts[models + 1] - starts[models]
    rows = np.repeat(starts[models] - offsets_of(sizes), sizes) + np.arange(sizes.sum())
    if mask is None:
        return rows, sizes
    return rows[mask[rows]], np.bincount(np.repeat(np.arange(len(models)), sizes)[mask[rows]], minlength=len(models))


def offsets_of(sizes: Ints) -> Ints:
    """Where each of several parts begins that follow one another."""
    return np.asarray(np.cumsum(sizes) - sizes)


def groups(sizes: Ints, limit: int) -> Iterator[slice]:
    """Consecutive parts whose sizes sum to at most the limit, or one part alone."""
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        stop = int(np.searchsorted(ends, ends[first] - sizes[first] + limit, side="right"))
        yield slice(first, max(stop, first + 1))
        first = max(stop, first + 1)


def blocks(c: int, rows: int) -> Iterator[slice]:
    """Concepts in blocks so small that their margins for so many rows may be held at once."""
    block = max(1, PAIRS // max(rows, 1))
    for first in range(0, c, block):
        yield slice(first, min(first + block, c))
