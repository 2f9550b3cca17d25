"""Measures of retrieval, as pure functions of arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ranks = npt.NDArray[np.int64]


def first_hit_ranks(scores: npt.NDArray[np.floating], right: npt.NDArray[np.bool_]) -> Ranks:
    """The rank of the best right answer to each query.

    Equal scores are ranked by position, as ``engine.distance.rank`` does.

    Args:
        scores: Larger is better, ``[q, L]``, no NaN.
        right: Which answers are right, ``[q, L]``.

    Returns:
        int64 ``[q]``: 1 for the best place; 0 where no answer is right.
    """
    q, count = scores.shape
    if not count:
        return np.zeros(q, np.int64)
    among = np.where(right, scores, -np.inf)
    # A right answer of score -inf must win over a wrong one that was masked to it.
    place = np.where(np.isneginf(among.max(axis=1)), right.argmax(axis=1), among.argmax(axis=1))
    best = scores[np.arange(q), place][:, None]
    ahead = (scores > best).sum(axis=1)
    ahead += ((scores == best) & (np.arange(count) < place[:, None])).sum(axis=1)
    return np.asarray(np.where(right.any(axis=1), ahead + 1, 0), dtype=np.int64)


def hit_at(ranks: Ranks, k: int) -> float:
    """Share of the queries whose best right answer is among the first k, 0..1; NaN without queries.

    Args:
        ranks: From 1; 0 for a query without a right answer.
        k: >= 1.
    """
    return float(np.mean((ranks >= 1) & (ranks <= k))) if len(ranks) else float("nan")


def mean_reciprocal_rank(ranks: Ranks) -> float:
    """Mean of 1 / rank, 0..1, where a query without a right answer (rank 0) counts 0; NaN without queries."""
    if not len(ranks):
        return float("nan")
    return float(np.mean(np.where(ranks > 0, 1.0 / np.maximum(ranks, 1), 0.0)))


def coverage(top: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """How much of the first answers falls to few outputs, the hubness of a ranking.

    Args:
        top: The first answer to each query, ``[q]``.

    Returns:
        float64, one entry a distinct answer: entry j is the share of the queries that the j + 1 most frequent first
        answers cover; the last is 1.
    """
    counts = np.unique(top, return_counts=True)[1]
    return np.cumsum(np.sort(counts)[::-1]) / max(1, len(top))


def half_coverage(top: npt.NDArray[np.integer]) -> int:
    """How many distinct answers cover half of the first answers; small where a few hubs win everywhere.

    Args:
        top: The first answer to each query, ``[q]``.

    Returns:
        From 1 (or 0 without queries) to about q / 2.
    """
    if not len(top):
        return 0
    counts = np.sort(np.unique(top, return_counts=True)[1])[::-1]
    return int(np.searchsorted(2 * np.cumsum(counts), len(top)) + 1)


def average_precision(scores: npt.NDArray[np.floating], right: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Area under the precision-recall curve in its step form, ``sum_t (recall_t - recall_(t-1)) precision_t``.

    t runs over the distinct scores, descending: equal scores enter together, so their order does not matter.

    Args:
        scores: Larger is better, ``[a, m]``: a rankings of the same m things.
        right: Which of them are right, ``[m]``, at least one.

    Returns:
        float64 ``[a]`` in 0..1.

    Raises:
        ValueError: Nothing is right.
    """
    positives = int(right.sum())
    if not positives:
        raise ValueError("average precision needs something that is right")
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=1)
    hits = np.cumsum(right[order], axis=1)
    last = np.ones(ranked.shape, dtype=np.bool_)
    last[:, :-1] = ranked[:, :-1] != ranked[:, 1:]
    precision = hits / np.arange(1, scores.shape[1] + 1)
    # At the end of each run of equal scores: how much recall has grown since the end of the run before.
    ended = np.where(last, hits, 0)
    before = np.zeros_like(ended)
    before[:, 1:] = np.maximum.accumulate(ended, axis=1)[:, :-1]
    return np.asarray(np.where(last, (hits - before) * precision, 0.0).sum(axis=1) / positives)
