"""Descriptors: what an output responded to, and what a concept would make an output respond to.

The notation follows the paper on ProbeLog: n probes, output l, concept c, r kept probes ``A_l``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from engine.errors import ConceptError, InputError
from engine.schema import LeftOut

VERSION = 2
"""Version of the descriptors: indexes made with another version are not mixed."""

MAX_PROBES = 65_535
"""Probe numbers are stored as uint16."""

Normalisation = Literal["divisive", "none"]
"""What is done to the responses of a model before they are described; see ``divisive_gain``."""

SHRINKAGE = 100
"""Number of outputs at which divisive normalisation has half of its full effect."""

_CONSTANT = 1e-6  # a standard deviation below this share of the largest value is float32 rounding, not a response
_CHUNK = 256  # outputs standardised at once: bounds the float64 copies

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ConceptDescriptors:
    """Dense descriptors of c concepts over n probes.

    Attributes:
        t: Normalised concept embeddings, float32 ``[c, d]``.
        z: Standardised cosine similarities to the probes, float32 ``[c, n]``: mean 0 and standard deviation 1 a row.
        sigma: Standard deviations of the similarities before that, float32 ``[c]``, > 0.
        white: ``u / tau``, float32 ``[c, d]``: the concepts' linear discriminants (see the module ``whitening``),
            scaled so that the projection of the probes on them has standard deviation 1. None where no whitening is
            known: the embedding space is then left as it is.
    """

    t: FloatArray
    z: FloatArray
    sigma: FloatArray
    white: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.t)

    @classmethod
    def join(cls, parts: Sequence[ConceptDescriptors]) -> ConceptDescriptors:
        """The concepts of several, one after another; at least one part."""
        if len(parts) == 1:
            return parts[0]
        white = [part.white for part in parts if part.white is not None]
        return cls(
            np.concatenate([part.t for part in parts]),
            np.concatenate([part.z for part in parts]),
            np.concatenate([part.sigma for part in parts]),
            np.concatenate(white) if len(white) == len(parts) else None,
        )

    def take(self, c: int) -> ConceptDescriptors:
        """One of the concepts."""
        one = slice(c, c + 1)
        white = None if self.white is None else self.white[one]
        return ConceptDescriptors(self.t[one], self.z[one], self.sigma[one], white)

    def directions(self, whitened: bool) -> npt.NDArray[np.float64]:
        """What anchors are multiplied with to get correlations: ``t / sigma`` or ``u / tau``, float64 ``[c, d]``."""
        if whitened and self.white is not None:
            return self.white.astype(np.float64)
        return np.asarray(self.t.astype(np.float64) / self.sigma[:, None].astype(np.float64))


@dataclass(frozen=True)
class OutputDescriptors:
    """Descriptors of the m usable outputs of a model.

    Attributes:
        output: Positions in the model's answer, int64 ``[m]``.
        mean: Mean responses, float64 ``[m]``.
        std: Standard deviations (ddof 0), float64 ``[m]``.
        idx: Kept probes, uint16 ``[m, r]``, by descending response.
        z: Standardised responses there, float32 ``[m, r]``.
        anchor: ``(1/n) sum_i z[i] (p_i - mean p)``, float32 ``[m, d]``.
        left_out: The other outputs and why.
    """

    output: npt.NDArray[np.int64]
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]
    idx: npt.NDArray[np.uint16]
    z: FloatArray
    anchor: FloatArray
    left_out: tuple[LeftOut, ...]


def normalise(vectors: npt.ArrayLike) -> FloatArray:
    """Rows scaled to length 1.

    Args:
        vectors: ``[m, d]``, no row zero or non-finite.

    Returns:
        float32 ``[m, d]``.

    Raises:
        InputError: A row is zero or not finite.
    """
    array = np.asarray(vectors, dtype=np.float64)
    length = np.linalg.norm(array, axis=-1, keepdims=True)
    if not np.all(np.isfinite(length)) or np.any(length == 0):
        raise InputError("the encoder answered with a zero or non-finite embedding")
    return np.asarray(array / length, dtype=np.float32)


def concept_descriptors(
    t: npt.ArrayLike, probes: FloatArray, whitening: FloatArray | None = None
) -> ConceptDescriptors:
    """Standardised similarities of concepts to the probes, ``z_c`` of the paper.

    Args:
        t: Concept embeddings ``[c, d]`` of any length > 0.
        probes: Normalised probe embeddings, float32 ``[n, d]``.
        whitening: Of the embedding space, float32 ``[d, d]`` (``whitening.whitening``).

    Returns:
        The descriptors; standardisation is over all n probes in float64.

    Raises:
        ConceptError: A concept is equally similar to every probe, so that it cannot be told apart.
    """
    unit = normalise(t)
    similarity = unit.astype(np.float64) @ probes.astype(np.float64).T
    mean = similarity.mean(axis=1, keepdims=True)
    sigma = similarity.std(axis=1, keepdims=True)
    if np.any(sigma < 1e-9):
        raise ConceptError("a concept is equally similar to every probe: use more or other probes", "")
    z = (similarity - mean) / sigma
    white = None
    if whitening is not None:
        u = unit.astype(np.float64) @ whitening.astype(np.float64)
        tau = (u @ probes.astype(np.float64).T).std(axis=1, keepdims=True)
        white = (u / tau).astype(np.float32)
    return ConceptDescriptors(unit, z.astype(np.float32), sigma[:, 0].astype(np.float32), white)


def top_responses(responses: npt.NDArray[np.float64], r: int) -> npt.NDArray[np.uint16]:
    """The probes of the r largest responses of each output.

    Args:
        responses: ``[m, n]``, finite, n at most 65,535.
        r: At most n.

    Returns:
        uint16 ``[m, r]``: by descending response, equal responses by probe order.
    """
    rows, n = responses.shape
    threshold = np.partition(responses, n - r, axis=1)[:, n - r, None]
    above = responses > threshold
    tied = responses == threshold
    room = r - above.sum(axis=1, keepdims=True)
    chosen = above | (tied & (np.cumsum(tied, axis=1) <= room))
    probes = np.nonzero(chosen)[1].reshape(rows, r)
    order = np.argsort(-np.take_along_axis(responses, probes, axis=1), axis=1, kind="stable")
    return np.take_along_axis(probes, order, axis=1).astype(np.uint16)


def divisive_gain(z: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """What each probe's responses are multiplied with so that no probe speaks louder than the others.

    Some images make all outputs of a model respond strongly, up or down. Each probe's responses are divided by their
    standard deviation over the model's outputs, as far as there are enough outputs to know it: with the variance v_i
    over the m outputs, the gain is ``(v_i / mean v) ^ (-(1/2) m / (m + 100))``.

    Args:
        z: Standardised responses of all outputs of one model ``[m, n]``.

    Returns:
        float64 ``[n]``, > 0.
    """
    if not len(z):
        return np.ones(z.shape[1])
    variance = z.var(axis=0, dtype=np.float64)
    mean = float(variance.mean())
    if mean <= 0:
        return np.ones(z.shape[1])
    share = len(z) / (len(z) + SHRINKAGE)
    # A probe on which all outputs agree exactly would get an endless gain: nothing is told by it.
    return np.asarray(np.maximum(variance / mean, 1e-4) ** (-share / 2))


def output_descriptors(
    responses: npt.NDArray[np.floating], probes: FloatArray, r: int, normalisation: Normalisation = "none"
) -> OutputDescriptors:
    """Descriptors of every output of one model.

    ``z = (response - mean) / std`` with mean and std over **all** n probes in float64, kept on the r largest responses;
    the anchor holds what the others say in the encoder's own space. With ``divisive`` normalisation z is multiplied by
    the model's ``divisive_gain`` and standardised again; ``mean`` and ``std`` stay those of the responses as given.

    Args:
        responses: Logits, or what stands for them, ``[n, outputs]``.
        probes: Normalised probe embeddings, float32 ``[n, d]``.
        r: Kept probes, 1..n.
        normalisation: ``none`` for the paper's descriptors, or ``divisive``.

    Returns:
        Descriptors of the usable outputs; constant, NaN and infinite ones are listed in ``left_out``.

    Raises:
        InputError: Shapes do not match, r is out of range or there are too many probes.
    """
    n, outputs = responses.shape
    if n != len(probes):
        raise InputError(f"{n} responses for {len(probes)} probes")
    if not 1 <= r <= n:
        raise InputError(f"top r is {r}: it must lie between 1 and the number of probes, {n}")
    if n > MAX_PROBES:
        raise InputError(f"{n} probes: at most {MAX_PROBES} are possible")
    centred = probes.astype(np.float64) - probes.mean(axis=0, dtype=np.float64)
    parts = [_empty(r, probes.shape[1])]
    left_out: list[LeftOut] = []
    gain = _gain(responses) if normalisation == "divisive" else None
    for start in range(0, outputs, _CHUNK):
        chunk = responses[:, start : start + _CHUNK].T.astype(np.float64)
        mean, std, reasons = _moments(chunk)
        left_out += [LeftOut(output=start + i, reason=reason) for i, reason in enumerate(reasons) if reason]
        good = np.nonzero([reason is None for reason in reasons])[0]
        if not len(good):
            continue
        chunk, mean, std = chunk[good], mean[good], std[good]
        z = (chunk - mean[:, None]) / std[:, None]
        if gain is not None:
            z *= gain
            z -= z.mean(axis=1, keepdims=True)
            z /= z.std(axis=1, keepdims=True)
        idx = top_responses(z if gain is not None else chunk, r)
        kept = np.take_along_axis(z, idx.astype(np.intp), axis=1).astype(np.float32)
        anchor = (z @ centred / n).astype(np.float32)
        parts.append(OutputDescriptors((good + start).astype(np.int64), mean, std, idx, kept, anchor, ()))

    def joined(name: str) -> npt.NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in parts])

    return OutputDescriptors(
        joined("output"),
        joined("mean"),
        joined("std"),
        joined("idx"),
        joined("z"),
        joined("anchor"),
        tuple(left_out),
    )


def _gain(responses: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The divisive gain of a model's usable outputs; ``responses`` is ``[n, outputs]``."""
    parts = [np.zeros((0, len(responses)), np.float32)]
    for start in range(0, responses.shape[1], _CHUNK):
        chunk = responses[:, start : start + _CHUNK].T.astype(np.float64)
        mean, std, reasons = _moments(chunk)
        good = [reason is None for reason in reasons]
        parts.append(((chunk[good] - mean[good, None]) / std[good, None]).astype(np.float32))
    return divisive_gain(np.concatenate(parts))


def _empty(r: int, d: int) -> OutputDescriptors:
    return OutputDescriptors(
        np.zeros(0, np.int64),
        np.zeros(0),
        np.zeros(0),
        np.zeros((0, r), np.uint16),
        np.zeros((0, r), np.float32),
        np.zeros((0, d), np.float32),
        (),
    )


def _moments(
    rows: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], list[str | None]]:
    """Mean and standard deviation of each row, and why a row is of no use."""
    nan: npt.NDArray[np.bool_] = np.asarray(np.isnan(rows).any(axis=1))
    infinite: npt.NDArray[np.bool_] = np.asarray(np.isinf(rows).any(axis=1)) & ~nan
    finite = np.where((nan | infinite)[:, None], 0.0, rows)
    mean, std = finite.mean(axis=1), finite.std(axis=1)
    constant = ~(nan | infinite) & (std <= _CONSTANT * np.abs(finite).max(axis=1))
    reasons: list[str | None] = [
        "NaN" if is_nan else "infinite" if is_infinite else "constant" if is_constant else None
        for is_nan, is_infinite, is_constant in zip(nan, infinite, constant, strict=True)
    ]
    return mean, std, reasons


def are_probabilities(answers: npt.NDArray[np.floating]) -> bool:
    """Whether a model answers probabilities: all in 0..1 and every row sums to 1 (within 0.001).

    Args:
        answers: ``[n, outputs]``.
    """
    if answers.shape[1] < 2 or not np.all((answers >= 0) & (answers <= 1)):
        return False
    return bool(np.all(np.abs(answers.sum(axis=1, dtype=np.float64) - 1) < 1e-3))


def centred_log_probabilities(probabilities: npt.NDArray[np.floating]) -> FloatArray:
    """``log p - mean over the outputs of log p``: the logits behind a softmax, up to a constant for each probe.

    Log-odds, which compare an output with the sum of the others, let the probe's most likely output move all of them;
    the centred form (Aitchison's centred log-ratio) does not. For two outputs it is half the log-odds.

    Args:
        probabilities: ``[n, outputs]``, rows sum to 1.

    Returns:
        float32 ``[n, outputs]``, finite: probabilities are raised to at least the smallest normal float32.
    """
    logs = np.log(np.maximum(probabilities.astype(np.float64), float(np.finfo(np.float32).tiny)))
    return np.asarray(logs - logs.mean(axis=1, keepdims=True), dtype=np.float32)
