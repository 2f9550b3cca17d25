"""The methods that recommendation is compared by: each predicts, for a target task, how the models will rank on it.

All of them know the ranks on the source tasks. Those of ``PROFILE_METHODS`` weigh the sources, for each model on its
own, by a distance between its conductance profiles on the target and on the source (:mod:`engine.transfer`)::

    dcd       D = sum_i alpha_i |v_T[i] - v_S[i]| / (|v_T[i]| + eps), the directional conductance divergence
    cosine    D = 1 - v_T . v_S / (|v_T| |v_S|)
    jsd       D = the Jensen-Shannon distance (natural logarithm) of the profiles, each divided by its sum
    uniform   D = 0: all sources that the model has a profile and a rank on count the same

    predicted rank = sum_S p_S rank_S,    p = softmin of D with sharpness gamma

``TABLE_METHODS`` need no profiles: ``inb`` ranks by the performance on one reference task (ImageNet-based), ``avgrank``
by the mean rank over the other tasks, ``avgrank-target`` by the mean over all of them with the target's own (who asks
for a recommendation does not have that rank), ``random`` in a random order.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import jensenshannon

from engine.profiles import ImageProfiles
from engine.transfer import EPS, ETA, GAMMA, deviations, importance, source_weights

Float64Array = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

PROFILE_METHODS = ("dcd", "cosine", "jsd", "uniform")
"""Those that weigh source tasks; they need profiles."""
TABLE_METHODS = ("inb", "avgrank", "avgrank-target", "random")
"""Those that need no profiles."""
METHODS = (*PROFILE_METHODS, *TABLE_METHODS)
"""All of them."""
DRAWN = ("dcd", "cosine", "jsd", "random")
"""Those whose prediction depends on the seed."""

DECIMALS = 9
"""Of predicted ranks that are told apart: sums of equal weights are not exact, and ties must be ties."""

_ORDER = 1  # tells the draw of a random order from the draws of images


@dataclass(frozen=True)
class Sample:
    """The profiles of one model on images drawn from each task, one draw a seed.

    Attributes:
        sources: Mean profile of the images drawn where a task is a source, float64 ``[seeds, t, d]``; 0 for a task
            without profiles.
        targets: The same where it is the target.
        there: Which tasks the model has profiles of, ``[t]``.
    """

    sources: Float64Array = field(repr=False)
    targets: Float64Array = field(repr=False)
    there: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Case:
    """What the methods predict from.

    Attributes:
        tasks: t names: the targets, each of them a source of the others.
        ranks: Known ranks, 1 is best, NaN where there is none, float64 ``[m, t]``.
        reference: Performance on the reference task, larger is better, NaN where it is not known, ``[m]``; None if
            there is no such task.
        seeds: Of the draws.
        samples: For each of the m models; None for one without profiles. Empty if no method needs profiles.
        eta: Sharpness of the importance of blocks.
        gamma: Sharpness of the weights of source tasks.
    """

    tasks: tuple[str, ...]
    ranks: Float64Array = field(repr=False)
    reference: Float64Array | None = field(repr=False)
    seeds: tuple[int, ...]
    samples: tuple[Sample | None, ...] = field(default=(), repr=False)
    eta: float = ETA
    gamma: float = GAMMA


def predict(method: str, case: Case) -> Float64Array:
    """What a method predicts.

    Args:
        method: One of ``METHODS``; ``inb`` needs a reference, those of ``PROFILE_METHODS`` need samples.
        case: What it knows.

    Returns:
        Predicted ranks, or figures of which smaller is better, float64 ``[seeds, t, m]``; NaN for a model that the
        method cannot rank on a target.
    """
    if method in PROFILE_METHODS:
        return _weighted(method, case)
    models, count = case.ranks.shape
    shape = (len(case.seeds), count, models)
    if method == "random":
        return np.asarray(
            [[_generator(seed, task, _ORDER).permutation(models) for task in case.tasks] for seed in case.seeds],
            np.float64,
        )
    if method == "inb":
        assert case.reference is not None  # noqa: S101
        return np.broadcast_to(-case.reference, shape)
    return np.broadcast_to(mean_ranks(case.ranks, with_target=method == "avgrank-target").T, shape)


def mean_ranks(ranks: Float64Array, *, with_target: bool = False) -> Float64Array:
    """Mean rank of each model over the other tasks that it has a rank on.

    Args:
        ranks: ``[m, t]``, NaN where there is none.
        with_target: Whether each task's own rank counts too.

    Returns:
        float64 ``[m, t]``: for each task as the target; NaN for a model without any rank that counts.
    """
    known = ~np.isnan(ranks)
    own = np.where(known, ranks, 0.0)
    # Sums of halves are exact: equal sums stay equal, and ties are ties.
    total = own.sum(axis=1, keepdims=True) - (0.0 if with_target else own)
    count = known.sum(axis=1, keepdims=True) - (0 if with_target else known)
    return np.broadcast_to(np.where(count > 0, total / np.maximum(count, 1), np.nan), ranks.shape)


def draw(
    profiles: Sequence[ImageProfiles | None],
    tasks: Sequence[str],
    seeds: Sequence[int],
    source_images: int,
    target_images: int,
) -> tuple[Sample | None, ...]:
    """Draws images of each task and averages the models' profiles over them.

    What is drawn depends on the seed, the task and the number of its images only: all models see the same images,
    another set of tasks or models changes nothing, and a larger draw contains the smaller one.

    Args:
        profiles: Of each model, image by image; None for one that has none.
        tasks: t names; a model need not have profiles of all.
        seeds: Each gives one draw.
        source_images: How many images of a task are averaged where it is a source; all if there are fewer.
        target_images: The same where it is the target. Drawn apart from the former.
    """
    chosen: dict[tuple[str, int], tuple[Places, Places]] = {}

    def places(task: str, images: int) -> tuple[Places, Places]:
        if (task, images) not in chosen:
            generators = [_generator(seed, task) for seed in seeds]
            pairs = [(one.permutation(images), one.permutation(images)) for one in generators]
            chosen[task, images] = (
                np.sort([source[:source_images] for source, _ in pairs], axis=1),
                np.sort([target[:target_images] for _, target in pairs], axis=1),
            )
        return chosen[task, images]

    def sample(own: ImageProfiles) -> Sample:
        shape = (len(seeds), len(tasks), len(own.blocks))
        sources, targets = np.zeros(shape), np.zeros(shape)
        there = np.asarray([task in own.images for task in tasks], np.bool_)
        for t in np.flatnonzero(there).tolist():
            rows = np.asarray(own.images[tasks[t]], np.float64)
            of_source, of_target = places(tasks[t], len(rows))
            sources[:, t], targets[:, t] = rows[of_source].mean(axis=1), rows[of_target].mean(axis=1)
        return Sample(sources, targets, there)

    return tuple(None if own is None else sample(own) for own in profiles)


def distances(method: str, sample: Sample, eta: float = ETA) -> Float64Array:
    """Distance of every target to every source by one method.

    Args:
        method: ``dcd``, ``cosine`` or ``jsd``.
        sample: Of one model.
        eta: Sharpness of the importance of blocks; of ``dcd`` only.

    Returns:
        float64 ``[seeds, targets, sources]``, from 0; without meaning where the model has no profile.
    """
    return _DISTANCES[method](sample.targets, sample.sources, eta)


def _weighted(method: str, case: Case) -> Float64Array:
    """Predicted rank of each model from its own source weights."""
    models, count = case.ranks.shape
    predicted = np.full((len(case.seeds), count, models), np.nan)
    for i, sample in enumerate(case.samples):
        if sample is None:
            continue
        apart = None if method == "uniform" else distances(method, sample, case.eta)
        usable = sample.there & ~np.isnan(case.ranks[i])
        for target in np.flatnonzero(sample.there).tolist():
            others = usable.copy()
            others[target] = False
            if not others.any():
                continue
            known = case.ranks[i, others]
            if apart is None:
                predicted[:, target, i] = known.mean()  # exact where a sum of equal weights is not: ties stay ties
            else:
                weights = source_weights(apart[:, target, others], case.gamma)
                predicted[:, target, i] = np.round(weights @ known, DECIMALS)
    return predicted


def _divergence(targets: Float64Array, sources: Float64Array, eta: float) -> Float64Array:
    # engine.transfer.divergence of every pair at once: its parts take any leading dimensions.
    relative = deviations(targets[:, :, None], sources[:, None])
    return np.asarray(np.einsum("ntsd,ntd->nts", relative, importance(targets, eta)), np.float64)


def _cosine(targets: Float64Array, sources: Float64Array, _: float) -> Float64Array:
    unit = [v / np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), EPS) for v in (targets, sources)]
    return np.asarray(np.maximum(1.0 - unit[0] @ unit[1].transpose(0, 2, 1), 0.0), np.float64)


def _jensen_shannon(targets: Float64Array, sources: Float64Array, _: float) -> Float64Array:
    # A profile without any conductance has no shares: it counts as one with equal ones.
    shares = [np.where(v.sum(axis=-1, keepdims=True) > 0, v, 1.0) for v in (targets, sources)]
    return np.asarray(jensenshannon(shares[0][:, :, None], shares[1][:, None], axis=-1), np.float64)


_DISTANCES: Mapping[str, Callable[[Float64Array, Float64Array, float], Float64Array]] = MappingProxyType(
    {"dcd": _divergence, "cosine": _cosine, "jsd": _jensen_shannon}
)


def _generator(seed: int, task: str, *purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(task.encode()), *purpose])
