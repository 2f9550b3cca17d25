"""WPMI and soft WPMI, the baselines of CLIP-Dissect.

After Oikarinen and Weng, "CLIP-Dissect: Automatic Description of Neuron Representations in Deep Vision Networks",
ICLR 2023. Every probe ``x_i`` distributes itself over a set of concepts,
``p(t_j | x_i) = softmax_j(a cos(x_i, t_j))``, and an output l is known by ``B_l``, its top K probes. Then::

    WPMI(t_j, l)      = log p(t_j | B_l) - lambda log p(t_j),  log p(t_j | B_l) = sum over B_l of log p(t_j | x_i)
    soft WPMI(t_j, l) = the same with
                        log p(t_j | B_l) = sum over i of log(1 + p(x_i in B_l) (p(t_j | x_i) - 1))
    p(t_j)            = mean over the outputs of p(t_j | B_l)

``p(x_i in B_l)`` falls linearly with the place of ``x_i`` among the top K and is 0 behind them. The defaults are those
of the authors' published code.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_ROWS = 4_096  # outputs at once: enough to make the tables of a place in the top K worth their while
_CONCEPTS = 64  # concepts at once: their running products stay in the cache
_FACTORS = 32  # probabilities multiplied before a logarithm is taken: 1e-7 ** 32 is still a float64

Places = npt.NDArray[np.integer]
Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class WpmiSetting:
    """The constants of one variant.

    Attributes:
        top: K, how many probes stand for an output.
        temperature: a.
        lam: Weight of the concept's own frequency.
        soft: Which of the two formulas.
        first: p(x_i in B_l) of the strongest probe (soft only).
        last: What it falls to towards the end of the K.
        floor: Added to every probability before its logarithm.
    """

    top: int
    temperature: float
    lam: float
    soft: bool
    first: float = 0.998
    last: float = 0.97
    floor: float = 1e-7


HARD = WpmiSetting(top=28, temperature=2.0, lam=0.6, soft=False)
SOFT = WpmiSetting(top=100, temperature=10.0, lam=1.0, soft=True)
SOFT_100 = WpmiSetting(top=100, temperature=100.0, lam=1.0, soft=True)


def normaliser(similarity: npt.NDArray[np.floating], temperature: float) -> npt.NDArray[np.float64]:
    """Logarithm of the softmax's denominator over a set of concepts.

    Args:
        similarity: Cosines of the set's concepts with the probes, ``[c, n]``.
        temperature: a.

    Returns:
        float64 ``[n]``.
    """
    return log_sum_exp(temperature * similarity.astype(np.float64), axis=0)


def log_sum_exp(values: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    """``log(sum(exp(values)))`` along an axis, without overflow."""
    largest = values.max(axis=axis, keepdims=True)
    total = np.log(np.exp(values - largest).sum(axis=axis, keepdims=True)) + largest
    return np.asarray(np.squeeze(total, axis=axis))


def log_likelihood(probability: Probabilities, top: Places, setting: WpmiSetting) -> npt.NDArray[np.float64]:
    """``log p(t_j | B_l)`` of every concept and output.

    Args:
        probability: ``p(t_j | x_i)``, float64 ``[c, n]``.
        top: The top K probes of each output, best first, ``[L, K]``.
        setting: Which formula, and its constants.

    Returns:
        float64 ``[c, L]``.
    """

    def factor(part: Probabilities, probes: Places, place: float) -> Probabilities:
        if len(probes) < len(part):
            return _factor(part[probes], place, setting)
        return _factor(part, place, setting)[probes]

    c, outputs, k = len(probability), len(top), top.shape[1]
    columns = np.ascontiguousarray(probability.T)
    out = np.empty((outputs, c))
    for start in range(0, outputs, _ROWS):
        places = np.ascontiguousarray(top[start : start + _ROWS].T)
        for low in range(0, c, _CONCEPTS):
            part = columns[:, low : low + _CONCEPTS]
            total = np.zeros((places.shape[1], part.shape[1]))
            product = np.ones_like(total)
            for place in range(k):
                product *= factor(part, places[place], place / k)
                if place % _FACTORS == _FACTORS - 1 or place == k - 1:
                    total += np.log(product)
                    product.fill(1.0)
            out[start : start + _ROWS, low : low + _CONCEPTS] = total
    return out.T


def _factor(probability: Probabilities, place: float, setting: WpmiSetting) -> Probabilities:
    """What a probe contributes at a relative place (0 to below 1) among the top K."""
    if not setting.soft:
        return probability + setting.floor
    member = setting.first - place * (setting.first - setting.last)
    return 1 + member * (probability - 1) + setting.floor


def mutual_information(likelihood: npt.NDArray[np.float64], lam: float) -> npt.NDArray[np.float64]:
    """``log p(t_j | B_l) - lambda log p(t_j)`` with ``p(t_j)`` the mean over the outputs.

    Args:
        likelihood: ``log p(t_j | B_l)``, float64 ``[c, L]``.
        lam: Weight of the concept's frequency.

    Returns:
        float64 ``[c, L]``.
    """
    return np.asarray(likelihood - lam * log_frequency(likelihood)[:, None])


def log_frequency(likelihood: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``log p(t_j)``, the logarithm of the mean likelihood over the outputs, float64 ``[c]``."""
    return np.asarray(log_sum_exp(likelihood, axis=1) - np.log(likelihood.shape[1]))
