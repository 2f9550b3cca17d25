"""Calibration: how close the background comes to each output, so that no output wins by lying near everything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from engine.descriptors import ConceptDescriptors, concept_descriptors, normalise
from engine.distance import Method, correlations, distances, margins, prior
from engine.errors import InputError
from engine.outputs import Calibration, FloatArray
from engine.whitening import whitening

NEAREST = 10
"""k, how many of the nearest background concepts make the hubness."""

BACKGROUND_SIZE = 500

_FLOOR = 1e-6  # keeps s and q away from zero for outputs that every background concept is equally far from


@dataclass(frozen=True)
class Background:
    """The concepts that every output is calibrated against.

    Attributes:
        names: b phrases.
        concepts: Their descriptors over the index's probes.
        k: How many of the nearest make the hubness.
        whitening: Of the embedding space, float32 ``[d, d]``; None leaves the space as it is.
    """

    names: tuple[str, ...]
    concepts: ConceptDescriptors
    k: int = NEAREST
    whitening: FloatArray | None = None

    def __post_init__(self) -> None:
        if len(self.names) <= self.k:
            raise InputError(f"the background has {len(self.names)} phrases: it needs more than k = {self.k}")

    @classmethod
    def describe(cls, names: Sequence[str], t: npt.ArrayLike, probes: FloatArray, k: int = NEAREST) -> Self:
        """A background over probes, with the whitening that follows from both.

        Args:
            names: b phrases.
            t: Their embeddings ``[b, d]``.
            probes: Normalised probe embeddings, float32 ``[n, d]``.
            k: How many of the nearest make the hubness.

        Raises:
            InputError: There are no more than k phrases.
        """
        matrix = whitening(probes, normalise(t))
        return cls(tuple(names), concept_descriptors(t, probes, matrix), k, matrix)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the ordered phrases and k."""
        return background_fingerprint(self.names, self.k)


def background_fingerprint(names: Sequence[str], k: int = NEAREST) -> str:
    """SHA-256 over the ordered phrases and k, hexadecimal."""
    return hashlib.sha256(json.dumps([k, list(names)]).encode()).hexdigest()


def imagenet21k_names() -> tuple[str, ...]:
    """The distinct class names of ImageNet-21k, first synonym each, in alphabetical order: about 19,000."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet21k")
    first = (info.label_name_to_description(name, detailed=False) for name in info.label_names())
    return tuple(sorted({text.split(",")[0].strip() for text in first if text} - {""}))


def draw_background(count: int = BACKGROUND_SIZE, seed: int = 0, without: Sequence[str] = ()) -> tuple[str, ...]:
    """Class names of ImageNet-21k, first synonym each, drawn without replacement.

    Args:
        count: How many, at most about 19,000.
        seed: Of the draw.
        without: Names that must not occur (case is ignored), for evaluations whose queries must not be in it.

    Raises:
        InputError: There are fewer names than asked for.
    """
    barred = {name.casefold() for name in without}
    names = [name for name in imagenet21k_names() if name.casefold() not in barred]
    if count > len(names):
        raise InputError(f"a background of {count} phrases: ImageNet-21k has only {len(names)} names")
    chosen = np.random.default_rng(seed).choice(len(names), size=count, replace=False)
    return tuple(names[i] for i in chosen)


def calibrate(idx: npt.NDArray[np.uint16], z: FloatArray, anchor: FloatArray, background: Background) -> Calibration:
    """Constants of m outputs for every method (``h``, ``s``, ``g``, ``q`` of the module ``distance``).

    Args:
        idx: Kept probes ``[m, r]``.
        z: Standardised responses ``[m, r]``.
        anchor: ``[m, d]``.
        background: b concepts.

    Returns:
        float32 ``[m]`` each.
    """
    k = background.k
    uniform = distances(idx, z, background.concepts.z, "probelog")
    cubic = distances(idx, z, background.concepts.z, "weighted")
    rho = correlations(anchor, background.concepts)
    white = correlations(anchor, background.concepts, True)
    return Calibration(
        h_uniform=_mean_smallest(uniform, k),
        h=_mean_smallest(cubic, k),
        s=np.maximum(cubic.std(axis=0, dtype=np.float64), _FLOOR).astype(np.float32),
        g=-_mean_smallest(-rho, k),
        q=np.maximum(rho.std(axis=0, dtype=np.float64), _FLOOR).astype(np.float32),
        g_white=-_mean_smallest(-white, k),
        q_white=np.maximum(white.std(axis=0, dtype=np.float64), _FLOOR).astype(np.float32),
        prior=prior(z, background.concepts.z.shape[1]),
    )


def percentiles(
    idx: npt.NDArray[np.uint16],
    z: FloatArray,
    anchor: FloatArray,
    calibration: Calibration,
    margin: npt.NDArray[np.floating],
    background: Background,
    method: Method,
) -> npt.NDArray[np.float64]:
    """Where a margin stands among the output's own background margins, in per cent from the top.

    ``100 (1 + number of background concepts with a margin at least as large) / (1 + b)``: 0.2 for a concept that beats
    all of 500, 100 for one that beats none.

    Args:
        idx: Kept probes of m outputs ``[m, r]``.
        z: Standardised responses ``[m, r]``.
        anchor: ``[m, d]``.
        calibration: Of these outputs.
        margin: One margin an output, ``[m]``.
        background: The concepts that the calibration was made with.
        method: The method of the margins.

    Returns:
        ``[m]`` in (0, 100].
    """
    used, inverse = np.unique(idx, return_inverse=True)  # few outputs use few probes: read only those columns
    b = background.concepts
    own = margins(
        inverse.reshape(idx.shape).astype(np.uint16),
        z,
        anchor,
        calibration,
        ConceptDescriptors(b.t, np.asarray(b.z[:, used]), b.sigma, b.white),
        method,
    )
    beaten_by = (own >= margin).sum(axis=0)
    return np.asarray(100.0 * (1 + beaten_by) / (1 + len(background.names)))


def _mean_smallest(values: FloatArray, k: int) -> FloatArray:
    """Mean of the k smallest of each column."""
    smallest = np.partition(values, k - 1, axis=0)[:k]
    return np.asarray(smallest.mean(axis=0, dtype=np.float64), dtype=np.float32)
