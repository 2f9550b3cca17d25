"""Whether two models answer the same, from what the store keeps of their outputs.

Many repositories hold the same weights. Their responses are equal up to the order in which floating-point numbers are
added: about 1e-6 of a response between batch sizes, threads and machines. Two questions are answered here:

- :func:`sketch` makes two numbers of a model, to look candidates up by range in a database.
- :func:`same_responses` compares two models output by output.

Differences are measured in standard deviations of an output over the probes, the unit of standardised responses. Noise
only ever makes two equal models look different, and then the copy becomes a model of its own: a second entry, no error.
At the default tolerance of 1e-3, measured on five architectures with random weights, 100 outputs each, batches of
1, 7 and 32 images (the largest difference over all outputs, kept probes, means and anchors, and what it does):

=====================================  ============  ===================================================
the same weights, another batch size   up to 2e-5    pass with a factor of 50 to spare
weights rounded to float16             from 3e-3     do not pass; 7e-4 on average over the kept responses
weights rounded to bfloat16            from 2e-2     do not pass
one output's weights 1 % larger        1e-2          does not pass: the standard deviation is 1 % larger
noise of 1 % on one output's weights   from 1e-2     does not pass
=====================================  ============  ===================================================

Float noise is relative to a response, so an output whose mean is more than a thousand times its standard deviation can
miss its own copy. Two repositories that both hold the half-precision weights are equal, and pass.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from engine.outputs import OutputTable

REACH = 3.0
"""Sketches of models that are the same within a tolerance t <= 0.1 lie at most ``REACH * t`` apart, in each number."""


def sketch(table: OutputTable) -> tuple[float, float]:
    r"""Two numbers that are nearly equal for models that answer nearly the same.

    With fixed pseudo-random :math:`u_l` in [-1, 1) and :math:`w_l` in (0, 1] that follow from an output's number,
    :math:`\mu_l` and :math:`\sigma_l` its mean and standard deviation over the probes,

    .. math:: a = \sum_l u_l \mu_l / \sum_l \sqrt{\mu_l^2 + \sigma_l^2}, \qquad b = \log \sum_l w_l \sigma_l .

    Responses that are all larger by a factor 1 + e move b by e; noise of e of a response moves both by about e at most,
    and by less where it differs between outputs. Outputs in another order make other sums. If two tables pass
    ``same_responses`` with tolerance t <= 0.1, a differs by (1 + sqrt 2) t e^t at most and b by t: below ``REACH * t``.

    Args:
        table: Outputs of one model.

    Returns:
        a in [-1, 1] and b; both nan, which lies in no range, where there are no outputs or a number is not finite.
    """
    mean, std = table.mean.astype(np.float64), table.std.astype(np.float64)
    u, w = 2 * _uniform(table.output, 0) - 1, 1 - _uniform(table.output, 1)
    size, weighted = float(np.hypot(mean, std).sum()), float(w @ std)
    if not (0 < weighted < math.inf and size < math.inf):  # false for nan, too
        return math.nan, math.nan
    return float(u @ mean) / size, math.log(weighted)


def same_responses(a: OutputTable, b: OutputTable, tolerance: float = 1e-3) -> bool:
    """Whether two models answer the same, up to noise.

    They do if they have the same outputs and, for each output,

    - the means differ by at most ``tolerance`` of a standard deviation;
    - the ratio of the standard deviations lies between ``e^-tolerance`` and ``e^tolerance``;
    - the anchors differ by at most ``tolerance`` of their length;
    - the kept standardised responses, each table's in descending order, differ by at most ``tolerance`` each. The
      probes they belong to are not compared: noise exchanges two that are nearly equal, but it moves the k-th largest
      by no more than it moves any. That the probes are the same ones is what the anchor says.

    Labels, revisions and calibration play no part.

    Args:
        a: Outputs of one model.
        b: Outputs of another one, of the same index (same probes, encoder, r and normalisation).
        tolerance: In standard deviations, > 0.

    Returns:
        False where a number is NaN, and for tables without outputs, of which nothing is known.

    Raises:
        ValueError: The tables have another r or encoder dimension, so they are not of one index.
    """
    if a.z.shape[1:] != b.z.shape[1:] or a.anchor.shape[1:] != b.anchor.shape[1:]:
        raise ValueError(f"{a.repo} and {b.repo} are not of one index: their descriptors have other shapes")
    if not len(a) or not np.array_equal(a.output, b.output):
        return False
    with np.errstate(invalid="ignore", divide="ignore"):  # NaN and zeros are no equals; nobody needs to be warned
        close = np.abs(a.mean - b.mean) <= tolerance * np.maximum(a.std, b.std)
        close &= np.abs(np.log(a.std / b.std)) <= tolerance
        if not close.all():  # nearly always: spares the large arrays
            return False
        apart, length = _length(a.anchor, b.anchor), np.maximum(_length(a.anchor), _length(b.anchor))
        return bool((apart <= tolerance * length).all() and (np.abs(a.z - b.z) <= tolerance).all())


def _length(a: npt.NDArray[np.float32], minus: npt.NDArray[np.float32] | float = 0.0) -> npt.NDArray[np.float64]:
    return np.asarray(np.linalg.norm(a.astype(np.float64) - minus, axis=1))


def _uniform(output: npt.NDArray[np.int64], stream: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) that follow from output numbers alone: splitmix64, the same on every machine for ever."""
    x = (2 * output.astype(np.uint64) + np.uint64(stream + 1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2**53)
