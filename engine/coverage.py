"""Models that cover a list of concepts, each concept by an output of its own: the exact top k models of an index.

A model's value is that of its best assignment of distinct outputs to the concepts. One sweep over all outputs gives
every margin an interval that holds it, as in ``scan``. The best upper end of each concept, whichever output it is of,
bounds the assignment from above; models are visited by descending bound until none can be among the top k any more. A
visited model is finished in float64: mostly its best outputs are distinct already, else an assignment is solved. The
answer is therefore that of solving every model.
"""

from __future__ import annotations

import heapq
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np

from engine.coverage_margins import (
    PAIRS,
    CeiledMargins,
    Floats,
    Ints,
    Margins,
    Mask,
    blocks,
    counts_of,
    damped,
    exact_pairs,
    groups,
    make_margins,
    offsets_of,
    rows_of,
)
from engine.descriptors import ConceptDescriptors
from engine.distance import Method
from engine.errors import InputError
from engine.scan import (
    ONE_THREAD_ROWS,
    Kernel,
    ScanArrays,
    choose_kernel,
)

Require = Literal["all", "any"]
"""``all``: every concept must have an output; ``any``: a concept that nothing recognises counts 0."""

WAVE = 16
"""At least so many models are visited at once: what numpy costs for each call is shared."""

SAME = 1e-9
"""Two float64 forms of one margin differ by less than this share of it (and of 1)."""


@dataclass(frozen=True)
class ModelMatch:
    """A model and the outputs with which it covers c concepts.

    Attributes:
        model: Place among the models.
        margin: Mean of ``margins``, an unmatched concept counting 0.
        rows: The output matched to each concept, int64 ``[c]``; -1 for none.
        margins: Their margins, float64 ``[c]``; nan where there is none.
    """

    model: int
    margin: float
    rows: Ints
    margins: Floats


def top_models(
    arrays: ScanArrays,
    starts: Ints,
    concepts: ConceptDescriptors,
    k: int,
    method: Method,
    *,
    require: Require = "all",
    ceiling: float = np.inf,
    mask: Mask | None = None,
    threads: int | None = None,
    kernel: Kernel = "auto",
) -> list[ModelMatch]:
    """The exact top k models by how well distinct outputs of theirs cover all of the concepts.

    Args:
        arrays: L outputs, those of a model together.
        starts: First row of each of M models and L at the end, int64 ``[M + 1]``, ascending.
        concepts: c concepts.
        k: How many, >= 1.
        method: Which margin (see ``distance.margins``).
        require: ``all``: a model with fewer allowed outputs than concepts is left out; the value is the mean margin.
            ``any``: a concept may stay unmatched and counts 0, as does a margin below 0; a model whose value is 0 is
            left out.
        ceiling: Above this a margin counts a hundredth, so that a model that is superb at one concept does not win
            over one that has all of them; models are then ranked by the mean of what counts. > 0.
        mask: bool ``[L]``: outputs that may be matched; None for all.
        threads: At least 1; by default one below 200,000 outputs times concepts, else one a core.
        kernel: ``numba``, ``numpy``, or ``auto`` (``choose_kernel``).

    Returns:
        Best first, equal values by place; fewer than k where fewer models qualify. Of equally good assignments within a
        model any one is given, but for one concept the first output.
    """
    c = len(concepts)
    starts = np.asarray(starts, np.int64)
    counts = counts_of(starts, mask)
    models = np.nonzero(counts >= (c if require == "all" else 1))[0]
    if not c or not len(models):
        return []
    work = int(counts[models].sum()) * c
    if kernel == "auto":
        kernel = choose_kernel(arrays, work)
    margins = make_margins(arrays, concepts, method, kernel)
    if ceiling != np.inf:
        margins = CeiledMargins(margins, ceiling)
    count = threads or (1 if work < ONE_THREAD_ROWS else len(os.sched_getaffinity(0)))
    floor = -np.inf if require == "all" else 0.0
    bounds = _swept(margins, starts, models, counts[models], mask, floor, count)
    if require == "any":
        models, bounds = models[bounds > 0], bounds[bounds > 0]
    visited = _visited(margins, starts, models, bounds, c, k, require, mask)
    return _finished(arrays, concepts, method, visited, k, require, ceiling)


def best_assignment(margins: Floats, require: Require = "all") -> tuple[Ints, float]:
    """The assignment of distinct outputs to concepts with the largest sum, exactly.

    Args:
        margins: float64 ``[c, m]``, finite, or -inf for a pair that must not be matched.
        require: ``all``: every concept is matched; ``any``: only where the margin is above 0.

    Returns:
        The column of each concept, int64 ``[c]``, -1 for none, and the sum of the matched margins over c (0 for c = 0).

    Raises:
        InputError: With ``all``, there are fewer outputs than concepts or too many pairs must not be matched.
    """
    c, m = margins.shape
    if require == "all" and m < c:
        raise InputError(f"{c} concepts but {m} outputs: each concept needs an output of its own")
    if not c or not m:
        return np.full(c, -1, np.int64), 0.0
    gains = margins if require == "all" else np.maximum(margins, 0)
    columns = gains.argmax(axis=1)
    best = gains[np.arange(c), columns]
    wanted = columns[best > (-np.inf if require == "all" else 0)]
    if len(np.unique(wanted)) < len(wanted) or (require == "all" and len(wanted) < c):
        from scipy.optimize import linear_sum_assignment

        try:
            concept, column = linear_sum_assignment(-gains)
        except ValueError as error:  # what scipy raises where every assignment contains an infinite cost
            raise InputError(f"{c} concepts cannot be matched to allowed outputs of their own") from error
        columns, best = np.full(c, -1, np.int64), np.zeros(c)
        columns[concept], best[concept] = column, gains[concept, column]
    if require == "any":
        columns = np.where(best > 0, columns, -1)
    return columns.astype(np.int64), float(best.sum() / c)


def _swept(
    margins: Margins, starts: Ints, models: Ints, sizes: Ints, mask: Mask | None, floor: float, threads: int
) -> Floats:
    """The bounds of all models, by threads that have about equally many outputs each."""
    if threads == 1:
        return margins.bounds(starts, models, sizes, mask, floor, np.inf)
    ends = np.cumsum(sizes)
    cuts = np.searchsorted(ends, np.linspace(0, ends[-1], threads + 1)[1:-1], side="left")
    parts = zip(np.split(models, cuts), np.split(sizes, cuts), strict=True)
    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(
            list(pool.map(lambda part: margins.bounds(starts, part[0], part[1], mask, floor, np.inf), parts))
        )


class _Best:
    """The k best values so far."""

    def __init__(self, k: int) -> None:
        self._heap = [-np.inf] * k

    def add(self, value: float) -> None:
        heapq.heappushpop(self._heap, value)

    def reached_by(self, value: float) -> bool:
        """Whether a model with that value or bound can still be among the top k."""
        worst = self._heap[0]
        return bool(worst == -np.inf or value >= worst - SAME * (1 + abs(worst)))


_Covered = tuple[float, int, Ints]  # value, model, rows


def _visited(
    margins: Margins, starts: Ints, models: Ints, bounds: Floats, c: int, k: int, require: Require, mask: Mask | None
) -> list[_Covered]:
    """The models that are among the top k within ``SAME``, solved, in any order."""
    order = np.argsort(-bounds, kind="stable")
    models, bounds = models[order], bounds[order]
    found: list[_Covered] = []
    best, at = _Best(min(k, len(models))), 0
    while at < len(models) and best.reached_by(bounds[at]):
        wave = models[at : at + max(WAVE, min(k, 4 * WAVE))]
        wave = wave[next(groups(starts[wave + 1] - starts[wave], PAIRS // c))]
        at += len(wave)
        values, rows, clash = _independent(margins, starts, wave, c, require, mask)
        for i in np.lexsort((-values, clash)).tolist():  # those that are finished already may spare us others
            if not best.reached_by(values[i]):
                continue
            value, chosen = float(values[i]), rows[i]
            if clash[i]:
                value, chosen = _solved(margins, rows_of(starts, wave[i : i + 1], mask)[0], c, require)
            best.add(value)
            found.append((value, int(wave[i]), chosen))
    return [solved for solved in found if best.reached_by(solved[0])]


def _independent(
    margins: Margins, starts: Ints, wave: Ints, c: int, require: Require, mask: Mask | None
) -> tuple[Floats, Ints, Mask]:
    """Each model's value, or a bound of it, the rows ``[models, c]`` of the best margins, and whether two are the same.

    Only where two are the same an assignment must be solved, and the value is a bound.
    """
    rows, sizes = rows_of(starts, wave, mask)
    offsets = offsets_of(sizes)
    margin, row = np.empty((len(wave), c)), np.empty((len(wave), c), np.int64)
    highest = np.full(len(rows), -np.inf, np.float32)
    for chosen in blocks(c, len(rows)):
        lower, upper = margins.intervals(rows, chosen)
        highest = np.maximum(highest, upper.max(axis=0))
        reach = np.repeat(np.maximum.reduceat(lower, offsets, axis=1), sizes, axis=1)
        which, place = np.nonzero(upper >= reach)  # each model has one for each concept: the one of the best lower end
        which += chosen.start
        exact = margins.precise(rows, place, which)
        cell = (np.searchsorted(offsets, place, side="right") - 1) * c + which
        order = np.lexsort((place, -exact, cell))
        cells, first = np.unique(cell[order], return_index=True)
        margin.reshape(-1)[cells] = exact[order[first]]
        row.reshape(-1)[cells] = rows[place[order[first]]]
    if require == "any":
        row, margin, highest = np.where(margin > 0, row, -1), np.maximum(margin, 0), np.maximum(highest, 0)
    apart = np.sort(np.where(row < 0, -1 - np.arange(c), row), axis=1)
    clash = (apart[:, 1:] == apart[:, :-1]).any(axis=1)
    # Each of the matched outputs brings at most its best margin, and there are at most c of them.
    model = np.repeat(np.arange(len(wave)), sizes)
    highest = highest[np.lexsort((-highest, model))]
    taken = np.arange(len(rows)) - offsets[model] < c
    by_output = np.bincount(model[taken], highest[taken], minlength=len(wave)) / c
    by_concept = margin.mean(axis=1)
    return np.where(clash, np.minimum(by_concept, by_output), by_concept), row, clash


def _solved(margins: Margins, rows: Ints, c: int, require: Require) -> tuple[float, Ints]:
    """The value of one model and the row of each concept, -1 for none.

    Only pairs among the c best of their concept take part: a concept that is matched to a lesser one could take one of
    the c instead, of which the others hold at most c - 1.
    """
    parts = []
    rank = min(c, len(rows))
    for chosen in blocks(c, len(rows)):
        if rank < len(rows):
            lower, upper = margins.intervals(rows, chosen)
            reach = np.partition(lower, len(rows) - rank, axis=1)[:, [len(rows) - rank]]
            which, place = np.nonzero(upper >= reach)
        else:
            which, place = np.divmod(np.arange((chosen.stop - chosen.start) * len(rows)), len(rows))
        exact = margins.precise(rows, place, which + chosen.start)
        if rank < len(rows):  # once more by the margins themselves: then no tie depends on the intervals
            order = np.lexsort((-exact, which))
            worst = exact[order[np.searchsorted(which, np.arange(chosen.stop - chosen.start)) + rank - 1]]
            keep = exact >= worst[which]
            which, place, exact = which[keep], place[keep], exact[keep]
        parts.append((which + chosen.start, place, exact))
    which, place, exact = (np.concatenate(column) for column in zip(*parts, strict=True))
    places, column = np.unique(place, return_inverse=True)
    matrix = np.full((c, len(places)), -np.inf)
    matrix[which, column] = exact
    columns, value = best_assignment(matrix, require)
    return value, np.where(columns < 0, -1, rows[places[columns]])


def _finished(
    arrays: ScanArrays,
    concepts: ConceptDescriptors,
    method: Method,
    visited: list[_Covered],
    k: int,
    require: Require,
    ceiling: float,
) -> list[ModelMatch]:
    """The top k with their exact margins."""
    if not visited:
        return []
    rows = np.array([chosen for _, _, chosen in visited])
    margins = np.full(rows.shape, np.nan)
    place, which = np.nonzero(rows >= 0)
    margins[place, which] = exact_pairs(arrays, concepts, method, rows[place, which], which)
    if require == "any":
        with np.errstate(invalid="ignore"):
            unmatched = ~(margins > 0)
        rows, margins = np.where(unmatched, -1, rows), np.where(unmatched, np.nan, margins)
    matches = [
        ModelMatch(model, float(np.nansum(margins[i]) / len(concepts)), rows[i], margins[i])
        for i, (_, model, _) in enumerate(visited)
    ]
    matches = [match for match in matches if require == "all" or match.margin > 0]

    def counted(match: ModelMatch) -> float:
        return match.margin if ceiling == np.inf else float(np.nansum(damped(match.margins, ceiling)))

    return sorted(matches, key=lambda match: (-counted(match), match.model))[:k]
