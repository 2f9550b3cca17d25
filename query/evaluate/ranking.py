"""Measures of a predicted ranking of models against the true one, as pure functions of arrays.

The true ranks and the predicted ones are made with the same rule for ties (:func:`engine.performance.ranks`). The top k
of a ranking are the models of rank at most k, and what is measured is the **intersection** of the predicted and the
true top k: n models, in the order of the predicted ranking (equal ranks in the order of the models)::

    rel_j = k - true rank of the j-th + 1,    DCG = sum_j (2^rel_j - 1) / log2(j + 1),    j = 1 ... n
    ndcg        = DCG / (the same sum with the intersection in its true order)
    ndcg_strict = DCG / (the same sum over the whole true top k in its true order)
    tau         = Kendall's tau-b of predicted and true ranks over the intersection

All are 0 where fewer than two models intersect. ``ndcg`` says how well those that were found are ordered,
``ndcg_strict`` punishes those that were not found as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from engine.performance import ranks

Float64Array = npt.NDArray[np.float64]

AT_K = ("ndcg", "ndcg_strict", "tau", "sum")
"""The measures of a top k; ``sum`` is ndcg + tau."""
REGRET = "regret"
"""The measure of the first place, in accuracy points; smaller is better."""


def ndcg(predicted: npt.ArrayLike, truth: npt.ArrayLike, k: int, ties: str = "average") -> float:
    """NDCG@k whose ideal order is that of the intersection, 0..1.

    Args:
        predicted: Predicted rank of each model, or any figure of which smaller is better, ``[m]``; NaN for a model that
            was not ranked, which is never in the top k.
        truth: True rank of each, or any figure of which smaller is better, ``[m]``; NaN for a model that does not
            count.
        k: From 1.
        ties: How equal figures are ranked.
    """
    return _one("ndcg", predicted, truth, k, ties)


def ndcg_strict(predicted: npt.ArrayLike, truth: npt.ArrayLike, k: int, ties: str = "average") -> float:
    """NDCG@k whose ideal is the whole true top k, 0..1. Arguments as for ``ndcg``."""
    return _one("ndcg_strict", predicted, truth, k, ties)


def kendall_tau(predicted: npt.ArrayLike, truth: npt.ArrayLike, k: int, ties: str = "average") -> float:
    """Kendall's tau-b over the intersection, -1..1; 0 where all its ranks are equal. Arguments as for ``ndcg``."""
    return _one("tau", predicted, truth, k, ties)


def regret(predicted: npt.ArrayLike, values: npt.ArrayLike, ties: str = "average") -> float:
    """What is lost by taking the model predicted best: the best value minus its own, in points (100 times a share).

    Args:
        predicted: Figures of which smaller is better, ``[m]``; NaN for a model that was not ranked.
        values: True performance of each, ``[m]``, shares; NaN for a model that does not count.
        ties: ``ordinal`` takes the first of several that are predicted best, every other rule the mean over them.

    Returns:
        From 0; NaN if no model that counts was ranked.
    """
    return float(regrets(np.asarray(predicted, np.float64)[None], np.asarray(values, np.float64)[None], ties)[0])


def measures(
    predicted: npt.NDArray[np.floating], truth: npt.NDArray[np.floating], ks: Sequence[int], ties: str = "average"
) -> dict[str, Float64Array]:
    """All measures of many rankings at once.

    Args:
        predicted: Figures of which smaller is better, ``[n, m]``; NaN for a model that was not ranked.
        truth: True ranks, or figures of which smaller is better, ``[n, m]`` or ``[m]``; NaN for a model that does not
            count.
        ks: Each from 1.
        ties: How equal figures are ranked.

    Returns:
        By ``ndcg@k``, ``ndcg_strict@k``, ``tau@k`` and ``sum@k``: float64 ``[n]``.
    """
    true = np.broadcast_to(_ranked(np.asarray(truth, np.float64), ties), np.shape(predicted))
    guess = _ranked(np.where(np.isnan(true), np.nan, predicted), ties)
    # The sort keys: NaN comes last, equal ranks stay in the order of the models.
    by_guess, by_truth = np.argsort(guess, axis=1, kind="stable"), np.argsort(true, axis=1, kind="stable")
    found: dict[str, Float64Array] = {}
    for k in ks:
        right = true <= k
        both = right & (guess <= k)
        gain = np.where(right, np.exp2(np.where(right, k - true + 1, 0)) - 1, 0.0)
        enough = both.sum(axis=1) >= 2
        dcg = _discounted(gain, both, by_guess)
        found[f"ndcg@{k}"] = _share(dcg, _discounted(gain, both, by_truth), enough)
        found[f"ndcg_strict@{k}"] = _share(dcg, _discounted(gain, right, by_truth), enough)
        found[f"tau@{k}"] = np.where(enough, _tau(guess, true, both), 0.0)
        found[f"sum@{k}"] = found[f"ndcg@{k}"] + found[f"tau@{k}"]
    return found


def regrets(
    predicted: npt.NDArray[np.floating], values: npt.NDArray[np.floating], ties: str = "average"
) -> Float64Array:
    """The regret of many rankings at once, float64 ``[n]``. Arguments as for ``regret``, ``[n, m]`` both."""
    known = ~np.isnan(values)
    guess = np.where(known & ~np.isnan(predicted), predicted, np.inf)
    first = (guess == guess.min(axis=1, keepdims=True, initial=np.inf)) & np.isfinite(guess)
    if ties == "ordinal":
        first &= np.cumsum(first, axis=1) == 1
    chosen = first.sum(axis=1)
    got = np.where(first, values, 0.0).sum(axis=1) / np.maximum(chosen, 1)
    best = np.where(known, values, -np.inf).max(axis=1, initial=-np.inf)
    return np.where(chosen > 0, 100 * (np.where(chosen > 0, best, 0.0) - got), np.nan)


def _one(name: str, predicted: npt.ArrayLike, truth: npt.ArrayLike, k: int, ties: str) -> float:
    rows = np.asarray(predicted, np.float64)[None], np.asarray(truth, np.float64)[None]
    return float(measures(*rows, (k,), ties)[f"{name}@{k}"][0])


def _ranked(figures: npt.NDArray[np.floating], ties: str) -> Float64Array:
    """Ranks along the last axis, of figures of which smaller is better."""
    return ranks(-figures.T, ties).T if figures.ndim > 1 else ranks(-figures[:, None], ties)[:, 0]


def _discounted(gain: Float64Array, chosen: npt.NDArray[np.bool_], order: npt.NDArray[np.integer]) -> Float64Array:
    """Discounted gain of the chosen models, which alone are counted to places."""
    there = np.take_along_axis(chosen, order, axis=1)
    place = np.cumsum(there, axis=1)
    return np.asarray((np.take_along_axis(gain, order, axis=1) * there / np.log2(place + 1 + ~there)).sum(axis=1))


def _share(part: Float64Array, whole: Float64Array, enough: npt.NDArray[np.bool_]) -> Float64Array:
    return np.where(enough, part / np.where(enough, whole, 1.0), 0.0)


def _tau(guess: Float64Array, true: Float64Array, both: npt.NDArray[np.bool_]) -> Float64Array:
    """Kendall's tau-b over the models in ``both``, float64 ``[n]``."""
    width = int(both.sum(axis=1).max(initial=0))
    first = np.argsort(~both, axis=1, kind="stable")[:, :width]
    there = np.take_along_axis(both, first, axis=1)
    pairs = there[:, :, None] & there[:, None, :] & np.triu(np.ones((width, width), np.bool_), 1)
    signs = []
    for figures in (guess, true):
        own = np.where(there, np.take_along_axis(figures, first, axis=1), 0.0)
        signs.append(np.sign(own[:, :, None] - own[:, None, :]) * pairs)
    untied = np.sqrt(np.prod([(sign != 0).sum(axis=(1, 2)) for sign in signs], axis=0, dtype=np.float64))
    agreed = (signs[0] * signs[1]).sum(axis=(1, 2))
    return np.asarray(np.where(untied > 0, agreed / np.maximum(untied, 1.0), 0.0))
