"""Whitening of the embedding space: what all probes and all words have in common must not decide who correlates.

Embeddings of an image-text encoder fill a narrow cone: a few directions carry most of the variance, so that a plain
correlation over the probes mostly says that two things lie on the same side of those. With the covariance ``C`` of what
is to be told apart, ``u = (C + alpha I)^-1 t`` is the linear discriminant of a concept t: the direction whose
projection ``p . u`` separates it best from the rest (Fisher). An output is compared with the concept by the correlation
of its responses with ``p . u`` over all probes, ``rho_white = a . u / tau``: the anchor a stays what it is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

STRENGTH = 0.1
"""alpha, the ridge, as a share of the mean variance of a direction."""

WORDS = 0.5
"""How much of the covariance is that of the background's words, if there are very many; the probes make up the rest."""

MANY_WORDS = 400
"""Number of words that have half of that weight: a few words span a few directions only, and those are their own."""

FloatArray = npt.NDArray[np.float32]


def whitening(probes: FloatArray, words: FloatArray) -> FloatArray:
    """The matrix ``(C + alpha I)^-1`` with ``C = (1 - beta) C_probes + beta C_words``, each of mean variance 1.

    beta = (1/2) b / (b + 400).

    Args:
        probes: Normalised probe embeddings, float32 ``[n, d]``.
        words: Normalised embeddings of the background, float32 ``[b, d]``.

    Returns:
        Symmetric, positive definite, float32 ``[d, d]``.
    """
    beta = WORDS * len(words) / (len(words) + MANY_WORDS)
    mixed = (1 - beta) * _covariance(probes) + beta * _covariance(words)
    inverse = np.linalg.inv(mixed + STRENGTH * np.eye(len(mixed)))
    return np.asarray((inverse + inverse.T) / 2, dtype=np.float32)


def _covariance(vectors: FloatArray) -> npt.NDArray[np.float64]:
    """Covariance of the rows, scaled so that a direction has the variance 1 on average."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    covariance = centred.T @ centred
    return np.asarray(covariance * (len(covariance) / max(float(np.trace(covariance)), 1e-30)))
