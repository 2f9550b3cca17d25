"""Scorers: what turns concepts and the responses of a zoo into scores, one class a kind of method."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from engine.calibration import Background
from engine.descriptors import MAX_PROBES, ConceptDescriptors, FloatArray, top_responses
from engine.distance import Method, margins
from engine.errors import InputError
from engine.outputs import Calibration
from engine.scan import ScanArrays, pack, top_k
from query.evaluate import wpmi
from query.evaluate.zoo import Zoo

Rows = npt.NDArray[np.int64]
Some = npt.NDArray[np.int64] | slice
"""Which outputs."""

Distance = Callable[[ConceptDescriptors, Some], FloatArray]
"""Distances of concepts to some outputs, ``[c, rows]``."""

_BLOCK = 4_000_000  # elements of one [c, rows] block
_STANDARDISED = 512  # outputs at once in float64


class Scorer(Protocol):
    """One method, ready for one zoo."""

    def __call__(self, concepts: ConceptDescriptors, rows: Rows | None = None) -> FloatArray:
        """Scores, larger is better.

        Args:
            concepts: c concepts.
            rows: Outputs to score; None for all L.

        Returns:
            float32 ``[c, L]``, or ``[c, rows]``.
        """


def kept_outputs(zoo: Zoo, r: int) -> tuple[npt.NDArray[np.uint16], FloatArray, FloatArray]:
    """What an index keeps of a zoo's outputs.

    Args:
        zoo: L outputs over n probes.
        r: Kept probes, 1..n.

    Returns:
        ``idx`` uint16 ``[L, r]``, ``z`` float32 ``[L, r]`` descending, ``anchor`` float32 ``[L, d]``.

    Raises:
        InputError: r is out of range or there are too many probes.
    """
    outputs, n = zoo.responses.shape
    if not 1 <= r <= n:
        raise InputError(f"top r is {r}: it must lie between 1 and the number of probes, {n}")
    if n > MAX_PROBES:
        raise InputError(f"{n} probes: at most {MAX_PROBES} are possible")
    centred = zoo.probes.astype(np.float64) - zoo.probes.mean(axis=0, dtype=np.float64)
    idx = np.empty((outputs, r), np.uint16)
    anchor = np.empty((outputs, zoo.probes.shape[1]), np.float32)
    for start in range(0, outputs, _STANDARDISED):
        block = zoo.responses[start : start + _STANDARDISED].astype(np.float64)
        idx[start : start + len(block)] = top_responses(block, r)
        anchor[start : start + len(block)] = block @ centred / n
    return idx, np.take_along_axis(zoo.responses, idx.astype(np.intp), axis=1), anchor


def _blocks(outputs: int, rows: Rows | None, width: int) -> Iterator[tuple[slice, Some]]:
    """Parts of the asked outputs: their places in the answer, and the outputs (as slices, free of copies, for all)."""
    count = outputs if rows is None else len(rows)
    step = max(64, _BLOCK // max(1, width))
    for start in range(0, count, step):
        place = slice(start, start + step)
        yield place, place if rows is None else rows[place]


class EngineScorer:
    """A method of the engine: margins from kept probes, anchors and calibration constants.

    Args:
        idx: uint16 ``[L, r]``.
        z: float32 ``[L, r]``.
        anchor: float32 ``[L, d]``.
        calibration: Constants of the L outputs.
        method: Which.
    """

    def __init__(
        self,
        idx: npt.NDArray[np.uint16],
        z: FloatArray,
        anchor: FloatArray,
        calibration: Calibration,
        method: Method,
    ) -> None:
        self._idx, self._z, self._anchor, self._calibration = idx, z, anchor, calibration
        self._method = method

    def __call__(self, concepts: ConceptDescriptors, rows: Rows | None = None) -> FloatArray:
        """Margins, see ``Scorer``."""
        outputs = len(self._idx)
        out = np.empty((len(concepts), outputs if rows is None else len(rows)), np.float32)
        for block, some in _blocks(outputs, rows, len(concepts)):
            own = self._calibration.take(some)
            out[:, block] = margins(self._idx[some], self._z[some], self._anchor[some], own, concepts, self._method)
        return out

    @cached_property
    def _arrays(self) -> ScanArrays:
        return pack(self._idx, self._z, self._anchor, self._calibration)

    def top(self, concepts: ConceptDescriptors, k: int) -> list[Rows]:
        """The k best outputs for each concept by the engine's scan, best first."""
        return [rows for rows, _ in top_k(self._arrays, concepts, k, self._method)]


class DistanceScorer:
    """Scores by a distance: ``h - d`` with a background, ``-d`` without.

    Args:
        distance: The distance.
        outputs: L.
        background: What makes the hubness ``h``, the mean of the k smallest background distances; None for ``-d``.
    """

    def __init__(self, distance: Distance, outputs: int, background: Background | None) -> None:
        self._distance = distance
        self._hubness = np.zeros(outputs, np.float32)
        if background is None:
            return
        k, (b, n) = background.k, background.concepts.z.shape
        for block, some in _blocks(outputs, None, max(b, n)):
            nearest = np.partition(distance(background.concepts, some), k - 1, axis=0)[:k]
            self._hubness[block] = nearest.mean(axis=0, dtype=np.float64)

    def __call__(self, concepts: ConceptDescriptors, rows: Rows | None = None) -> FloatArray:
        """Scores, see ``Scorer``."""
        outputs = len(self._hubness)
        out = np.empty((len(concepts), outputs if rows is None else len(rows)), np.float32)
        for block, some in _blocks(outputs, rows, max(concepts.z.shape)):
            out[:, block] = self._hubness[some] - self._distance(concepts, some)
        return out


class CosineScorer:
    """Cosine of standardised responses with similarities as they are; see the module.

    Args:
        zoo: The outputs.
    """

    def __init__(self, zoo: Zoo) -> None:
        self._zoo = zoo
        self._lengths = np.sqrt(np.einsum("ij,ij->i", zoo.responses, zoo.responses))

    def __call__(self, concepts: ConceptDescriptors, rows: Rows | None = None) -> FloatArray:
        """Cosines in -1..1, see ``Scorer``."""
        similarity = concepts.t @ self._zoo.probes.T
        similarity = similarity / np.linalg.norm(similarity, axis=1, keepdims=True)
        outputs = len(self._zoo)
        out = np.empty((len(concepts), outputs if rows is None else len(rows)), np.float32)
        for block, some in _blocks(outputs, rows, max(similarity.shape)):
            out[:, block] = similarity @ self._zoo.responses[some].T
            out[:, block] /= self._lengths[some]
        return out


class WpmiScorer:
    """WPMI or soft WPMI.

    Args:
        zoo: The outputs; all of them make ``p(t)``.
        setting: Which variant.
        vocabulary: The concept set of the softmax; None for the concepts of each call. Concepts that are scored must be
            among it.
    """

    def __init__(self, zoo: Zoo, setting: wpmi.WpmiSetting, vocabulary: ConceptDescriptors | None = None) -> None:
        self._zoo, self._setting = zoo, setting
        self._top = kept_outputs(zoo, min(setting.top, zoo.responses.shape[1]))[0]
        self._normaliser = None if vocabulary is None else self._denominator(vocabulary)
        self._frequency: tuple[ConceptDescriptors, npt.NDArray[np.float64]] | None = None

    def within(self, vocabulary: ConceptDescriptors) -> WpmiScorer:
        """The same with another concept set."""
        other = copy.copy(self)
        other._normaliser, other._frequency = self._denominator(vocabulary), None
        return other

    def _denominator(self, concepts: ConceptDescriptors) -> npt.NDArray[np.float64]:
        return wpmi.normaliser(concepts.t @ self._zoo.probes.T, self._setting.temperature)

    def _likelihood(self, concepts: ConceptDescriptors, rows: Rows | None) -> npt.NDArray[np.float64]:
        below = self._denominator(concepts) if self._normaliser is None else self._normaliser
        similarity = (concepts.t @ self._zoo.probes.T).astype(np.float64)
        probability = np.exp(self._setting.temperature * similarity - below)
        return wpmi.log_likelihood(probability, self._top if rows is None else self._top[rows], self._setting)

    def __call__(self, concepts: ConceptDescriptors, rows: Rows | None = None) -> FloatArray:
        """Scores, see ``Scorer``; ``p(t)`` is over all outputs whichever are asked for."""
        likelihood = self._likelihood(concepts, rows)
        if rows is None:
            return wpmi.mutual_information(likelihood, self._setting.lam).astype(np.float32)
        if self._frequency is None or self._frequency[0] is not concepts:
            self._frequency = (concepts, wpmi.log_frequency(self._likelihood(concepts, None)))
        return (likelihood - self._setting.lam * self._frequency[1][:, None]).astype(np.float32)


def best_outputs(scorer: Scorer, concepts: ConceptDescriptors, k: int) -> list[Rows]:
    """The k best outputs for each concept, best first, as quickly as the method can.

    Args:
        scorer: The method; one of the engine's answers by its scan, the others by their scores of all outputs.
        concepts: c concepts.
        k: How many, >= 1.

    Returns:
        For each concept at most k rows.
    """
    if isinstance(scorer, EngineScorer):
        return scorer.top(concepts, k)
    return list(best_places(scorer(concepts), k))


def best_places(scores: FloatArray, k: int) -> Rows:
    """Places of the k largest scores of each row, best first, equal ones by place.

    Args:
        scores: ``[q, L]``.
        k: How many; all where there are fewer.

    Returns:
        int64 ``[q, min(k, L)]``.
    """
    q, count = scores.shape
    k = min(k, count)
    out = np.empty((q, k), np.int64)
    least = np.partition(scores, count - k, axis=1)[:, count - k]
    for i in range(q):
        near = np.nonzero(scores[i] >= least[i])[0]  # ascending, so a stable sort leaves equal ones by place
        out[i] = near[np.argsort(-scores[i][near], kind="stable")][:k]
    return out


def score_all(scorer: Scorer, concepts: ConceptDescriptors, outputs: int) -> FloatArray:
    """All scores, computed for a block of concepts at a time.

    Args:
        scorer: The method.
        concepts: c concepts.
        outputs: L.

    Returns:
        float32 ``[c, L]``.
    """
    out = np.empty((len(concepts), outputs), np.float32)
    step = max(1, 5 * _BLOCK // max(1, outputs))
    for start in range(0, len(concepts), step):
        out[start : start + step] = scorer(some_concepts(concepts, slice(start, start + step)))
    return out


def some_concepts(concepts: ConceptDescriptors, which: slice | npt.NDArray[np.integer]) -> ConceptDescriptors:
    """The descriptors of some of the concepts."""
    arrays = {field.name: getattr(concepts, field.name) for field in fields(concepts)}
    some: dict[str, Any] = {name: None if array is None else array[which] for name, array in arrays.items()}
    return ConceptDescriptors(**some)
