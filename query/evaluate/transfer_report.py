"""The analyses of recommendation as files: JSON, one page of Markdown tables, and plots."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

from engine.files import write_atomic
from engine.profiles import ImageProfiles
from query.evaluate import transfer_plots
from query.evaluate.plots import require_matplotlib
from query.evaluate.proxy import CorrelationReport, ProxyReport
from query.evaluate.ranking import REGRET
from query.evaluate.report import Grid
from query.evaluate.results import Figure
from query.evaluate.set_coverage import CoverageReport, deviation_at
from query.evaluate.transfer_analysis import GridReport, SamplingCurve, SamplingReport
from query.evaluate.transferred import RecommendationReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

PAGE = "recommendation.md"
"""The page of tables."""

_RISK = 0.05


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


def write(
    folder: Path, analyses: Analyses, plots: bool = True, progress: Callable[[int, int], None] | None = None
) -> tuple[Path, ...]:
    """Writes ``grid.json``, ``sampling.json``, ``proxy.json``, ``correlation.json``, ``coverage.json``, a page, plots.

    What was not analysed has no file. A number that is not known is null in JSON and ``-`` in a table. ``proxy.json``
    has a report a kind of gap, by its name.

    Args:
        folder: Made if it does not exist; files of the same names are replaced.
        analyses: What to write.
        plots: Whether to draw, each plot as PNG and as SVG.
        progress: Told after each plot how many are drawn, and of how many.

    Returns:
        The files, in the order in which they were written.

    Raises:
        InputError: matplotlib is not installed and there are plots to draw; nothing is written.
        OSError: They cannot be written.
    """
    if plots and next(_pictures(analyses), None) is not None:
        require_matplotlib()
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, value in _values(analyses):
        text = json.dumps(_finite(value), ensure_ascii=False, indent=1, allow_nan=False)
        made.append(_write(folder / f"{name}.json", text + "\n"))
    made.append(_write(folder / PAGE, to_markdown(analyses)))
    pictures = list(_pictures(analyses)) if plots else []
    for done, (name, picture) in enumerate(pictures, 1):
        made += transfer_plots.save(picture(), folder / name)
        if progress is not None:
            progress(done, len(pictures))
    return tuple(made)


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
        rule = ["---" if i < table.names else "---:" for i in range(len(table.columns))]
        lines += [f"## {table.title}", "", *(_line(cells) for cells in (table.columns, rule, *table.rows)), ""]
        lines += [table.note, ""] if table.note else []
    reports = (analyses.recommendation, analyses.grid, analyses.sampling)
    notes = dict.fromkeys(note for report in reports if report is not None for note in report.notes)
    if notes:
        lines += ["## Notes", "", *(f"- {note}" for note in notes), ""]
    return "\n".join(lines)


def _values(analyses: Analyses) -> Iterator[tuple[str, object]]:
    for name in ("grid", "sampling", "correlation", "coverage"):
        report = getattr(analyses, name)
        if report is not None:
            yield name, report.model_dump(mode="json")
    if analyses.proxies:
        yield "proxy", {report.gap: report.model_dump(mode="json") for report in analyses.proxies}


def _pictures(analyses: Analyses) -> Iterator[tuple[str, Callable[[], Picture]]]:
    done = analyses
    if (recommendation := done.recommendation) is not None:
        yield "seeds", lambda: transfer_plots.seed_distribution(recommendation)
    if (grid := done.grid) is not None:
        yield "grid", lambda: transfer_plots.grid_heatmap(grid)
    if (sampling := done.sampling) is not None:
        yield "sampling", lambda: transfer_plots.sampling_curve(sampling)
    for report in done.proxies:
        yield f"proxy-{report.gap}", lambda report=report: transfer_plots.proxy_bars(report)  # type: ignore[misc]
    if (correlation := done.correlation) is not None:
        yield "correlation", lambda: transfer_plots.correlation_heatmap(correlation)
    if (coverage := done.coverage) is not None:
        yield "coverage", lambda: transfer_plots.coverage_plot(coverage)
    for own in done.conductance:
        name = re.sub(r"[^A-Za-z0-9_.]+", "-", own.model.removeprefix("open_clip:")).strip("-.")
        yield f"conductance-{name}", lambda own=own: transfer_plots.conductance_heatmap(own)  # type: ignore[misc]


def _seeds_table(report: RecommendationReport) -> Grid:
    measure = f"sum@{report.ks[len(report.ks) // 2]}"
    rows = []
    for method in report.ranking():
        result = report.result(method)
        values = result.by_seed(measure)
        spread = stdev(values) if result.drawn and len(values) > 1 else None
        rows.append((method, *map(_number, (mean(values), spread, min(values), max(values)))))
    note = f"{_measure(measure)}, mean over {len(report.tasks)} target tasks, seed by seed; sd: over the seeds."
    return Grid("Distribution over the seeds", ("method", "mean", "sd", "least", "most"), tuple(rows), note)


def _grid_tables(report: GridReport) -> list[Grid]:
    made = []
    for name in (name for name in report.figures if name.startswith("sum@") or name == REGRET):
        rows = []
        for eta, cells in zip(report.etas, report.figures[name], strict=True):
            marked = [
                f"**{_cell(cell)}**" if (eta, gamma) == (report.eta, report.gamma) else _cell(cell)
                for gamma, cell in zip(report.gammas, cells, strict=True)
            ]
            rows.append((f"eta {eta:g}", *marked))
        note = f"Mean ± standard deviation over the seeds; {report.models} models, {report.tasks} tasks. Bold: in use."
        columns = ("", *(f"gamma {gamma:g}" for gamma in report.gammas))
        made.append(Grid(f"Grid: {_measure(name)}", columns, tuple(rows), note))
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
        (curve.method, str(point.images), *(_cell(point.figures[name]) for name in measures), str(point.short))
        for curve in curves
        for point in curve.points
    ]
    note = f"With {other}. Short: tasks of which some model has fewer images; all of those were used."
    return Grid(title, ("method", "images", *map(_measure, measures), "short"), tuple(rows), note)


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


def _measure(name: str) -> str:
    kind, _, k = name.partition("@")
    return f"NDCG@{k} + tau@{k}" if kind == "sum" else name


def _reasons(left_out: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none"


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _cell(figure: Figure) -> str:
    text = _number(figure.mean)
    return text if figure.sd is None or text == "-" else f"{text} ± {figure.sd:.3f}"


def _finite(value: object) -> object:
    """JSON has no NaN: what is not known is null."""
    if isinstance(value, dict):
        return {key: _finite(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def _write(path: Path, text: str) -> Path:
    content = text.encode()
    write_atomic(path, lambda file: file.write(content))
    return path
