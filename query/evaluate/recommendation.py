"""Recommendation measured: one task is left out at a time and the models are ranked on it from all the others."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite

import numpy as np
import numpy.typing as npt

from engine.errors import InputError
from engine.performance import PerformanceTable, ranks
from engine.profiles import ImageProfiles
from engine.transfer import ETA, GAMMA
from query.evaluate.inputfiles import named
from query.evaluate.ranking import REGRET, measures, regrets
from query.evaluate.recommenders import DRAWN, METHODS, PROFILE_METHODS, TABLE_METHODS, Case, draw, predict
from query.evaluate.transferred import MethodResult, RecommendationReport

Float64Array = npt.NDArray[np.float64]

REFERENCE = "imagenet1k"
"""The task whose ranks the method ``inb`` uses."""

_LARGEST_K = 1000  # the gain 2^k of the best model must be a float


@dataclass(frozen=True)
class Settings:
    """What decides the numbers.

    Attributes:
        methods: Of ``recommenders.METHODS``; empty for all that the inputs allow.
        reference: The task that ``inb`` ranks by; it is never a target and never a source.
        ks: The tops that are measured, each from 2.
        ties: How equal values are ranked, see ``engine.performance.ranks``.
        seeds: One draw of images each.
        source_images: Images drawn of each source task, fewer where there are fewer.
        target_images: Images drawn of the target.
        eta: Sharpness of the importance of blocks.
        gamma: Sharpness of the weights of source tasks.
        complete: Leave out tasks on which a candidate has no value.
    """

    methods: tuple[str, ...] = ()
    reference: str = REFERENCE
    ks: tuple[int, ...] = (3, 5, 7)
    ties: str = "average"
    seeds: tuple[int, ...] = tuple(range(10))
    source_images: int = 25
    target_images: int = 1
    eta: float = ETA
    gamma: float = GAMMA
    complete: bool = False

    def __post_init__(self) -> None:
        unknown = [method for method in self.methods if method not in METHODS]
        if unknown:
            raise InputError(f"there is no method {unknown[0]!r}: choose from {', '.join(METHODS)}")
        if not self.ks or min(self.ks) < 2:
            raise InputError("k must be at least 2: an order needs two models")
        if not self.seeds or min(self.seeds) < 0:
            raise InputError("at least one seed is needed, from 0")
        if min(self.source_images, self.target_images) < 1:
            raise InputError("at least one image of each source and of the target must be drawn")
        if not isfinite(self.eta) or not isfinite(self.gamma) or min(self.eta, self.gamma) < 0:
            raise InputError(f"eta and gamma must be numbers from 0, not {self.eta:g} and {self.gamma:g}")


def leave_one_out(
    table: PerformanceTable,
    settings: Settings = Settings(),
    profiles: Mapping[str, ImageProfiles] | None = None,
) -> RecommendationReport:
    """Ranks the models on each task from their ranks on the others, by several methods, and measures how well.

    Candidates are the models that have a value on some task and, where a method needs profiles, profiles too; the ranks
    on a source are those among the candidates that have a value there. A source that a model has no value on, or no
    profile of, is left out for that model, and its weights are those of a softmin over the others. A model that a
    method cannot rank on a target is never in its top k. The true ranks of a target are those of the candidates that
    have a value on it.

    Args:
        table: Known performance.
        settings: What decides the numbers.
        profiles: By model, image by image; None or empty if there are none.

    Raises:
        InputError: A method that was asked for needs profiles or the reference task and there are none, or fewer than
            two models or two tasks are left.
    """
    started = time.perf_counter()
    methods, notes = _methods(table, settings, profiles)
    needed = (profiles or {}) if any(method in PROFILE_METHODS for method in methods) else None
    choice = _Choice.of(table, settings, needed)
    models, tasks, values = choice.models, choice.tasks, choice.values
    if "inb" in methods and np.isnan(choice.reference).all():
        if settings.methods:
            raise InputError(f"no candidate has a value on the reference task {settings.reference}: inb cannot rank")
        methods = tuple(method for method in methods if method != "inb")
        notes.append(f"inb is left out: no candidate has a value on the reference task {settings.reference}")
    ks = _capped(settings.ks, values, notes)
    if len(tasks) == 2:
        notes.append("there are only two tasks: the one source of each target decides alone, whatever its weight")
    samples = (
        draw([needed[model] for model in models], tasks, settings.seeds, settings.source_images, settings.target_images)
        if needed is not None
        else ()
    )
    case = Case(
        tasks, ranks(values, settings.ties), choice.reference, settings.seeds, samples, settings.eta, settings.gamma
    )
    results = tuple(_measured(method, case, models, values, ks, settings.ties) for method in methods)
    for result in results:
        unranked = sorted({model for names in result.not_ranked.values() for model in names})
        if unranked:
            notes.append(f"{result.method} could not rank {len(unranked)} model(s) on some task: {named(unranked)}")
    missing = dict(zip(tasks, np.isnan(values).sum(axis=0).tolist(), strict=True))
    missing = {task: count for task, count in missing.items() if count}
    if missing:
        notes.append(f"{sum(missing.values())} values of {values.size} are missing, on {', '.join(missing)}")
    return RecommendationReport(
        settings=asdict(settings) | {"methods": list(methods), "ks": list(ks), "seeds": list(settings.seeds)},
        models=models,
        tasks=tasks,
        ks=ks,
        values=values,
        results=results,
        left_out_models=choice.left_out_models,
        left_out_tasks=choice.left_out_tasks,
        missing=missing,
        notes=tuple(notes),
        seconds=time.perf_counter() - started,
    )


def _methods(
    table: PerformanceTable, settings: Settings, profiles: Mapping[str, ImageProfiles] | None
) -> tuple[tuple[str, ...], list[str]]:
    """The methods to measure, and notes on those that are not."""
    for method in settings.methods:
        if method in PROFILE_METHODS and not profiles:
            raise InputError(
                f"the method {method} needs conductance profiles and there are none: give an index that has some "
                f"(--index; 'hubhound profile' makes them) or choose --methods from {', '.join(TABLE_METHODS)}"
            )
        if method == "inb" and settings.reference not in table.tasks:
            raise InputError(
                f"the method inb needs the performance on {settings.reference}, which is not in the table: name "
                f"another task (--reference) or choose other --methods; it has {named(table.tasks)}"
            )
    if settings.methods:
        return tuple(dict.fromkeys(settings.methods)), []
    notes = []
    methods: tuple[str, ...] = METHODS
    if not profiles:
        methods = TABLE_METHODS
        notes.append(f"{', '.join(PROFILE_METHODS)} are left out: they need an index with profiles (--index)")
    if settings.reference not in table.tasks:
        methods = tuple(method for method in methods if method != "inb")
        notes.append(f"inb is left out: the table has no task {settings.reference}; --reference names another")
    return methods, notes


@dataclass(frozen=True)
class _Choice:
    """What is left to measure on: candidates, tasks and their values."""

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    values: Float64Array
    reference: Float64Array
    left_out_models: dict[str, str]
    left_out_tasks: dict[str, str]

    @classmethod
    def of(cls, table: PerformanceTable, settings: Settings, profiles: Mapping[str, ImageProfiles] | None) -> _Choice:
        known = ~np.isnan(table.values)
        others = [t for t, task in enumerate(table.tasks) if task != settings.reference]
        models = _models_left_out(table, known[:, others], profiles)
        rows = [m for m, model in enumerate(table.models) if model not in models]
        seen = {task for m in rows for task in profiles[table.models[m]].images} if profiles is not None else None
        counts = {table.tasks[t]: int(known[rows, t].sum()) for t in others}
        tasks = _tasks_left_out(counts, len(rows), seen, complete=settings.complete)
        columns = [t for t in others if table.tasks[t] not in tasks]
        # A model whose only values were on tasks that are left out is nobody's candidate any more.
        for m in [m for m in rows if columns and not known[m, columns].any()]:
            models[table.models[m]] = "no known performance on the tasks that are left"
            rows.remove(m)
        if len(rows) < 2:
            raise InputError(_too_few("two models", table.models, models))
        if len(columns) < 2:
            raise InputError(_too_few("two tasks, one to recommend for and one to learn from", table.tasks, tasks))
        reference = np.full(len(rows), np.nan)
        if settings.reference in table.tasks:
            reference = table.values[rows, table.tasks.index(settings.reference)]
        return cls(
            tuple(table.models[m] for m in rows),
            tuple(table.tasks[t] for t in columns),
            table.values[np.ix_(rows, columns)],
            reference,
            models,
            tasks,
        )


def _models_left_out(
    table: PerformanceTable, known: npt.NDArray[np.bool_], profiles: Mapping[str, ImageProfiles] | None
) -> dict[str, str]:
    """The models that are no candidates, and why; ``known`` is ``[m, tasks]``."""
    left_out = {}
    for model, own in zip(table.models, known, strict=True):
        if profiles is not None and model not in profiles:
            left_out[model] = "no profiles"
        elif not own.any():
            left_out[model] = "no known performance"
    return left_out | {model: "no known performance" for model in profiles or {} if model not in table.models}


def _tasks_left_out(counts: Mapping[str, int], models: int, seen: set[str] | None, *, complete: bool) -> dict[str, str]:
    """The tasks that are neither target nor source, and why.

    Args:
        counts: Candidates that have a value, by task.
        models: How many candidates there are.
        seen: Tasks that some candidate has profiles of; None if none are needed.
        complete: Whether a missing value is a reason.
    """
    left_out = {}
    for task, count in counts.items():
        if seen is not None and task not in seen:
            left_out[task] = "no profiles"
        elif complete and count < models:
            left_out[task] = f"{models - count} of {models} values are missing"
        elif count < 2:
            left_out[task] = "fewer than two models have a value"
    return left_out


def _too_few(what: str, all_of: Sequence[str], left_out: Mapping[str, str]) -> str:
    reasons = {why: [name for name, reason in left_out.items() if reason == why] for why in left_out.values()}
    why = "; ".join(f"{reason}: {named(names)}" for reason, names in reasons.items())
    return f"recommendation can only be measured with at least {what}: of {len(all_of)} too few are left" + (
        f" ({why})" if why else ""
    )


def _capped(ks: Sequence[int], values: Float64Array, notes: list[str]) -> tuple[int, ...]:
    """A top k says something where there is a model that is not in it."""
    limit = min(max(len(values) - 1, 2), _LARGEST_K)
    capped = tuple(sorted({min(k, limit) for k in ks}))
    large = [str(k) for k in sorted(set(ks)) if k > limit]
    if large:
        notes.append(f"k = {', '.join(large)} is too much for {len(values)} models: k = {limit} was measured instead")
    fewest = int((~np.isnan(values)).sum(axis=0).min())
    if fewest <= capped[-1] and (fewest < len(values) or len(values) == 2):
        notes.append(
            f"a task has values of {fewest} models only: a top {capped[-1]} there holds all of them, "
            "only their order counts"
        )
    return capped


def _measured(
    method: str, case: Case, models: Sequence[str], values: Float64Array, ks: Sequence[int], ties: str
) -> MethodResult:
    """Predicts every target for every seed and measures the rankings."""
    seeds, count = len(case.seeds), len(case.tasks)
    drawn = method in DRAWN
    made = predict(method, case)
    predicted = np.where(np.isnan(values.T), np.nan, made if drawn else made[:1])
    draws = len(predicted)
    flat = predicted.reshape(draws * count, len(models))
    figures = measures(flat, np.tile(case.ranks.T, (draws, 1)), ks, ties)
    figures[REGRET] = regrets(flat, np.tile(values.T, (draws, 1)), ties)
    unranked = np.isnan(predicted[0]) & ~np.isnan(values.T)
    not_ranked = {
        task: tuple(models[m] for m in np.flatnonzero(unranked[t]).tolist())
        for t, task in enumerate(case.tasks)
        if unranked[t].any()
    }
    return MethodResult(
        method,
        drawn,
        {name: np.broadcast_to(row.reshape(draws, count), (seeds, count)) for name, row in figures.items()},
        np.broadcast_to(predicted, (seeds, count, len(models))),
        not_ranked,
    )
