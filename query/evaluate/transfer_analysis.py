"""How recommendation depends on its settings: the sharpnesses eta and gamma, and how many images it sees.

Both analyses leave one task out at a time, as :func:`query.evaluate.recommendation.leave_one_out` does, with the same
candidates, draws, measures and means: a figure is the mean over the targets, its mean and standard deviation are over
the seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from engine.errors import InputError
from engine.performance import PerformanceTable, ranks
from engine.profiles import ImageProfiles
from engine.schema import Record
from engine.transfer import source_weights
from query.evaluate.ranking import REGRET, measures, regrets
from query.evaluate.recommendation import Settings, leave_one_out
from query.evaluate.recommenders import DECIMALS, DRAWN, PROFILE_METHODS, Sample, distances, draw
from query.evaluate.results import Figure
from query.evaluate.transferred import MethodResult, RecommendationReport

Float64Array = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]

ETAS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Sharpnesses of the importance of blocks that a grid tries."""
GAMMAS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
"""Sharpnesses of the weights of source tasks that a grid tries."""
IMAGES = (1, 2, 5, 10, 25, 50, 100)
"""Numbers of images that a sampling tries."""

_DCD = "dcd"
_DEFAULTS = Settings()


class GridReport(Record):
    """Directional conductance divergence over eta and gamma."""

    etas: tuple[float, ...]
    gammas: tuple[float, ...]
    eta: float = Field(description="The one in use, to be marked.")
    gamma: float
    figures: dict[str, tuple[tuple[Figure, ...], ...]] = Field(
        description="By measure: a row an eta, in it a figure a gamma. regret: smaller is better."
    )
    models: int
    tasks: int
    settings: dict[str, object]
    notes: tuple[str, ...] = ()


class SamplingPoint(Record):
    """What a number of images reached."""

    images: int = Field(description="Images drawn of each task.")
    short: int = Field(description="Tasks of which some model has fewer profiled images; all of those were used.")
    figures: dict[str, Figure]


class SamplingCurve(Record):
    """One method over the number of images."""

    method: str
    points: tuple[SamplingPoint, ...]


class SamplingReport(Record):
    """Methods over the number of source images, and over that of target images."""

    source: tuple[SamplingCurve, ...] = Field(description="One a method, over the number of source images.")
    target: tuple[SamplingCurve, ...] = Field(description="One a method, over the number of target images.")
    source_images: int = Field(description="Of each source while the target images vary.")
    target_images: int = Field(description="Of the target while the source images vary.")
    models: int
    tasks: int
    settings: dict[str, object]
    notes: tuple[str, ...] = Field(default=(), description="Numbers that no task has images for, and what was done.")


def grid(
    table: PerformanceTable,
    profiles: Mapping[str, ImageProfiles],
    settings: Settings = _DEFAULTS,
    etas: Sequence[float] = ETAS,
    gammas: Sequence[float] = GAMMAS,
    progress: Progress | None = None,
) -> GridReport:
    """Measures the directional conductance divergence at every pair of sharpnesses.

    The draws are made once, divergences once an eta, and the weights of all gammas at once.

    Args:
        table: Known performance.
        profiles: By model, image by image.
        settings: Of the evaluation; its eta and gamma are the ones to be marked, its methods without effect.
        etas: Each from 0.
        gammas: Each from 0.
        progress: Told after each eta how many are done, and of how many.

    Raises:
        InputError: A sharpness is negative or not finite, there is none, or nothing can be measured.
    """
    for name, values in (("eta", etas), ("gamma", gammas)):
        wrong = [value for value in values if not isfinite(value) or value < 0]
        if wrong or not values:
            raise InputError(f"a grid needs values of {name} that are numbers from 0, not {wrong or 'none'}")
    base = leave_one_out(table, replace(settings, methods=(_DCD,)), profiles)
    samples = draw(
        [profiles[model] for model in base.models],
        base.tasks,
        settings.seeds,
        settings.source_images,
        settings.target_images,
    )
    rows: dict[str, list[tuple[Figure, ...]]] = {measure: [] for measure in base.measures}
    for done, eta in enumerate(etas, 1):
        cells = _cells(base, samples, eta, gammas, settings.ties)
        for measure, row in rows.items():
            row.append(tuple(cell.figure(measure) for cell in cells))
        if progress is not None:
            progress(done, len(etas))
    return GridReport(
        etas=tuple(etas),
        gammas=tuple(gammas),
        eta=settings.eta,
        gamma=settings.gamma,
        figures={measure: tuple(row) for measure, row in rows.items()},
        models=len(base.models),
        tasks=len(base.tasks),
        settings=_shown(settings, without=("methods", "eta", "gamma")),
        notes=base.notes,
    )


def sampling(
    table: PerformanceTable,
    profiles: Mapping[str, ImageProfiles],
    settings: Settings = _DEFAULTS,
    methods: Sequence[str] = (_DCD,),
    images: Sequence[int] = IMAGES,
    progress: Progress | None = None,
) -> SamplingReport:
    """Measures methods over the number of source images, then over that of target images.

    While one number varies the other is that of the settings. A number that no task has images for is replaced by the
    largest that some task has, and a note says so; a task with fewer images than asked for gives all it has.

    Args:
        table: Known performance.
        profiles: By model, image by image.
        settings: Of the evaluation; its methods are without effect.
        methods: Those that weigh sources by what is drawn: dcd, cosine, jsd.
        images: Numbers to try, each from 1.
        progress: Told after each number how many are done, and of how many.

    Raises:
        InputError: A method or a number is none of those, or nothing can be measured.
    """
    usable = [method for method in PROFILE_METHODS if method in DRAWN]
    wrong = [method for method in methods if method not in usable]
    if wrong or not methods:
        raise InputError(f"sampling measures {', '.join(usable)}, not {', '.join(wrong) or 'nothing'}")
    if not images or min(images) < 1:
        raise InputError("numbers of images to try must be from 1, and there must be one")
    settings = replace(settings, methods=tuple(dict.fromkeys(methods)))
    base = leave_one_out(table, settings, profiles)
    # Of each task the fewest and the most images that some candidate has of it.
    held = [
        [len(profiles[model].images[task]) for model in base.models if task in profiles[model].images]
        for task in base.tasks
    ]
    largest = max(max(counts) for counts in held)
    tried = sorted({min(count, largest) for count in images})
    beyond = sorted({count for count in images if count > largest})
    notes = list(base.notes)
    if beyond:
        notes.append(
            f"{', '.join(map(str, beyond))} images: no task has more than {largest}, {largest} was measured instead"
        )
    varied = [replace(settings, source_images=count) for count in tried]
    varied += [replace(settings, target_images=count) for count in tried]
    reports = []
    for own in varied:
        reports.append(leave_one_out(table, own, profiles))
        if progress is not None:
            progress(len(reports), len(varied))
    short = [sum(min(counts) < count for counts in held) for count in tried]
    return SamplingReport(
        source=_curves(reports[: len(tried)], tried, short, settings.methods),
        target=_curves(reports[len(tried) :], tried, short, settings.methods),
        source_images=settings.source_images,
        target_images=settings.target_images,
        models=len(base.models),
        tasks=len(base.tasks),
        settings=_shown(settings, without=("source_images", "target_images")),
        notes=tuple(notes),
    )


def _cells(
    base: RecommendationReport,
    samples: Sequence[Sample | None],
    eta: float,
    gammas: Sequence[float],
    ties: str,
) -> list[MethodResult]:
    """What one eta reaches with each gamma."""
    known = ranks(base.values, ties)
    models, tasks = known.shape
    predicted: Float64Array | None = None
    for i, sample in enumerate(samples):
        if sample is None:
            continue
        apart = distances(_DCD, sample, eta)
        if predicted is None:
            predicted = np.full((len(gammas), len(apart), tasks, models), np.nan)
        sharpness = np.asarray(gammas, np.float64)[:, None, None]
        usable = sample.there & ~np.isnan(known[i])
        # Where the model has no value it does not count, so nothing needs to be predicted there.
        for target in np.flatnonzero(usable).tolist():
            others = usable.copy()
            others[target] = False
            if others.any():
                # The softmin of gamma D with sharpness 1 is that of D with sharpness gamma.
                weights = source_weights(sharpness * apart[:, target, others], 1.0)
                predicted[:, :, target, i] = np.round(weights @ known[i, others], DECIMALS)
    assert predicted is not None  # noqa: S101
    return [_measured(own, known, base.values, base.ks, ties) for own in predicted]


def _measured(
    predicted: Float64Array, known: Float64Array, values: Float64Array, ks: Sequence[int], ties: str
) -> MethodResult:
    seeds, tasks, models = predicted.shape
    flat = predicted.reshape(seeds * tasks, models)
    figures: dict[str, Any] = measures(flat, np.tile(known.T, (seeds, 1)), ks, ties)
    figures[REGRET] = regrets(flat, np.tile(values.T, (seeds, 1)), ties)
    return MethodResult(_DCD, True, {name: row.reshape(seeds, tasks) for name, row in figures.items()}, predicted)


def _curves(
    reports: Sequence[RecommendationReport], tried: Sequence[int], short: Sequence[int], methods: Sequence[str]
) -> tuple[SamplingCurve, ...]:
    return tuple(
        SamplingCurve(
            method=method,
            points=tuple(
                SamplingPoint(
                    images=count,
                    short=few,
                    figures={measure: report.result(method).figure(measure) for measure in report.measures},
                )
                for report, count, few in zip(reports, tried, short, strict=True)
            ),
        )
        for method in methods
    )


def _shown(settings: Settings, without: Sequence[str]) -> dict[str, object]:
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(settings).items()}
    return {key: value for key, value in lists.items() if key not in without}
