"""Sweeps: how one setting moves the figures of text to output."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from engine.errors import InputError
from query.evaluate.labelled import ImageLabels
from query.evaluate.results import RetrievalReport, Row, SweepPoint, SweepReport
from query.evaluate.retrieval import Embed, Progress, Settings, check_case, evaluate
from query.evaluate.zoo import Query, Zoo

PARAMETERS = {
    "r": "kept probes",
    "probes": "probes",
    "background": "background concepts",
    "k": "nearest background concepts",
}
"""What can be swept, and in what unit."""


@dataclass(frozen=True)
class Case:
    """What is evaluated at one point of a sweep.

    Attributes:
        label: Of the point.
        zoo: The outputs.
        embed: The encoder behind the zoo's probes.
        settings: Everything else that decides the numbers; the task is always text to output.
        images: What says which classes have a probe of this zoo; None leaves the groups of the queries as they are.
    """

    label: str
    zoo: Zoo
    embed: Embed
    settings: Settings
    images: ImageLabels | None = None


def sweep(
    parameter: str,
    values: Sequence[int],
    zoo: Zoo,
    queries: Sequence[Query],
    embed: Embed,
    settings: Settings,
    pool: Sequence[str] | None = None,
    progress: Progress | None = None,
    images: ImageLabels | None = None,
) -> SweepReport:
    """Evaluates text to output with several values of one setting.

    A background of k concepts or fewer takes k = its size less 1; the report's settings then list every point's k.

    Args:
        parameter: One of ``PARAMETERS``.
        values: In the order of the points.
        zoo: The outputs.
        queries: What is asked.
        embed: The encoder behind the zoo's probes.
        settings: The other settings; every seed counts at every point.
        pool: Names to draw the background from; by default the class names of ImageNet-21k.
        progress: Called with (steps done, steps in all, what is being done).
        images: What says which classes have a probe, for queries in the groups seen and unseen.

    Raises:
        InputError: The parameter is unknown, there is no value, or one is out of range; nothing was evaluated then.
    """
    if parameter not in PARAMETERS:
        raise InputError(f"{parameter!r} cannot be swept: use one of {', '.join(PARAMETERS)}")
    cases = [Case(str(value), zoo, embed, _with(settings, parameter, value), images) for value in values]
    return sweep_over(cases, queries, parameter, PARAMETERS[parameter], pool, progress)


def _with(settings: Settings, parameter: str, value: int) -> Settings:
    if parameter == "r":
        return replace(settings, r=value)
    if parameter == "probes":
        return replace(settings, probes=value)
    if parameter == "k":
        return replace(settings, k=value)
    return replace(settings, background=value, k=min(settings.k, max(1, value - 1)))


def sweep_over(
    cases: Iterable[Case],
    queries: Sequence[Query],
    parameter: str,
    unit: str,
    pool: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> SweepReport:
    """Evaluates text to output in several cases that may differ in anything: prompts, probes, encoder.

    Args:
        cases: In the order of the points.
        queries: What is asked in each.
        parameter: What the cases differ in.
        unit: Of the labels; empty where they have none.
        pool: Names to draw the background from; by default the class names of ImageNet-21k.
        progress: Called with (steps done, steps in all, what is being done).

    Raises:
        InputError: There is no case, or one cannot be evaluated; nothing was evaluated then.
    """
    started = time.perf_counter()
    listed = [replace(case, settings=replace(case.settings, tasks=("output",))) for case in cases]
    if not listed:
        raise InputError(f"a sweep of {parameter} needs at least one value")
    for case in listed:
        check_case(case.zoo, queries, case.settings, pool)
    points: list[SweepPoint] = []
    reports: list[RetrievalReport] = []
    for place, case in enumerate(listed):
        inner = None if progress is None else _within(progress, place, len(listed), f"{parameter} {case.label}")
        report = evaluate(case.zoo, queries, case.embed, case.settings, case.images, pool, inner, curves=False)
        rows: tuple[Row, ...] = report.tables[0].rows
        points.append(SweepPoint(value=case.label, rows=rows))
        reports.append(report)
    shared = {key: value for key, value in reports[0].settings.items() if key != "notes"}
    # What differs between the cases stands as a list, one entry a point.
    settings_of = {
        key: value if all(report.settings[key] == value for report in reports) else [r.settings[key] for r in reports]
        for key, value in shared.items()
    }
    notes = [
        f"{parameter} {point.value}: {note}"
        for point, report in zip(points, reports, strict=True)
        for note in _texts(report.settings["notes"])
    ]
    return SweepReport(
        settings=settings_of | {"notes": notes},
        parameter=parameter,
        unit=unit,
        points=tuple(points),
        seconds=round(time.perf_counter() - started, 3),
    )


def _texts(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _within(progress: Progress, place: int, cases: int, label: str) -> Progress:
    """Progress over all cases, as every case has about as many steps."""
    return lambda done, total, what: progress(place * total + done, cases * total, f"{label}: {what}")
