"""Directional Conductance Divergence (DCD): how well what is known of a model on other tasks carries over to a target.

A conductance profile v says how much each block of a model's vision tower contributes to what the model makes of a
task's images (:mod:`engine.conductance`). For one model, with the target's profile v_T and a source task's v_S::

    u = v_T / max(|v_T|),  alpha = softmax(eta u)                      importance of each block to the target
    delta_i = |v_T[i] - v_S[i]| / (|v_T[i]| + eps)                     relative deviation of each block
    D(T -> S) = sum_i alpha_i delta_i                                  the divergence; not symmetric, by intent
    p = softmin over the sources: p_S = exp(-gamma D_S) / sum exp(-gamma D)
    predicted rank = sum_S p_S rank_S                                  rank_S: the model's known rank on the source

The candidate with the smallest predicted rank is recommended. Everything here is plain numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import InputError

Float64Array = npt.NDArray[np.float64]

ETA = 2.0
"""Sharpness of the importance of blocks."""
GAMMA = 5.0
"""Sharpness of the weights of source tasks."""
EPS = 1e-8
"""Keeps a block without any conductance from dividing by zero."""


def softmax(x: npt.NDArray[np.floating[Any]]) -> Float64Array:
    """exp(x) / sum exp(x) along the last axis, float64."""
    shifted = np.asarray(x, np.float64)
    powers = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float64)


def importance(target: npt.NDArray[np.floating[Any]], eta: float = ETA) -> Float64Array:
    """Importance alpha of each block to the target, float64 ``[..., d]``, rows sum to 1.

    Args:
        target: Profile of the target, ``[..., d]``, not negative.
        eta: Sharpness; 0 makes all blocks equally important.
    """
    v = np.asarray(target, np.float64)
    largest = np.abs(v).max(axis=-1, keepdims=True)
    return softmax(eta * v / np.maximum(largest, EPS))


def deviations(target: npt.NDArray[np.floating[Any]], sources: npt.NDArray[np.floating[Any]]) -> Float64Array:
    """Relative deviation delta of each block, ``|v_T - v_S| / (|v_T| + eps)``, float64 ``[s, d]``.

    Args:
        target: Profile of the target ``[d]``.
        sources: Profiles of s source tasks ``[s, d]``, of the same model.
    """
    v = np.asarray(target, np.float64)
    return np.asarray(np.abs(v - np.asarray(sources, np.float64)) / (np.abs(v) + EPS), np.float64)


def divergence(
    target: npt.NDArray[np.floating[Any]], sources: npt.NDArray[np.floating[Any]], eta: float = ETA
) -> Float64Array:
    """Directional Conductance Divergence D(T -> S) of each source, float64 ``[s]``; 0 where the profiles are equal.

    Args:
        target: Profile of the target ``[d]``.
        sources: Profiles of s source tasks ``[s, d]``, of the same model.
        eta: Sharpness of the importance of blocks.

    Raises:
        InputError: The profiles have another number of blocks than the target.
    """
    if np.ndim(target) != 1 or np.ndim(sources) != 2 or np.shape(sources)[1] != np.shape(target)[0]:
        raise InputError(
            f"a target profile of shape {np.shape(target)} cannot be compared with source profiles of shape "
            f"{np.shape(sources)}: both must have one value a block"
        )
    return np.asarray(deviations(target, sources) @ importance(target, eta), np.float64)


def source_weights(divergences: npt.NDArray[np.floating[Any]], gamma: float = GAMMA) -> Float64Array:
    """Weights of the source tasks, softmin of their divergences: ``exp(-gamma D) / sum``, float64, sums to 1.

    Args:
        divergences: ``[..., s]``, s at least 1.
        gamma: Sharpness; 0 gives uniform weights.

    Raises:
        InputError: There is no source task.
    """
    if np.shape(divergences)[-1] == 0:
        raise InputError("there is no source task to learn from: profile the model on at least one with known ranks")
    d = np.asarray(divergences, np.float64)
    return softmax(-gamma * (d - d.min(axis=-1, keepdims=True)))  # the nearest first: no product overflows to NaN


def predicted_rank(weights: npt.NDArray[np.floating[Any]], ranks: npt.NDArray[np.floating[Any]]) -> float:
    """The weighted mean of the known ranks.

    Args:
        weights: Of the source tasks ``[s]``; they sum to 1.
        ranks: The model's ranks on them ``[s]``, 1 is best.
    """
    return float(np.asarray(weights, np.float64) @ np.asarray(ranks, np.float64))
