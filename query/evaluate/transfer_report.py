"""The analyses of recommendation: run one after the other, as JSON, as a page of Markdown tables, and as plots."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.concepts import clean_concept
from engine.descriptors import FloatArray
from engine.errors import InputError
from engine.performance import PerformanceTable
from engine.profiles import ImageProfiles
from query.evaluate import transfer_plots
from query.evaluate.plots import require_matplotlib, save
from query.evaluate.proxy import CorrelationReport, Gap, ProxyReport, model_correlation, proxy_reliability
from query.evaluate.ranking import REGRET
from query.evaluate.recommendation import Float64Array, Settings
from query.evaluate.recommenders import DRAWN, PROFILE_METHODS
from query.evaluate.report import Grid, figure_text, markdown_table
from query.evaluate.set_coverage import CoverageReport, coverage_report, deviation_at
from query.evaluate.transfer_analysis import (
    ETAS,
    GAMMAS,
    GridReport,
    Progress,
    SamplingCurve,
    SamplingReport,
    grid,
    sampling,
)
from query.evaluate.transferred import RecommendationReport, measure_title, short_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

NAMES = ("grid", "sampling", "seeds", "proxy", "correlation", "coverage")
"""What can be analysed."""
PAGE = "recommendation.md"
"""The page of tables."""

_RISK = 0.05
_LONGEST = 100  # characters of a file's name that are a model's


@dataclass(frozen=True)
class Analyses:
    """What was analysed; None or nothing for what was not.

    Attributes:
        recommendation: The evaluation whose seeds are shown.
        grid: Over eta and gamma.
        sampling: Over the number of images.
        proxies: Reliability of proxies, one report a kind of performance gap.
        correlation: Between models.
        coverage: Set coverage and its tail bound.
        conductance: Models whose conductance is drawn.
    """

    recommendation: RecommendationReport | None = None
    grid: GridReport | None = None
    sampling: SamplingReport | None = None
    proxies: Sequence[ProxyReport] = ()
    correlation: CorrelationReport | None = None
    coverage: CoverageReport | None = None
    conductance: Sequence[ImageProfiles] = field(default=(), repr=False)


@dataclass(frozen=True)
class Plan:
    """What to analyse.

    Attributes:
        names: Of ``NAMES``.
        etas: Of the grid.
        gammas: Of the grid.
        gap: What proxies are to foretell.
    """

    names: tuple[str, ...] = ()
    etas: tuple[float, ...] = ETAS
    gammas: tuple[float, ...] = GAMMAS
    gap: Gap = "accuracy"


def analyse(
    plan: Plan,
    report: RecommendationReport,
    table: PerformanceTable,
    profiles: Mapping[str, ImageProfiles] | None,
    settings: Settings,
    text: Float64Array | None = None,
    bar: Callable[[str], Progress] | None = None,
) -> Analyses:
    """Runs the analyses of a plan.

    Grid and sampling measure on the candidates, proxies on the models with performance, all others on every profile.

    Args:
        plan: What to analyse.
        report: The evaluation.
        table: Known performance.
        profiles: By model, image by image.
        settings: Of the evaluation; the draws of the coverage have its first seed.
        text: Embeddings of the tasks' class names for the proxy ``text``, see ``class_embeddings``.
        bar: Makes what is told the progress of an analysis of that name.

    Raises:
        InputError: There are no profiles and an analysis needs them, or nothing can be measured.
    """
    check_profiles(plan, profiles)
    known, wanted = profiles or {}, set(plan.names)
    tell: Callable[[str], Progress | None] = bar or (lambda _: None)
    # Sampling shows the methods of the evaluation that depend on what is drawn.
    drawn = tuple(own.method for own in report.results if own.method in DRAWN and own.method in PROFILE_METHODS)
    found: dict[str, Any] = {}
    if "grid" in wanted:
        found["grid"] = grid(table, known, settings, plan.etas, plan.gammas, tell("grid"))
    if "sampling" in wanted:
        found["sampling"] = sampling(table, known, settings, drawn or ("dcd",), progress=tell("sampling"))
    if "seeds" in wanted:
        found["recommendation"] = report
    if "proxy" in wanted:
        found["proxies"] = (proxy_reliability(table, known, plan.gap, settings.eta, text, settings.ties),)
    if "correlation" in wanted:
        found["correlation"] = model_correlation(known, settings.eta, progress=tell("correlation"))
    if "coverage" in wanted:
        found["coverage"] = coverage_report(known, settings.eta, seed=settings.seeds[0], progress=tell("coverage"))
    return Analyses(**found)


def check_profiles(plan: Plan, profiles: Mapping[str, ImageProfiles] | None) -> None:
    """Refuses a plan that there are no profiles for.

    Raises:
        InputError: There are none, and an analysis needs them.
    """
    needing = [name for name in plan.names if name != "seeds"]
    if needing and not profiles:
        raise InputError(
            f"the analyses {', '.join(needing)} need conductance profiles and there are none: give an index that has "
            "some (--index; 'hubhound profile' makes them)"
        )


def class_embeddings(
    tasks: Sequence[str], classes: Mapping[str, Sequence[str]], embed: Callable[[Sequence[str]], FloatArray]
) -> Float64Array:
    """What the class names of each task say: ``e = (1/n) sum_c t_c / |t_c|``, t_c the text embedding of a name.

    Args:
        tasks: t names, at least one of them with classes.
        classes: Names of a task's classes, an underscore standing for a space; tasks without are left out.
        embed: c texts -> embeddings ``[c, e]``.

    Returns:
        float64 ``[t, e]``; NaN for a task without classes.

    Raises:
        ConceptError: A name cannot be embedded.
    """
    texts = {
        task: [clean_concept(name.replace("_", " ")) for name in classes[task]] for task in tasks if classes.get(task)
    }
    every = list(dict.fromkeys(text for own in texts.values() for text in own))
    vectors = np.asarray(embed(every), np.float64)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    place = {text: i for i, text in enumerate(every)}
    unknown = np.full(vectors.shape[1], np.nan)
    return np.stack(
        [vectors[[place[text] for text in texts[task]]].mean(axis=0) if task in texts else unknown for task in tasks]
    )


def write(
    folder: Path,
    analyses: Analyses,
    plots: bool = True,
    progress: Callable[[int, int], None] | None = None,
    texts: bool = True,
) -> tuple[Path, ...]:
    """Writes ``grid.json``, ``sampling.json``, ``proxy.json``, ``correlation.json``, ``coverage.json``, a page, plots.

    What was not analysed has no file. A number that is not known is null in JSON and ``-`` in a table. ``proxy.json``
    has a report a kind of gap, by its name. All files are made before the first one takes its place.

    Args:
        folder: Made if it does not exist; files of the same names are replaced.
        analyses: What to write.
        plots: Whether to draw, each plot as PNG and as SVG.
        progress: Told after each plot how many are drawn, and of how many.
        texts: Whether to write JSON and the page.

    Returns:
        The files, in the order in which they were written.

    Raises:
        InputError: matplotlib is not installed and there are plots to draw; nothing is written.
        OSError: They cannot be written.
    """
    pictures = list(_pictures(analyses)) if plots else []
    if pictures:
        require_matplotlib()
    pages: dict[str, str] = {}
    if texts:
        for name, value in to_json(analyses).items():
            pages[f"{name}.json"] = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
        pages[PAGE] = to_markdown(analyses)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as temporary:
        made = [Path(temporary) / name for name in pages]
        for path, text in zip(made, pages.values(), strict=True):
            path.write_text(text, encoding="utf-8")
        for done, (name, picture) in enumerate(pictures, 1):
            made += save(picture(), Path(temporary) / name)
            if progress is not None:
                progress(done, len(pictures))
        return tuple(path.replace(folder / path.name) for path in made)


def to_json(analyses: Analyses) -> dict[str, object]:
    """All analyses as values of JSON, by name; seeds are in the evaluation's own. What is not known is null."""
    reports = {name: getattr(analyses, name) for name in ("grid", "sampling", "correlation", "coverage")}
    found: dict[str, object] = {
        name: _finite(report.model_dump(mode="json")) for name, report in reports.items() if report is not None
    }
    if analyses.proxies:
        found["proxy"] = {report.gap: _finite(report.model_dump(mode="json")) for report in analyses.proxies}
    return found


def tables(analyses: Analyses) -> tuple[Grid, ...]:
    """All analyses as tables of texts."""
    made: list[Grid] = []
    if analyses.recommendation is not None:
        made.append(_seeds_table(analyses.recommendation))
    if analyses.grid is not None:
        made += _grid_tables(analyses.grid)
    if analyses.sampling is not None:
        made += _sampling_tables(analyses.sampling)
    made += [_proxy_table(report) for report in analyses.proxies]
    if analyses.correlation is not None:
        made.append(_correlation_table(analyses.correlation))
    if analyses.coverage is not None:
        made += _coverage_tables(analyses.coverage)
    return tuple(made)


def to_markdown(analyses: Analyses) -> str:
    """All analyses as a page of Markdown, with the notes on what was left out or replaced."""
    lines = ["# Analyses of recommendation", ""]
    for table in tables(analyses):
        lines += [f"## {table.title}", "", *markdown_table(table.columns, table.rows, table.names), ""]
        lines += [table.note, ""] if table.note else []
    reports = (analyses.recommendation, analyses.grid, analyses.sampling)
    notes = dict.fromkeys(note for report in reports if report is not None for note in report.notes)
    if notes:
        lines += ["## Notes", "", *(f"- {note}" for note in notes), ""]
    return "\n".join(lines)


def _pictures(analyses: Analyses) -> Iterator[tuple[str, Callable[[], Picture]]]:
    done = analyses
    if (recommendation := done.recommendation) is not None:
        yield "seeds", lambda: transfer_plots.seed_distribution(recommendation)
    if (cells := done.grid) is not None:
        yield "grid", lambda: transfer_plots.grid_heatmap(cells)
    if (curves := done.sampling) is not None:
        yield "sampling", lambda: transfer_plots.sampling_curve(curves)
    for report in done.proxies:
        yield f"proxy-{report.gap}", lambda report=report: transfer_plots.proxy_bars(report)  # type: ignore[misc]
    if (correlation := done.correlation) is not None:
        yield "correlation", lambda: transfer_plots.correlation_heatmap(correlation)
    if (coverage := done.coverage) is not None:
        yield "coverage", lambda: transfer_plots.coverage_plot(coverage)
    names: dict[str, int] = {}
    for own in done.conductance:
        name = re.sub(r"[^A-Za-z0-9_.]+", "-", short_name(own.model).removeprefix("local-dir:"))[:_LONGEST].strip("-.")
        names[name] = names.get(name, 0) + 1
        name += f"-{names[name]}" if names[name] > 1 else ""
        yield f"conductance-{name}", lambda own=own: transfer_plots.conductance_heatmap(own)  # type: ignore[misc]


def _seeds_table(report: RecommendationReport) -> Grid:
    measure = f"sum@{report.ks[len(report.ks) // 2]}"
    rows = []
    for method in report.ranking():
        result = report.result(method)
        values = result.by_seed(measure)
        spread = stdev(values) if result.drawn and len(values) > 1 else None
        rows.append((method, *map(_number, (mean(values), spread, min(values), max(values)))))
    note = f"{measure_title(measure)}, mean over {len(report.tasks)} target tasks, seed by seed; sd: over the seeds."
    return Grid("Distribution over the seeds", ("method", "mean", "sd", "least", "most"), tuple(rows), note)


def _grid_tables(report: GridReport) -> list[Grid]:
    made = []
    for name in (name for name in report.figures if name.startswith("sum@") or name == REGRET):
        rows = []
        for eta, cells in zip(report.etas, report.figures[name], strict=True):
            marked = [
                f"**{figure_text(cell)}**" if (eta, gamma) == (report.eta, report.gamma) else figure_text(cell)
                for gamma, cell in zip(report.gammas, cells, strict=True)
            ]
            rows.append((f"eta {eta:g}", *marked))
        note = f"Mean ± standard deviation over the seeds; {report.models} models, {report.tasks} tasks. Bold: in use."
        columns = ("", *(f"gamma {gamma:g}" for gamma in report.gammas))
        made.append(Grid(f"Grid: {measure_title(name)}", columns, tuple(rows), note))
    return made


def _sampling_tables(report: SamplingReport) -> list[Grid]:
    fixed = (f"{report.target_images} of the target", f"{report.source_images} of each source")
    return [
        _sampling_table(f"Number of {what} images", curves, other)
        for what, curves, other in zip(("source", "target"), (report.source, report.target), fixed, strict=True)
    ]


def _sampling_table(title: str, curves: Sequence[SamplingCurve], other: str) -> Grid:
    measures = [name for name in curves[0].points[0].figures if name.startswith("sum@") or name == REGRET]
    rows = [
        (curve.method, str(point.images), *(figure_text(point.figures[name]) for name in measures), str(point.short))
        for curve in curves
        for point in curve.points
    ]
    note = f"With {other}. Short: tasks of which some model has fewer images; all of those were used."
    return Grid(title, ("method", "images", *map(measure_title, measures), "short"), tuple(rows), note)


def _proxy_table(report: ProxyReport) -> Grid:
    rows = tuple(
        (own.proxy, _number(own.mean), _number(own.sd), str(own.models), _reasons(own.left_out))
        for own in report.proxies
    )
    note = f"Spearman's correlation with gaps in {report.gap} over pairs of tasks, for each model; eta {report.eta:g}."
    if report.unknown:
        note += f" {len(report.unknown)} models have profiles and no known performance."
    columns = ("proxy", "mean", "sd", "models", "left out")
    return Grid(f"Reliability of proxies, gap in {report.gap}", columns, rows, note)


def _correlation_table(report: CorrelationReport) -> Grid:
    rows = (
        ("within a family", _number(report.within), str(report.pairs_within)),
        ("across families", _number(report.across), str(report.pairs_across)),
    )
    families = len(set(report.families))
    note = (
        f"{report.kind.title()}'s correlation of D(T -> S) over ordered pairs of tasks; {len(report.models)} models of "
        f"{families} {'family' if families == 1 else 'families'}; eta {report.eta:g}. "
        f"Pairs of models without one: {_reasons(report.left_out)}."
    )
    return Grid("Correlation of models", ("pairs of models", "mean correlation", "pairs"), rows, note)


def _coverage_tables(report: CoverageReport) -> list[Grid]:
    models = tuple((own.model, str(own.tasks), _number(own.mean), _number(own.agreement)) for own in report.models)
    note = f"Mean C(T -> S) over pairs of tasks, and Spearman's correlation of C with D; eta {report.eta:g}."
    made = [Grid("Set coverage", ("model", "tasks", "mean C", "agreement with D"), models, note)]
    if report.tail:
        tail = tuple(
            (f"{100 * own.share:g} %", _number(own.bound), _number(own.mean), _number(own.worst)) for own in report.tail
        )
        share = 100 * deviation_at(report.images, _RISK, 1.0)
        note = (
            f"Share of {report.draws} samples of {report.images} target images that deviate so far, in per cent of the "
            f"largest distance; at {share:.0f} % the bound is {_RISK:g}."
        )
        columns = ("deviation", "bound", "mean", "worst pair")
        made.append(Grid("Tail bound of set coverage", columns, tail, note))
    return made


def _reasons(left_out: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none"


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _finite(value: object) -> object:
    """JSON has no NaN: what is not known is null."""
    if isinstance(value, dict):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
