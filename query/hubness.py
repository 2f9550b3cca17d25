"""Hubness of an index: whether a few outputs answer everything that is asked."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from engine.calibration import Background
from engine.descriptors import ConceptDescriptors
from engine.distance import Method
from engine.scan import top_k
from engine.schema import Record
from engine.snapshot import Snapshot
from query.evaluate.metrics import coverage, half_coverage

K = 10
"""Answers to each concept that are counted."""

POINTS = 101
"""Most points of a curve."""

_CONCEPTS = 64  # asked at once


class Hubness(Record):
    """How evenly an index's answers fall on its outputs, with its background concepts for questions."""

    k: int = Field(description="Answers to each concept that were counted; fewer where there are fewer outputs.")
    concepts: int = Field(description="Concepts that were asked.")
    outputs: int = Field(description="Outputs in the index.")
    half: int = Field(description="So many outputs, those found most often, give half of the answers.")
    curve: tuple[tuple[float, float], ...] = Field(
        description="Points (share of the outputs, share of the answers that they give), outputs found most often "
        "first, from (0, 0) to (1, 1); at most 101."
    )


def hubness(snapshot: Snapshot, background: Background, method: Method, k: int = K) -> Hubness:
    """Asks an index for each of its background concepts and counts how often every output is an answer.

    Args:
        snapshot: Of the index.
        background: Whose concepts are asked.
        method: The index's default.
        k: Answers to each concept, >= 1.
    """
    concepts, outputs = background.concepts, len(snapshot)
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(concepts) if outputs else 0, _CONCEPTS):
        part = slice(start, start + _CONCEPTS)
        white = None if concepts.white is None else concepts.white[part]
        some = ConceptDescriptors(concepts.t[part], concepts.z[part], concepts.sigma[part], white)
        found += [rows for rows, _ in top_k(snapshot.arrays, some, k, method)]
    answers = np.concatenate(found)
    share = coverage(answers)
    ranks = np.unique(np.linspace(1, max(1, len(share)), POINTS - 2).round().astype(np.int64))
    points = [(0.0, 0.0)]
    points += [(round(int(rank) / outputs, 6), round(float(share[rank - 1]), 6)) for rank in ranks if len(share)]
    if points[-1] != (1.0, 1.0):
        points.append((1.0, 1.0))
    return Hubness(
        k=min(k, outputs), concepts=len(concepts), outputs=outputs, half=half_coverage(answers), curve=tuple(points)
    )
