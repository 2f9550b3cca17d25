"""Plots of reports, as PNG for people and as SVG for documents; each says one thing, in its title.

Colours are those of Okabe and Ito, which people who are colour-blind can tell apart; lines differ in their
marker and dash too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import InputError
from engine.files import write_atomic
from query.evaluate.report import Report, groups_of, ranking, task_title
from query.evaluate.results import Curve, RetrievalReport, Row, SweepReport, Table
from query.evaluate.tally import ALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", ":")
_METRICS: Mapping[str, str] = {"hit@1": "right answer first", "hit@5": "right answer among five"}
_BARS: Mapping[str, str] = {"hit@1": "#0072B2", "hit@5": "#E69F00"}
_PARAMETERS: Mapping[str, str] = {
    "r": "kept probes r (number)",
    "probes": "probes (number)",
    "background": "background concepts (number)",
    "k": "nearest background concepts k (number)",
    "templates": "prompt templates",
    "probe-source": "probe source",
}
_STYLE: Any = {
    "svg.hashsalt": "hubhound",  # ids in an SVG follow from its content, not from chance
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}
_DPI = 150
_WRAP = 3  # panels side by side


def draw(report: Report, folder: Path) -> tuple[Path, ...]:
    """Draws a report: of an evaluation, bars for every task, the hubness and the quality curves; of a sweep, its lines.

    Args:
        report: What to draw; what it has no figures for is left out.
        folder: Made if it does not exist; plots of the same name are replaced.

    Returns:
        The files: every plot as ``.png`` and as ``.svg``. The same report gives the same SVG, byte for byte.

    Raises:
        InputError: matplotlib is not installed.
        OSError: They cannot be written.
    """
    with style():
        folder.mkdir(parents=True, exist_ok=True)
        return tuple(path for name, figure in _figures(report) for path in save(figure, folder / name))


def _figures(report: Report) -> Iterator[tuple[str, Figure]]:
    if isinstance(report, SweepReport):
        if report.points:
            yield f"sweep-{report.parameter}", _sweep(report)
        return
    for table in report.tables:
        if any(metric in row.figures for row in table.rows for metric in _METRICS):
            yield f"task-{table.task}", _bars(table)
    if report.hubness:
        yield "hubness", _hubness(report.hubness)
    if report.quality:
        yield "quality", _quality(report)


def require_matplotlib() -> None:
    """Asks for what ``draw`` needs, before an evaluation takes its minutes.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("plots need matplotlib, which is not installed: run 'pip install matplotlib'") from error


@contextmanager
def style() -> Iterator[None]:
    """The house style of plots, for as long as it is entered.

    Raises:
        InputError: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def save(figure: Figure, path: Path) -> tuple[Path, ...]:
    """Writes a figure that was made in the house style as ``path.png`` and ``path.svg``, each atomically.

    Args:
        figure: The figure.
        path: Without a suffix; its folder must exist.

    Raises:
        OSError: They cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    made = []
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        target = path.with_name(f"{path.name}.{suffix}")

        def write(file: Any, suffix: str = suffix, metadata: dict[str, Any] = metadata) -> None:
            figure.savefig(file, format=suffix, dpi=_DPI, metadata=metadata, bbox_inches="tight", pad_inches=0.1)

        with style():
            write_atomic(target, write)
        made.append(target)
    return tuple(made)


def _panels(groups: Sequence[str]) -> tuple[str, ...]:
    """The groups that get a panel: parts say more than the whole."""
    return tuple(group for group in groups if group != ALL) or (ALL,)


def _grid(count: int, width: float, height: float, rows: int = 1, top: float = 0.7) -> tuple[Figure, list[list[Axes]]]:
    """Panels: ``rows`` times ``count`` axes, each of a size in inches; room for title and legend above."""
    from matplotlib.figure import Figure

    columns = min(count, _WRAP) if rows == 1 else count
    lines = -(-count // columns) if rows == 1 else rows
    figure = Figure(figsize=(width * columns, height * lines + top), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    if rows > 1:
        return figure, [list(line) for line in axes]
    flat = list(axes.ravel())
    for spare in flat[count:]:
        spare.set_visible(False)
    return figure, [flat[:count]]


def _bars(table: Table) -> Figure:
    """Hits of every method, one panel a group."""
    groups = _panels(groups_of(table.rows))
    by = {(row.method, row.group): row for row in table.rows}
    methods = sorted(
        dict.fromkeys(row.method for row in table.rows),
        key=lambda method: -sum(np.nan_to_num(_value(by.get((method, group)), "hit@1")[0]) for group in groups),
    )
    figure, (axes,) = _grid(len(groups), 4.6, 0.36 * len(methods) + 0.9)
    places = np.arange(len(methods))
    for ax, group in zip(axes, groups, strict=True):
        for offset, (metric, colour) in zip((-0.2, 0.2), _BARS.items(), strict=True):
            values = [_value(by.get((method, group)), metric) for method in methods]
            means = [mean for mean, _ in values]
            sds = [sd for _, sd in values]
            ax.barh(
                places + offset,
                means,
                0.38,
                color=colour,
                label=_METRICS[metric],
                xerr=sds if any(sds) else None,
                error_kw={"linewidth": 0.8, "capsize": 2},
            )
            for place, mean, sd in zip(places + offset, means, sds, strict=True):
                ax.text(mean + sd + 1.2, place, f"{mean:.1f}", va="center", fontsize=7)
        counts = {row.queries for row in table.rows if row.group == group}
        ax.set_title(f"{group} ({max(counts):,} queries)", fontsize=9)
        ax.set_yticks(places, methods if ax is axes[0] else [""] * len(methods))
        ax.set_ylim(len(methods) - 0.4, -0.6)
        ax.set_xlim(0, 112)
        ax.set_xticks(range(0, 101, 20))
        ax.set_xlabel("queries answered right (%)")
        ax.grid(visible=False, axis="y")
    reached = {method: [_value(by.get((method, group)), "hit@1")[0] for group in groups] for method in methods}
    message = _bars_message(methods, reached, groups)
    _crown(figure, f"{task_title(table.task)}: {message}", axes[0])
    return figure


def _bars_message(methods: Sequence[str], reached: Mapping[str, Sequence[float]], groups: Sequence[str]) -> str:
    """What the bars say about the best method, the first one; nothing that is not so in every panel."""
    best = methods[0]
    parts = (
        f"{value:.1f} %" if g == ALL else f"{g} {value:.1f} %" for g, value in zip(groups, reached[best], strict=True)
    )
    figures = ", ".join(parts)
    others = [reached[method] for method in methods[1:]]
    if not others:
        return f"{best} is right first in {figures}"
    if all(own > other for values in others for own, other in zip(reached[best], values, strict=True)):
        return f"{best} is right first most often ({figures})"
    if any(list(values) == list(reached[best]) for values in others):
        return f"{best}, among others, is right first most often ({figures})"
    return f"{best} is right first most often on the whole ({figures})"


def _hubness(curves: Sequence[Curve]) -> Figure:
    """How few outputs the first answers come from."""
    figure, ((ax,),) = _grid(1, 7.2, 3.6)
    halves = {curve.method: _first_at(curve, 0.5) for curve in curves}
    for curve, style in zip(curves, _styles(), strict=False):
        shown = np.asarray(curve.x)
        ax.plot(shown, 100 * np.asarray(curve.y), label=curve.method, linewidth=1.4, **{**style, "marker": None})
    ax.axhline(50, color="#777777", linewidth=0.8)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_ylim(0, 102)
    ax.set_xlabel("most frequent outputs (number, logarithmic)")
    ax.set_ylabel("share of the first answers (%)")
    few, many = min(halves, key=lambda m: halves[m]), max(halves, key=lambda m: halves[m])
    outputs = f"{halves[few]:,.0f} output{'' if halves[few] == 1 else 's'}"
    message = f"Half of the first answers come from {outputs}"
    if halves[few] < halves[many]:
        message += f" with {few}, {halves[many]:,.0f} with {many}"
    _crown(figure, message, ax, beside=True)
    return figure


def _quality(report: RetrievalReport) -> Figure:
    """Whether outputs that are retrieved earlier are better classifiers."""
    from matplotlib.ticker import MaxNLocator

    curves = report.quality
    figure, ((ax,),) = _grid(1, 7.2, 3.6)
    for curve, style in zip(curves, _styles(), strict=False):
        ax.plot(curve.x, curve.y, label=curve.method, linewidth=1.4, markersize=3.5, **style)
    ax.set_xlabel("rank of the retrieved output")
    ax.set_ylabel("PR-AUC on labelled images (mean)")
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    order = {method: i for i, method in enumerate(ranking(report))}
    best = min(curves, key=lambda curve: order.get(curve.method, len(order)))
    first, last = best.y[0], best.y[-1]
    verb = "falls" if last < first else "does not fall"
    message = f"{best.method}: quality {verb} with rank, "
    message += f"PR-AUC {first:.2f} at rank {best.x[0]:g}, {last:.2f} at {best.x[-1]:g}"
    _crown(figure, message, ax, beside=True)
    return figure


def _sweep(report: SweepReport) -> Figure:
    """Hits against the swept setting: one column a group, one row a metric."""
    rows = [row for point in report.points for row in point.rows]
    groups = _panels(groups_of(rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    values = [point.value for point in report.points]
    numbers = _numbers(values)
    x = np.arange(len(values), dtype=np.float64) if numbers is None else np.asarray(numbers)
    order = np.argsort(x, kind="stable")
    figure, axes = _grid(len(groups), 4.2 if len(groups) > 1 else 6.5, 2.5, rows=len(_METRICS))
    for line, metric in zip(axes, _METRICS, strict=True):
        for ax, group in zip(line, groups, strict=True):
            for i, (method, style) in enumerate(zip(methods, _styles(), strict=False)):
                own = [
                    _value(next((r for r in p.rows if r.method == method and r.group == group), None), metric)
                    for p in report.points
                ]
                mean, sd = np.asarray(own, dtype=np.float64)[order].T
                at, look = x[order], style
                if numbers is None:  # between names there is nothing that a line could mean
                    at, look = at + 0.06 * (i - (len(methods) - 1) / 2), {**style, "linestyle": "none"}
                errors = sd if sd.any() else None
                ax.errorbar(at, mean, errors, label=method, linewidth=1.3, markersize=4, capsize=2, **look)
            ax.set_ylim(top=min(ax.get_ylim()[1], 100.8))
            _sweep_axis(ax, x, values, numbers is not None)
            if line is axes[0]:
                ax.set_title(group if group != ALL else "all queries", fontsize=9)
            if line is axes[-1]:
                ax.set_xlabel(_PARAMETERS.get(report.parameter, report.parameter))
        line[0].set_ylabel(f"{_METRICS[metric]} (%)")
    _crown(figure, _sweep_message(report), axes[0][0])
    return figure


def _sweep_axis(ax: Axes, x: Any, values: Sequence[str], numeric: bool) -> None:
    if numeric and x.min() > 0 and x.max() / x.min() > 20:
        ax.set_xscale("log")
        ax.minorticks_off()
    if numeric and len(values) <= 8:
        ax.set_xticks(x, values)
    elif not numeric:
        ax.set_xticks(x, [_shortened(value) for value in values])
        ax.set_xlim(-0.4, len(values) - 0.6)
        if len(values) > 3:
            ax.tick_params(axis="x", rotation=20)


def _sweep_message(report: SweepReport) -> str:
    group = groups_of([row for point in report.points for row in point.rows])[0]
    reached = [
        (_value(row, "hit@1")[0], row.method, point.value)
        for point in report.points
        for row in point.rows
        if row.group == group
    ]
    value, method, at = max(reached, key=lambda entry: entry[0])
    of = "" if group == ALL else f"{group} "
    return f"{method} is right first most often at {report.parameter} = {_shortened(at)} ({value:.1f} % of {of}queries)"


def _shortened(text: str) -> str:
    return text if len(text) <= 26 else f"{text[:25]}\N{HORIZONTAL ELLIPSIS}"


def _crown(figure: Figure, message: str, ax: Axes, beside: bool = False) -> None:
    """Title and legend, the legend where no data can be."""
    figure.suptitle(message, fontsize=10, fontweight="bold", wrap=True)
    handles, labels = ax.get_legend_handles_labels()
    if beside:
        figure.legend(handles, labels, loc="outside right center", fontsize=8)
    else:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), fontsize=8)


def _styles() -> Iterator[dict[str, Any]]:
    """A way to draw each line; no two of the first 21 look alike."""
    for dash in _DASHES:
        for colour, marker in zip(_COLOURS, _MARKERS, strict=True):
            yield {"color": colour, "marker": marker, "linestyle": dash}


def _value(row: Row | None, metric: str) -> tuple[float, float]:
    """Mean and standard deviation in per cent; nothing where there is no figure."""
    figure = row.figures.get(metric) if row else None
    return (np.nan, 0.0) if figure is None else (100 * figure.mean, 100 * (figure.sd or 0.0))


def _numbers(values: Sequence[str]) -> list[float] | None:
    try:
        return [float(value) for value in values]
    except ValueError:
        return None


def _first_at(curve: Curve, share: float) -> float:
    return next((x for x, y in zip(curve.x, curve.y, strict=True) if y >= share), curve.x[-1])
