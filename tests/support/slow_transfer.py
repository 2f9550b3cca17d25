"""Directional Conductance Divergence number by number, as its equations are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal, localcontext


def slow_importance(target: Sequence[float], eta: float) -> list[float]:
    largest = max(abs(v) for v in target)
    powers = [math.exp(eta * v / max(largest, 1e-8)) for v in target]
    return [power / sum(powers) for power in powers]


def slow_divergence(target: Sequence[float], source: Sequence[float], eta: float) -> float:
    alpha = slow_importance(target, eta)
    return sum(a * abs(t - s) / (abs(t) + 1e-8) for a, t, s in zip(alpha, target, source, strict=True))


def slow_weights(divergences: Sequence[float], gamma: float) -> list[float]:
    """exp(-gamma D) / sum, in decimals that do not underflow."""
    with localcontext() as context:
        context.prec = 60
        powers = [(-Decimal(gamma) * Decimal(float(d))).exp() for d in divergences]
        return [float(power / sum(powers)) for power in powers]


def slow_rank(
    target: Sequence[float], sources: Sequence[Sequence[float]], ranks: Sequence[float], eta: float, gamma: float
) -> float:
    weights = slow_weights([slow_divergence(target, source, eta) for source in sources], gamma)
    return sum(weight * rank for weight, rank in zip(weights, ranks, strict=True))
