"""How well the images of a source task cover those of a target, one by one; and how far a sample can mislead.

The divergence of :mod:`engine.transfer` compares mean profiles. The set-coverage divergence compares sets: for one
model, with the per-image profiles x_1 .. x_n of a target and y_1 .. y_m of a source, over blocks b::

    d(x, y)   = sum_b alpha_b |x_b - y_b| / (|x_b| + eps)              alpha: importance of the blocks to the target
    c(x, Y)   = min_j d(x, y_j)                                        how far x is from being covered
    C(X -> Y) = (1/n) sum_i c(x_i, Y)

alpha is that of the target's mean profile unless it is given. What follows is our own formulation of bounds on C:

**Sampling target images.** Let the source images and alpha be fixed, and let 0 <= c(x, Y) <= B for every target image
x. For n images drawn independently, or without replacement from a finite set, with mean C_n and expectation C, by
Hoeffding (1963, theorems 2 and 4)::

    P(|C_n - C| >= t) <= 2 exp(-2 n t^2 / B^2)

It does not hold for an alpha that is computed from the same sample: that would tie the images to each other.

**Sampling source images.** Let p(x, r) be the share of the source's images y with d(x, y) <= r. Of m images drawn
independently, none is that near to x with probability exactly (1 - p)^m; drawn without replacement from a finite set
of N with K = p N near ones, with probability C(N - K, m) / C(N, m), which is not larger. Hence, for distances of at
most B and every radius 0 <= r <= B::

    E C(X -> Y_m) <= (1/n) sum_i [r + (B - r) (1 - p(x_i, r))^m]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from engine.errors import InputError
from engine.profiles import ImageProfiles
from engine.schema import Record
from engine.transfer import EPS, ETA, importance
from query.evaluate.proxy import DCD, correlation, gaps

Float64Array = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]

TAIL_SHARES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
"""Deviations that are checked, as shares of the largest distance B."""

_CHUNK = 4_000_000  # numbers in a chunk of differences: 32 MB


class ModelCoverage(Record):
    """Set coverage as one model sees it."""

    model: str
    tasks: int
    mean: float | None = Field(description="Mean C(T -> S) over the ordered pairs of tasks; none with one task.")
    agreement: float | None = Field(
        description="Spearman's correlation of C(T -> S) with D(T -> S) of the mean profiles over the pairs, -1..1."
    )


class TailPoint(Record):
    """How often samples of target images deviate by a share of the largest distance."""

    share: float = Field(description="t / B.")
    bound: float = Field(description="2 exp(-2 n (t / B)^2), at most 1.")
    mean: float = Field(description="Share of the samples that deviate so far, mean over models and pairs, 0..1.")
    worst: float = Field(description="The same where it is largest.")


class CoverageReport(Record):
    """Set-coverage divergences, and a check of their tail bound."""

    eta: float
    tasks: tuple[str, ...]
    divergences: tuple[tuple[float | None, ...], ...] = Field(
        description="Row T, column S: C(T -> S), mean over the models that have both; none without any, 0 for T = S."
    )
    models: tuple[ModelCoverage, ...]
    images: int = Field(description="n: target images in a sample, drawn independently from all of a task.")
    draws: int = Field(description="Samples per model and pair of tasks.")
    tail: tuple[TailPoint, ...]


def coverage_distances(
    target: npt.NDArray[np.floating[Any]],
    source: npt.NDArray[np.floating[Any]],
    eta: float = ETA,
    alpha: npt.NDArray[np.floating[Any]] | None = None,
) -> Float64Array:
    """c(x_i, Y): the distance of each target image to the nearest source image, float64 ``[n]``, >= 0.

    Args:
        target: Per-image profiles ``[n, d]``, n at least 1.
        source: Per-image profiles ``[m, d]`` of the same model, m at least 1.
        eta: Sharpness of the importance of blocks; without effect where ``alpha`` is given.
        alpha: Importance of the blocks ``[d]``, sums to 1; by default that of the target's mean profile.

    Raises:
        InputError: The profiles do not fit each other, or there are no images.
    """
    x, _ = _checked(target, source)
    weights = importance(x.mean(axis=0), eta) if alpha is None else np.asarray(alpha, np.float64)
    return _nearest(target, source, weights, np.zeros(1, np.int64))[:, 0]


def set_coverage(
    target: npt.NDArray[np.floating[Any]],
    source: npt.NDArray[np.floating[Any]],
    eta: float = ETA,
    alpha: npt.NDArray[np.floating[Any]] | None = None,
) -> float:
    """The set-coverage divergence C(X -> Y), the mean of :func:`coverage_distances`; 0 where every image is covered."""
    return float(coverage_distances(target, source, eta, alpha).mean())


def deviation_bound(images: int, deviation: float, largest: float) -> float:
    """Bound on the probability that the mean over sampled target images is off by ``deviation`` or more.

    ``min(1, 2 exp(-2 n t^2 / B^2))``; the module says what must hold.

    Args:
        images: n, sampled target images, at least 1.
        deviation: t, >= 0, in the unit of the divergence.
        largest: B > 0, that no distance exceeds.

    Raises:
        InputError: An argument is out of its range.
    """
    _positive(images, "images")
    _positive(largest, "largest distance")
    if deviation < 0:
        raise InputError(f"a deviation of {deviation} has no bound: use 0 or more")
    return float(min(1.0, 2.0 * np.exp(-2.0 * images * (deviation / largest) ** 2)))


def deviation_at(images: int, risk: float, largest: float) -> float:
    """The deviation that the mean over n sampled target images exceeds with at most the given probability.

    ``t = B sqrt(ln(2 / risk) / (2 n))``, where :func:`deviation_bound` is ``risk``.

    Args:
        images: n, at least 1.
        risk: In 0..1, without 0.
        largest: B > 0.

    Raises:
        InputError: An argument is out of its range.
    """
    _positive(images, "images")
    _positive(largest, "largest distance")
    if not 0 < risk <= 1:
        raise InputError(f"a risk of {risk} cannot be kept: use more than 0 and at most 1")
    return float(largest * np.sqrt(np.log(2.0 / risk) / (2.0 * images)))


def uncovered_probability(mass: npt.NDArray[np.floating[Any]], images: int) -> Float64Array:
    """Probability that none of m independently drawn source images lies in a region, ``(1 - p)^m``, float64.

    Args:
        mass: p, the share of the source's images in the region, 0..1, any shape.
        images: m, sampled source images, at least 1.

    Raises:
        InputError: A share is not within 0..1, or there are no images.
    """
    _positive(images, "images")
    p = np.asarray(mass, np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise InputError("a share of source images is not within 0..1")
    return np.asarray((1.0 - p) ** images, np.float64)


def expected_coverage_bound(mass: npt.NDArray[np.floating[Any]], images: int, radius: float, largest: float) -> float:
    """Bound on the expected divergence to m sampled source images, ``mean_i [r + (B - r) (1 - p_i)^m]``.

    Args:
        mass: p_i, for each target image the share of the source's images within ``radius``, ``[n]``.
        images: m, sampled source images, at least 1.
        radius: r, 0..B.
        largest: B > 0, that no distance exceeds.

    Raises:
        InputError: An argument is out of its range.
    """
    _positive(largest, "largest distance")
    if not 0 <= radius <= largest:
        raise InputError(f"a radius of {radius} is not within 0..{largest}")
    return float(np.mean(radius + (largest - radius) * uncovered_probability(mass, images)))


def coverage_report(
    profiles: Mapping[str, ImageProfiles],
    eta: float = ETA,
    images: int = 10,
    draws: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> CoverageReport:
    """Set-coverage divergences of all pairs of tasks, and how often samples deviate from them.

    For each model and ordered pair T, S the task's images are the whole population: alpha is that of their mean, B the
    largest of their distances c(x, S), and ``draws`` samples of ``images`` of them are drawn with replacement. The
    share of the samples whose mean is off by ``t`` or more stands beside the bound, at t / B in TAIL_SHARES. Pairs
    where every image is covered (B = 0) cannot deviate and count as 0.

    Args:
        profiles: By model, image by image.
        eta: Sharpness of the importance of blocks, >= 0.
        images: n, at least 1.
        draws: At least 1.
        seed: Of the draws.
        progress: Told after each model how many are done, and of how many.

    Raises:
        InputError: There are no profiles, or an argument is out of its range.
    """
    if not profiles:
        raise InputError("set coverage needs the profiles of at least one model: profile one")
    _positive(draws, "draws")
    bounds = [deviation_bound(images, share, 1.0) for share in TAIL_SHARES]
    tasks = tuple(dict.fromkeys(task for own in profiles.values() for task in own.images))
    place = {task: i for i, task in enumerate(tasks)}
    matrices = np.full((len(profiles), len(tasks), len(tasks)), np.nan)
    models, exceeded = [], []
    rng = np.random.default_rng(seed)
    for k, own in enumerate(profiles.values()):
        names = list(own.images)
        sources = np.concatenate([own.images[name] for name in names])
        starts = np.cumsum([0, *(len(own.images[name]) for name in names[:-1])])
        for i, name in enumerate(names):
            rows = own.images[name]
            distances = _nearest(rows, sources, importance(own.mean(name), eta), starts)
            matrices[k, place[name], [place[other] for other in names]] = distances.mean(axis=0)
            exceeded.append(_exceeded(np.delete(distances, i, axis=1), images, draws, rng))
        models.append(_of_model(own, names, matrices[k][np.ix_(*[[place[n] for n in names]] * 2)], eta))
        if progress is not None:
            progress(k + 1, len(profiles))
    frequency = np.concatenate(exceeded, axis=1)
    return CoverageReport(
        eta=eta,
        tasks=tasks,
        divergences=_mean_over_models(matrices),
        models=tuple(models),
        images=images,
        draws=draws,
        tail=tuple(
            TailPoint(share=share, bound=bound, mean=float(own.mean()), worst=float(own.max()))
            for share, bound, own in zip(TAIL_SHARES, bounds, frequency, strict=True)
            if own.size
        ),
    )


def _nearest(
    target: npt.NDArray[np.floating[Any]],
    source: npt.NDArray[np.floating[Any]],
    alpha: Float64Array,
    starts: npt.NDArray[np.int64],
) -> Float64Array:
    """Distances of each target image to the nearest image of each group of source images, ``[n, groups]``.

    Args:
        target: ``[n, d]``.
        source: ``[m, d]``, group after group.
        alpha: ``[d]``.
        starts: Where each group begins.
    """
    x, y = _checked(target, source)
    if alpha.shape != x.shape[1:]:
        raise InputError(f"an importance of shape {alpha.shape} does not fit profiles of {x.shape[1]} blocks")
    scale = alpha / (np.abs(x) + EPS)
    step = max(1, _CHUNK // max(1, y.size))
    found = []
    for first in range(0, len(x), step):
        differences = x[first : first + step, None] - y
        np.abs(differences, out=differences)
        distances = np.einsum("imb,ib->im", differences, scale[first : first + step])
        found.append(np.minimum.reduceat(distances, starts, axis=1))
    return np.concatenate(found)


def _exceeded(distances: Float64Array, images: int, draws: int, rng: np.random.Generator) -> Float64Array:
    """Share of the samples of target images that deviate by each of TAIL_SHARES, ``[shares, sources]``."""
    chosen = rng.integers(0, len(distances), (draws, images))
    counts = np.zeros((draws, len(distances)))
    np.add.at(counts, (np.arange(draws)[:, None], chosen), 1.0 / images)
    off = np.abs(counts @ distances - distances.mean(axis=0))
    largest = distances.max(axis=0, initial=0.0)
    relative = off / np.where(largest > 0, largest, 1.0)
    return np.stack([(relative >= share).mean(axis=0) for share in TAIL_SHARES])


def _of_model(own: ImageProfiles, names: Sequence[str], matrix: Float64Array, eta: float) -> ModelCoverage:
    off = ~np.eye(len(names), dtype=np.bool_)
    apart = gaps(DCD, np.stack([own.mean(name) for name in names]), eta)
    return ModelCoverage(
        model=own.model,
        tasks=len(names),
        mean=float(matrix[off].mean()) if off.any() else None,
        agreement=correlation(matrix[off], apart[off])[0],
    )


def _mean_over_models(matrices: Float64Array) -> tuple[tuple[float | None, ...], ...]:
    known = ~np.isnan(matrices)
    count = known.sum(axis=0)
    mean = np.where(known, matrices, 0.0).sum(axis=0) / np.maximum(count, 1)
    rows = zip(mean.tolist(), count.tolist(), strict=True)
    return tuple(tuple(v if n else None for v, n in zip(values, counts, strict=True)) for values, counts in rows)


def _checked(
    target: npt.NDArray[np.floating[Any]], source: npt.NDArray[np.floating[Any]]
) -> tuple[Float64Array, Float64Array]:
    x, y = np.asarray(target, np.float64), np.asarray(source, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not len(x) or not len(y):
        raise InputError(
            f"target images of shape {x.shape} cannot be compared with source images of shape {y.shape}: "
            "one row an image, at least one, and the same blocks are needed"
        )
    return x, y


def _positive(value: float, what: str) -> None:
    if not value > 0:
        raise InputError(f"{what} must be more than 0, not {value}")
