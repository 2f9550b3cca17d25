"""How well phrases fit outputs, compared with how well they fit outputs in general, and whether a label fits at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.descriptors import FloatArray
from engine.distance import Method

FEWEST_REFERENCE_OUTPUTS = 30
"""With fewer, their mean and standard deviation say nothing: margins are used as they are."""

AGREEMENT: Method = "whitened"
"""The method whose margins decide whether a label agrees, whatever names are found with: theirs have one scale."""

FAR_MARGIN = -0.5
"""A declared label disagrees with what the output does where its margin is at most this ..."""

CLEAR_LEAD = 5.0
"""... and the best found name's margin lies above it by more than this.

Measured on five real classifiers of ImageNet: 1.4% of the right labels are marked (4.7% on the weakest, at most 0.6% on
the three best), and 94% of labels that were shuffled. Labels in words that the encoder does not know, such as names of
species, are marked as well.
"""


@dataclass(frozen=True)
class Spread:
    """Margins of V phrases on outputs in general.

    Attributes:
        mean: float32 ``[V, 1]``.
        std: float32 ``[V, 1]``.
    """

    mean: FloatArray
    std: FloatArray

    def take(self, rows: npt.NDArray[np.intp]) -> Spread:
        """That of some of the phrases."""
        return Spread(self.mean[rows], self.std[rows])


def spread_of(reference: FloatArray) -> Spread | None:
    """Mean and standard deviation of margins over reference outputs; None with too few of them to tell.

    Args:
        reference: Margins of V phrases on a sample of s outputs, float32 ``[V, s]``.
    """
    if reference.shape[1] < FEWEST_REFERENCE_OUTPUTS:
        return None
    mean, std = np.empty((2, len(reference), 1), np.float32)
    for start in range(0, len(reference), 1_024):  # at once, the deviations would be another copy of the reference
        rows = slice(start, start + 1_024)
        mean[rows] = reference[rows].mean(axis=1, keepdims=True)
        std[rows] = reference[rows].std(axis=1, keepdims=True)
    return Spread(mean, std)


def word_scores(margins: FloatArray, reference: FloatArray | Spread | None) -> FloatArray:
    """How much better each phrase fits each output than it fits outputs in general.

    ``(margin(l, c) - mean_c) / std_c``, mean and standard deviation over the reference outputs, so that a phrase that
    comes near everything does not win everywhere. With fewer than 30 reference outputs, the margins as they are.

    Args:
        margins: Of V phrases on m outputs, float32 ``[V, m]``.
        reference: Of the same phrases on a sample of s outputs, float32 ``[V, s]``, or what ``spread_of`` says of it.

    Returns:
        float32 ``[V, m]``; larger is better.
    """
    spread = spread_of(reference) if isinstance(reference, np.ndarray) else reference
    if spread is None:
        return margins.copy()
    scores = margins - spread.mean
    scores /= np.maximum(spread.std, np.float32(1e-6))
    return scores


def disagrees(label: npt.ArrayLike, best: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Whether declared labels disagree clearly with what their outputs do.

    Args:
        label: Margins of the labels, of the method ``AGREEMENT``.
        best: Those of the best found names, of the same shape.
    """
    label, best = np.asarray(label), np.asarray(best)
    return np.asarray((label <= FAR_MARGIN) & (best - label > CLEAR_LEAD))
