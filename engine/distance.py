"""Truncated distance, correlation and margins in plain numpy: the readable form that the fast scan is held to.

All arrays of outputs have one row an output: ``idx`` uint16 ``[m, r]``, ``z`` float32 ``[m, r]`` descending,
``anchor`` float32 ``[m, d]``. All arrays of concepts have one row a concept. Results are ``[c, m]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from engine.descriptors import ConceptDescriptors
from engine.errors import InputError
from engine.outputs import Calibration

Method = Literal["whitened", "dual", "weighted", "probelog"]
"""How evidence becomes a margin; see ``margins``."""

METHODS: tuple[Method, ...] = get_args(Method)

LAMBDA = 1.0
"""Weight of the global evidence beside the local in ``dual`` and ``whitened``."""

PEAKEDNESS_WEIGHT = 0.4
PEAKEDNESS_USUAL = 5.0
"""``whitened`` expects outputs with a fourth moment of 5; a sharper one must show more evidence."""

FloatArray = npt.NDArray[np.float32]
_BLOCK = 2_000_000  # elements of one gathered block, about 8 MB of float32


def check_method(name: str) -> Method:
    """The method of that name.

    Raises:
        InputError: There is none.
    """
    for method in METHODS:
        if name == method:
            return method
    raise InputError(f"method {name!r} is unknown: use one of {', '.join(METHODS)}")


def weights(z: FloatArray, method: Method) -> FloatArray:
    """Weight of each kept probe: 1 for ``probelog``, else the soft truncation ``(max(z, 0) / max z)^3``.

    Args:
        z: Standardised responses, float32 ``[m, r]``, descending along each row, first > 0.
        method: Which method the weights are for.

    Returns:
        float32 ``[m, r]`` in 0..1.
    """
    if method == "probelog":
        return np.ones_like(z)
    ratio = np.maximum(z, 0) / z[:, :1]
    return np.asarray(ratio * ratio * ratio, dtype=np.float32)


def distances(idx: npt.NDArray[np.uint16], z: FloatArray, concepts: FloatArray, method: Method) -> FloatArray:
    """Truncated distances ``d(l, c) = sqrt(sum over A_l of w (z_l - z_c)^2)``.

    Args:
        idx: Kept probes ``[m, r]``.
        z: Standardised responses ``[m, r]``.
        concepts: Standardised similarities ``z_c``, float32 ``[c, n]``.
        method: Decides the weights.

    Returns:
        float32 ``[c, m]``, >= 0.
    """
    w = weights(z, method)
    columns = np.ascontiguousarray(concepts.T)  # gathering whole rows of [n, c] is what makes this fast
    m, r = idx.shape
    c = len(concepts)
    out = np.empty((m, c), np.float32)
    step = max(1, _BLOCK // max(1, r * c))
    for start in range(0, m, step):
        rows = slice(start, start + step)
        gap = columns[idx[rows]]  # [rows, r, c]
        gap -= z[rows, :, None]
        gap *= gap
        out[rows] = np.einsum("mr,mrc->mc", w[rows], gap)
    return np.sqrt(out).T


def correlations(anchor: FloatArray, concepts: ConceptDescriptors, whitened: bool = False) -> FloatArray:
    """Correlations over all n probes, ``rho(l, c) = a_l . t_c / sigma_c``.

    Args:
        anchor: ``[m, d]``.
        concepts: c concepts.
        whitened: With the concepts' linear discriminants, ``a_l . u_c / tau_c``, instead of the concepts.

    Returns:
        float32 ``[c, m]`` in -1..1.
    """
    direction = concepts.directions(whitened).astype(np.float32)
    return np.asarray(direction @ anchor.T, dtype=np.float32)


def prior(z: FloatArray, n: int) -> FloatArray:
    """What ``whitened`` grants each output before any concept is known: ``-0.4 ln(m4 / 5)``.

    m4 is the fourth moment of the standardised responses, ``(1/n) sum over A_l of z^4``. An output with sharp peaks has
    found probes that show just what it stands for; a concept that is not what those show must have better evidence.

    Args:
        z: Kept standardised responses ``[m, r]``, first > 0.
        n: Number of probes.

    Returns:
        float32 ``[m]``.
    """
    moment = (z.astype(np.float64) ** 4).sum(axis=1) / n
    return np.asarray(-PEAKEDNESS_WEIGHT * np.log(moment / PEAKEDNESS_USUAL), dtype=np.float32)


def margins(
    idx: npt.NDArray[np.uint16],
    z: FloatArray,
    anchor: FloatArray,
    calibration: Calibration,
    concepts: ConceptDescriptors,
    method: Method,
) -> FloatArray:
    """How much closer each concept is to each output than the background is; larger is better, > 0 is closer.

    ``probelog``: h - d with w = 1. ``weighted``: h - d with cubic weights.
    ``dual``: (h - d) / s + lambda (rho - g) / q with cubic weights. ``whitened``: (h - d) / s + (rho_white - g_white)
    / q_white + prior with cubic weights.

    Returns:
        float32 ``[c, m]``.
    """
    d = distances(idx, z, concepts.z, method)
    if method == "probelog":
        return calibration.h_uniform - d
    if method == "weighted":
        return calibration.h - d
    local = (calibration.h - d) / calibration.s
    if method == "whitened":
        white = (correlations(anchor, concepts, True) - calibration.g_white) / calibration.q_white
        return local + np.float32(LAMBDA) * white + calibration.prior
    return local + np.float32(LAMBDA) * (correlations(anchor, concepts) - calibration.g) / calibration.q


def rank(values: FloatArray, ties: Sequence[npt.ArrayLike] = ()) -> npt.NDArray[np.intp]:
    """Order of descending values, equal ones by the keys in ``ties``, then by position."""
    keys = [np.asarray(key) for key in ties]
    return np.lexsort((*reversed(keys), -np.asarray(values)))
