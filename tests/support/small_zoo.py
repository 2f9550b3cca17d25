"""Zoos small enough to be worked out by hand, and settings that suit them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.descriptors import FloatArray, normalise
from query.evaluate.retrieval import Settings
from query.evaluate.zoo import Query, Zoo
from tests.support.small_index import D, vector

N = 60
CLASSES = tuple(f"class {i}" for i in range(12))
POOL = tuple(f"pool {i}" for i in range(200))


def make_zoo(
    responses: npt.NDArray[np.floating],
    probes: FloatArray,
    starts: Sequence[int] | npt.NDArray[np.int64],
    classes: Iterable[Iterable[str]],
) -> Zoo:
    """A zoo of these responses, standardised; ``starts`` are the first rows of the models and, last, their number."""
    centred = responses - responses.mean(axis=1, keepdims=True)
    outputs = len(responses)
    return Zoo(
        (centred / centred.std(axis=1, keepdims=True)).astype(np.float32),
        probes,
        tuple(f"org/{i}" for i in range(len(starts) - 1)),
        np.asarray(starts, np.int64),
        np.arange(outputs),
        (None,) * outputs,
        tuple(frozenset(own) for own in classes),
    )


def bare(starts: Sequence[int], classes: Sequence[Iterable[str]]) -> Zoo:
    """A zoo whose responses mean nothing, for tests that bring their own scores."""
    rng = np.random.default_rng(0)
    return make_zoo(rng.standard_normal((len(classes), 5)), np.eye(5, dtype=np.float32), starts, classes)


def make_world() -> tuple[Zoo, tuple[Query, ...], tuple[str, ...]]:
    """Three models that respond to the very concepts they stand for, with some noise; queries; labelled probes."""
    rng = np.random.default_rng(5)
    labels = tuple(CLASSES[i % 8] for i in range(N))  # the other four classes have no probe
    probes = normalise(np.stack([vector(cls) for cls in labels]) + 0.25 * rng.standard_normal((N, D)))
    owned = [*CLASSES, *CLASSES[:6], *CLASSES[4:]]
    directions = np.stack([vector(cls) for cls in owned])
    responses = directions @ probes.T + 0.5 * rng.standard_normal((len(owned), N))
    zoo = make_zoo(responses, probes, [0, 12, 18, 26], [{cls} for cls in owned])
    queries = tuple(Query(cls, cls, ("seen",) if i < 8 else ("unseen",)) for i, cls in enumerate(CLASSES))
    return zoo, queries, labels


def usual(**changes: Any) -> Settings:
    """Settings for ``make_world``, with changes."""
    own: dict[str, Any] = {"methods": ("probelog",), "r": 10, "k": 3, "background": 20, "lists": 10}
    return Settings(**own | changes)
