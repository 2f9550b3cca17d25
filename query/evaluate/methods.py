"""The methods that an evaluation compares: one interface for ours and for the baselines.

Every name in ``engine.distance.METHODS`` is a method, computed by the engine itself from the r largest responses of
each output, and so is that name with ``+divisive``, for an index with divisive normalisation of the responses. The
baselines stand beside them in ``METHODS`` and take the responses as they are:

``truncated``
    The distance of ``probelog`` without calibration, ``-d``.
``all-probes``, ``all-probes-uncalibrated``
    r = n, w = 1: ``d^2 = sum over all probes of (z_l - z_c)^2``, as ``h - d`` and as ``-d``.
``cosine``
    Cosine of the output's standardised responses with the concept's similarities as the encoder gives them, neither
    standardised nor centred. As the responses are centred, this is the correlation times a constant of the concept: the
    outputs come in the same order as with ``all-probes-uncalibrated``, the concepts of one output in another. (A cosine
    of unstandardised responses would compare the arbitrary offsets of the models' logits.)
``wpmi``, ``soft-wpmi``, ``soft-wpmi-100``
    CLIP-Dissect (see the module ``wpmi``), the last with the temperature 100 that CLIP was trained with. Their K is
    their own, at most n; r and k do not matter to them.
``top-text``
    Calibrated, w = 1, over the r probes most similar to the concept instead of the output's.
``top-bottom``
    Calibrated, w = 1, over the r - r // 2 largest and the r // 2 smallest responses of the output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from engine.calibration import NEAREST, Background, calibrate
from engine.descriptors import ConceptDescriptors, FloatArray, top_responses
from engine.distance import METHODS as ENGINE_METHODS
from engine.distance import Method, distances
from engine.errors import InputError
from engine.outputs import Calibration
from query.evaluate import wpmi
from query.evaluate.scorers import (
    CosineScorer,
    Distance,
    DistanceScorer,
    EngineScorer,
    Scorer,
    Some,
    WpmiScorer,
    kept_outputs,
)
from query.evaluate.zoo import Zoo

DIVISIVE = "+divisive"
"""Ends the name of an engine's method where the responses are normalised divisively before."""

_CALIBRATED = 16_384  # outputs at once: bounds the background distances


@dataclass(frozen=True)
class Setting:
    """What the methods depend on beside the zoo and the background.

    Attributes:
        r: Kept probes, 1..n.
        k: How many of the nearest background concepts make the hubness.
    """

    r: int = 50
    k: int = NEAREST


class Workbench:
    """Makes the scorers of one zoo and background; what they share is computed once.

    Args:
        zoo: The outputs.
        background: The concepts to calibrate against; its own k gives way to the setting's.
        setting: r and k.
        vocabulary: The concept set of WPMI; see ``WpmiScorer``.

    Raises:
        InputError: r or k is out of range.
    """

    def __init__(
        self, zoo: Zoo, background: Background, setting: Setting, vocabulary: ConceptDescriptors | None = None
    ) -> None:
        n = zoo.responses.shape[1]
        if not 1 <= setting.r <= n:
            raise InputError(f"top r is {setting.r}: it must lie between 1 and the number of probes, {n}")
        if setting.k < 1:
            raise InputError(f"k is {setting.k}: at least one nearest background concept is needed")
        self.zoo, self.setting, self.vocabulary = zoo, setting, vocabulary
        self.background = replace(background, k=setting.k)

    @cached_property
    def kept(self) -> tuple[npt.NDArray[np.uint16], FloatArray, FloatArray]:
        """``idx``, ``z`` and ``anchor`` of all outputs."""
        return kept_outputs(self.zoo, self.setting.r)

    @cached_property
    def calibration(self) -> Calibration:
        """Constants of all outputs."""
        idx, z, anchor = self.kept
        starts = range(0, len(idx), _CALIBRATED)
        blocks = [slice(start, start + _CALIBRATED) for start in starts]
        parts = [calibrate(idx[block], z[block], anchor[block], self.background) for block in blocks]
        return Calibration(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Calibration)})

    @cached_property
    def divisive(self) -> Workbench:
        """The same over responses after divisive normalisation."""
        return Workbench(self.zoo.divisive(), self.background, self.setting, self.vocabulary)

    def scorer(self, name: str) -> Scorer:
        """The method of that name.

        Raises:
            InputError: There is none.
        """
        return METHODS[check_name(name)](self)

    def by_distance(self, distance: Distance, calibrated: bool) -> DistanceScorer:
        """A scorer by some distance."""
        return DistanceScorer(distance, len(self.zoo), self.background if calibrated else None)

    def top_and_bottom(self) -> tuple[npt.NDArray[np.uint16], FloatArray]:
        """The r - r // 2 largest and the r // 2 smallest responses of each output: ``idx`` and ``z``, ``[L, r]``."""
        low = self.setting.r // 2
        high = self.setting.r - low
        parts = [kept_outputs(self.zoo, high)[0]]
        if low:
            parts.append(kept_outputs(replace(self.zoo, responses=-self.zoo.responses), low)[0])
        idx = np.concatenate(parts, axis=1)
        return idx, np.take_along_axis(self.zoo.responses, idx.astype(np.intp), axis=1)


def _gathered(idx: npt.NDArray[np.uint16], z: FloatArray) -> Distance:
    """Distance with w = 1 over the probes of each output."""
    return lambda concepts, rows: distances(idx[rows], z[rows], concepts.z, "probelog")


def _over_all(zoo: Zoo) -> Distance:
    """Distance over all probes by ``|z_l|^2 + |z_c|^2 - 2 z_l . z_c`` in float32: ``d^2`` is right to about 1e-6 n."""
    lengths = np.einsum("ij,ij->i", zoo.responses, zoo.responses)

    def distance(concepts: ConceptDescriptors, rows: Some) -> FloatArray:
        square = -2 * (concepts.z @ zoo.responses[rows].T)
        square += lengths[rows]
        square += np.einsum("ij,ij->i", concepts.z, concepts.z)[:, None]
        return np.asarray(np.sqrt(np.maximum(square, 0)), dtype=np.float32)

    return distance


def _by_text(zoo: Zoo, r: int) -> Distance:
    """Distance over the r probes most similar to the concept, expanded in float32 likewise."""

    def distance(concepts: ConceptDescriptors, rows: Some) -> FloatArray:
        chosen = np.zeros_like(concepts.z)
        np.put_along_axis(chosen, top_responses(concepts.z.astype(np.float64), r).astype(np.intp), 1, axis=1)
        responses, z = zoo.responses[rows].T, chosen * concepts.z
        square = chosen @ (responses * responses)
        square -= 2 * (z @ responses)
        square += np.einsum("ij,ij->i", z, z)[:, None]
        return np.asarray(np.sqrt(np.maximum(square, 0)), dtype=np.float32)

    return distance


def _engine(method: Method) -> Callable[[Workbench], Scorer]:
    return lambda bench: EngineScorer(*bench.kept, bench.calibration, method)


def _divisive(method: Method) -> Callable[[Workbench], Scorer]:
    return lambda bench: _engine(method)(bench.divisive)


def _wpmi(setting: wpmi.WpmiSetting) -> Callable[[Workbench], Scorer]:
    return lambda bench: WpmiScorer(bench.zoo, setting, bench.vocabulary)


METHODS: dict[str, Callable[[Workbench], Scorer]] = {
    **{method: _engine(method) for method in ENGINE_METHODS},
    **{f"{method}{DIVISIVE}": _divisive(method) for method in ENGINE_METHODS},
    "truncated": lambda bench: bench.by_distance(_gathered(*bench.kept[:2]), calibrated=False),
    "all-probes": lambda bench: bench.by_distance(_over_all(bench.zoo), calibrated=True),
    "all-probes-uncalibrated": lambda bench: bench.by_distance(_over_all(bench.zoo), calibrated=False),
    "cosine": lambda bench: CosineScorer(bench.zoo),
    "wpmi": _wpmi(wpmi.HARD),
    "soft-wpmi": _wpmi(wpmi.SOFT),
    "soft-wpmi-100": _wpmi(wpmi.SOFT_100),
    "top-text": lambda bench: bench.by_distance(_by_text(bench.zoo, bench.setting.r), calibrated=True),
    "top-bottom": lambda bench: bench.by_distance(_gathered(*bench.top_and_bottom()), calibrated=True),
}
"""What makes the scorer of each method."""


def check_name(name: str) -> str:
    """The name, if there is such a method.

    Raises:
        InputError: There is none.
    """
    if name not in METHODS:
        raise InputError(f"method {name!r} is unknown: use one of {', '.join(METHODS)}")
    return name
