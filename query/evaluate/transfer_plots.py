"""Plots of what the analyses of recommendation found; each says one thing, in its title.

Every function makes one figure; :func:`query.evaluate.plots.save` writes it. Heatmaps are ordered by hierarchical
clustering (average linkage), so that what is alike stands together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engine.errors import InputError
from engine.profiles import ImageProfiles
from query.evaluate import plots
from query.evaluate.heatmaps import block_labels, clustered, label_size, show, strip
from query.evaluate.proxy import CorrelationReport, ProxyReport
from query.evaluate.ranking import REGRET
from query.evaluate.set_coverage import CoverageReport
from query.evaluate.transfer_analysis import GridReport, SamplingCurve, SamplingReport
from query.evaluate.transferred import RecommendationReport, measure_title, short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Float64Array = npt.NDArray[np.float64]

_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#999999",
    "#882255",
    "#F0E442",
)
_PROXIES: Mapping[str, str] = {
    "dcd": "conductance, directed (dcd)",
    "cosine": "conductance, cosine",
    "jsd": "conductance, Jensen-Shannon",
    "text": "class names (text)",
}


def conductance_heatmap(profiles: ImageProfiles) -> Figure:
    """Which blocks a task calls upon more than other tasks do, for one model: rows tasks, columns blocks.

    Each column is normalised: the colour is log2 of the task's conductance over the mean of the block's over the tasks,
    for blocks differ much more from each other than tasks do. The bars above are those means, as shares of their sum.

    Raises:
        InputError: matplotlib is not installed, or the model has no profile.
    """
    if not profiles.images:
        raise InputError(f"{profiles.model} has no profiles to draw: profile it on a task")
    tasks = list(profiles.images)
    v = np.stack([profiles.mean(task) for task in tasks])
    block = v.mean(axis=0)
    with np.errstate(divide="ignore"):
        ratio = np.where(block > 0, np.log2(v / np.where(block > 0, block, 1.0)), 0.0)
    limit = float(np.clip(np.abs(ratio[np.isfinite(ratio)]).max(initial=0.0), 0.1, 4.0))
    order = clustered(np.clip(ratio, -8.0, 8.0))
    stem, tails = block_labels(profiles.blocks)
    with plots.style():
        from matplotlib.figure import Figure

        height = 0.19 * len(tasks)
        width = max(4.0, 0.3 * len(block)) + 2.2
        figure = Figure(figsize=(width, height + 2.2), layout="constrained")
        top, ax = figure.subplots(2, 1, sharex=True, height_ratios=[0.8, max(0.8, height)])
        top.bar(np.arange(len(block)), 100 * block / max(block.sum(), 1e-300), color=_COLOURS[0], width=0.9)
        top.set_ylabel("share (%)", fontsize=8)
        top.tick_params(axis="x", bottom=False, labelbottom=False)
        top.grid(visible=False, axis="x")
        show(ax, ratio[order], "RdBu_r", (-limit, limit), figure, "log2 (task / mean of the block)")
        ax.set_yticks(range(len(tasks)), [tasks[i] for i in order], fontsize=7)
        ax.set_xticks(range(len(block)), tails, fontsize=7, rotation=90 if len(block) > 24 else 0)
        ax.set_xlabel(f"block ({stem})" if stem else "block")
        _title(figure, f"{_short(profiles.model)}\nConductance by block and task, each column over its mean")
        return figure


def grid_heatmap(report: GridReport, measures: Sequence[str] | None = None) -> Figure:
    """The score over eta (rows) and gamma (columns), a panel a measure; a frame marks what is in use, bold the best.

    Args:
        report: The grid.
        measures: Which to draw; by default those that are sums (``sum@k``), or all if there is none.

    Raises:
        InputError: matplotlib is not installed.
    """
    chosen = _measures(measures, list(report.figures))
    with plots.style():
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle

        width, height = 0.62 * len(report.gammas) + 0.6, 0.42 * len(report.etas) + 0.7
        figure = Figure(figsize=(width * len(chosen) + 0.6, height + 0.7), layout="constrained")
        said = []
        marked = report.eta in report.etas and report.gamma in report.gammas
        for ax, name in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
            values = np.asarray([[cell.mean for cell in row] for row in report.figures[name]], np.float64)
            # Of all measures only the regret is better where it is smaller.
            place = np.nanargmin(values) if name == REGRET else np.nanargmax(values)
            best = np.unravel_index(int(place), values.shape)
            low, high = float(np.nanmin(values)), float(np.nanmax(values))
            show(ax, values, "viridis", (low, high))
            for (i, j), value in np.ndenumerate(values):
                dark = (value - low) <= 0.6 * (high - low)
                weight = "bold" if (i, j) == best else "normal"
                ax.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=7, fontweight=weight,
                        color="white" if dark else "black")  # fmt: skip
            if marked:
                at = report.gammas.index(report.gamma), report.etas.index(report.eta)
                corner = at[0] - 0.47, at[1] - 0.47
                ax.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor="#D55E00", linewidth=2.2))
            ax.set_xticks(range(len(report.gammas)), [f"{value:g}" for value in report.gammas])
            ax.set_yticks(range(len(report.etas)), [f"{value:g}" for value in report.etas])
            ax.set_xlabel("gamma (sharpness of the sources' weights)", fontsize=8)
            ax.set_title(measure_title(name), fontsize=9)
            if ax is figure.axes[0]:
                ax.set_ylabel("eta (sharpness of the blocks)", fontsize=8)
            where = f"at eta {report.etas[best[0]]:g}, gamma {report.gammas[best[1]]:g}" if low < high else "everywhere"
            said.append(f"{name} {where}")
        framed = f"\nin use: eta {report.eta:g}, gamma {report.gamma:g} (framed)" if marked else ""
        _title(figure, f"Best {'; '.join(said)}{framed}")
        return figure


def correlation_heatmap(report: CorrelationReport) -> Figure:
    """How alike the tasks' distances are to each pair of models; a strip at the side tells the families.

    Raises:
        InputError: matplotlib is not installed.
    """
    matrix = np.asarray(report.matrix, np.float64)
    order = clustered(np.nan_to_num(matrix))
    count = len(order)
    names = list(dict.fromkeys(report.families[i] for i in order))
    with plots.style():
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        side = max(3.2, 0.165 * count)
        figure = Figure(figsize=(side + 2.9, side + 1.6), layout="constrained")
        ax = figure.subplots()
        low = float(np.nanmin(matrix))
        bounds, colours = ((-1.0, 1.0), "RdBu_r") if low < 0 else ((max(0.0, np.floor(10 * low) / 10), 1.0), "viridis")
        show(ax, matrix[np.ix_(order, order)], colours, bounds, figure, f"{report.kind.title()} correlation")
        ax.set_yticks(range(count), [_short(report.models[i]) for i in order], fontsize=label_size(count))
        ax.set_xticks([])
        strip(ax, [_COLOURS[names.index(report.families[i]) % len(_COLOURS)] for i in order])
        handles = [Patch(color=_COLOURS[i % len(_COLOURS)], label=_cut(name, 44)) for i, name in enumerate(names)]
        figure.legend(handles=handles[:20], loc="outside lower center", ncols=2, fontsize=7)
        parts = [
            f"{value:.2f} {where}"
            for value, where in ((report.within, "within a family"), (report.across, "across families"))
            if value is not None
        ]
        figures = f": mean correlation {', '.join(parts)}" if parts else ""
        _title(figure, f"Which tasks are far apart, as two models see it{figures}")
        return figure


def sampling_curve(report: SamplingReport, measures: Sequence[str] | None = None) -> Figure:
    """The score against the number of source images and of target images; bands are one standard deviation.

    Args:
        report: The samplings.
        measures: A row of panels each; by default the sums (``sum@k``), or all if there is none.

    Raises:
        InputError: matplotlib is not installed.
    """
    sides = [(curves, what) for curves, what in ((report.source, "source"), (report.target, "target")) if curves]
    chosen = _measures(measures, list(sides[0][0][0].points[0].figures))
    with plots.style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.1 * len(sides), 2.3 * len(chosen) + 1.0), layout="constrained")
        axes = figure.subplots(len(chosen), len(sides), squeeze=False, sharey="row")
        for i, name in enumerate(chosen):
            for ax, (curves, what) in zip(axes[i], sides, strict=True):
                _sampled(ax, curves, name)
                fixed = report.target_images if what == "source" else report.source_images
                other = "target" if what == "source" else "source"
                if i == 0:
                    ax.set_title(f"{what} images varied, {fixed} {other} image{'' if fixed == 1 else 's'}", fontsize=9)
                if i == len(chosen) - 1:
                    ax.set_xlabel(f"{what} images per task (number, logarithmic)")
            axes[i][0].set_ylabel(measure_title(name))
        if len(sides[0][0]) > 1:
            handles, labels = axes[0][0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=8)
        _title(figure, _sampling_message(sides, chosen[0]))
        return figure


def seed_distribution(report: RecommendationReport, measure: str | None = None) -> Figure:
    """Each method's score seed by seed, with a box where there are at least five; the best method stands on top.

    Args:
        report: Of the evaluation.
        measure: Which score; by default ``sum@k`` of the middle k.

    Raises:
        InputError: matplotlib is not installed.
    """
    name = measure or f"sum@{report.ks[len(report.ks) // 2]}"
    scores = {own.method: np.asarray(own.by_seed(name), np.float64) for own in report.results}
    sign = 1 if name == REGRET else -1
    methods = sorted(scores, key=lambda method: sign * float(scores[method].mean()))
    drawn = {own.method: own.drawn for own in report.results}
    with plots.style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.6, 0.4 * len(methods) + 1.4), layout="constrained")
        ax = figure.subplots()
        for place, method in enumerate(methods):
            values = scores[method]
            if not drawn[method]:
                ax.plot([values.mean()], [place], "D", markersize=6, color=_COLOURS[1], zorder=5)
                continue
            if len(values) >= 5:
                ax.boxplot(values, positions=[place], orientation="horizontal", widths=0.55, showfliers=False,
                           manage_ticks=False, medianprops={"color": "black"}, boxprops={"color": "#777777"},
                           whiskerprops={"color": "#777777"}, capprops={"color": "#777777"})  # fmt: skip
            ax.plot(values, place + _scatter(len(values)), "o", markersize=4, alpha=0.75, color=_COLOURS[0], mew=0)
            ax.plot([values.mean()], [place], "D", markersize=6, color=_COLOURS[1], zorder=5)
        ax.plot([], [], "o", markersize=4, color=_COLOURS[0], label="one seed")
        ax.plot([], [], "D", markersize=6, color=_COLOURS[1], label="mean (alone: the seed changes nothing)")
        ax.set_yticks(range(len(methods)), methods)
        ax.set_ylim(len(methods) - 0.5, -0.5)
        ax.grid(visible=False, axis="y")
        ax.set_xlabel(f"{measure_title(name)}, mean over {len(report.tasks)} target tasks")
        figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
        _title(figure, f"{methods[0]} has the best mean {measure_title(name)}: {scores[methods[0]].mean():.3f}")
        return figure


def proxy_bars(report: ProxyReport) -> Figure:
    """Mean reliability of each proxy, with the standard deviation over the models and a dot for each.

    Raises:
        InputError: matplotlib is not installed.
    """
    proxies = sorted(report.proxies, key=lambda own: -(own.mean if own.mean is not None else -2.0))
    with plots.style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.8, 0.55 * len(proxies) + 1.3), layout="constrained")
        ax = figure.subplots()
        for place, own in enumerate(proxies):
            values = np.asarray([m.correlations[own.proxy] for m in report.models], np.float64)
            values = values[~np.isnan(values)]
            if own.mean is None:
                ax.text(0.01, place, "no correlation", va="center", fontsize=8)
                continue
            ax.barh(place, own.mean, 0.6, color=_COLOURS[5], xerr=own.sd, error_kw={"linewidth": 1, "capsize": 3})
            ax.plot(
                values,
                place + _scatter(len(values)),
                "o",
                markersize=3,
                alpha=0.6,
                color=_COLOURS[0],
                markeredgewidth=0,
            )
        ax.axvline(0, color="#777777", linewidth=0.8)
        ax.set_yticks(range(len(proxies)), [_proxy_label(own.proxy, own.models) for own in proxies])
        ax.set_ylim(len(proxies) - 0.4, -0.6)
        ax.set_xlabel(f"Spearman correlation with gaps in {report.gap}\n(bar: mean ± standard deviation, dot: a model)")
        ax.grid(visible=False, axis="y")
        best = proxies[0]
        said = f"No proxy has a correlation with gaps in {report.gap}"
        if best.mean is not None:
            said = f"{best.proxy} foretells gaps in {report.gap} best: mean correlation {best.mean:.2f}"
        _title(figure, said)
        return figure


def coverage_plot(report: CoverageReport) -> Figure:
    """How well each source covers each target, image by image; beside it the tail bound and what samples did.

    Raises:
        InputError: matplotlib is not installed.
    """
    matrix = np.asarray(report.divergences, np.float64)
    filled = np.nan_to_num(matrix, nan=float(np.nanmean(matrix)))
    order = clustered(filled + filled.T)
    count = len(order)
    names = [report.tasks[i] for i in order]
    with plots.style():
        from matplotlib.figure import Figure

        side = max(2.8, 0.2 * count)
        figure = Figure(figsize=(side + 1.8 + (4.2 if report.tail else 0), side + 1.3), layout="constrained")
        widths = [side, 3.6] if report.tail else [side]
        columns = figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
        ax = columns[0]
        high = float(np.nanmax(matrix))
        show(ax, matrix[np.ix_(order, order)], "viridis_r", (0.0, high or 1.0), figure, "C(target -> source)")
        ax.set_xticks(range(count), names, fontsize=label_size(count), rotation=90)
        ax.set_yticks(range(count), names, fontsize=label_size(count))
        ax.set_xlabel("source")
        ax.set_ylabel("target")
        said = "Set-coverage divergence, mean over the models"
        if report.tail:
            _tail(columns[1], report)
            kept = all(point.worst <= point.bound for point in report.tail)
            said += f"; samples {'stay below' if kept else 'EXCEED'} the bound on their deviation"
        _title(figure, said)
        return figure


def _tail(ax: Axes, report: CoverageReport) -> None:
    shares = [100 * point.share for point in report.tail]
    ax.plot(shares, [point.bound for point in report.tail], "-", color="black", label="bound")
    ax.plot(shares, [point.worst for point in report.tail], "s--", color=_COLOURS[1], label="worst pair", markersize=4)
    ax.plot(shares, [point.mean for point in report.tail], "o:", color=_COLOURS[0], label="mean", markersize=4)
    ax.set_xlabel("deviation (% of the largest distance)")
    ax.set_ylabel(f"share of the samples ({report.images} images each)")
    ax.set_ylim(-0.02, 1.05)
    ax.legend(fontsize=8)


def _sampled(ax: Axes, curves: Sequence[SamplingCurve], name: str) -> None:
    for curve, colour, marker in zip(curves, _COLOURS, "os^Dv<>PX*", strict=False):
        x = [point.images for point in curve.points]
        cells = [point.figures[name] for point in curve.points]
        mean = np.asarray([cell.mean for cell in cells], np.float64)
        sd = np.asarray([cell.sd or 0.0 for cell in cells], np.float64)
        ax.plot(x, mean, marker=marker, color=colour, label=curve.method, markersize=4, linewidth=1.4)
        ax.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.18, linewidth=0)
        ax.set_xscale("log")
        ax.set_xticks(x, [str(value) for value in x])
        ax.minorticks_off()


def _sampling_message(sides: Sequence[tuple[Sequence[SamplingCurve], str]], name: str) -> str:
    parts = []
    for curves, what in sides:
        first, last = curves[0].points[0], curves[0].points[-1]
        change = (
            f"{first.figures[name].mean:.3f} with {first.images} to {last.figures[name].mean:.3f} with {last.images}"
        )
        parts.append(f"{change} {what} images")
    return f"{sides[0][0][0].method}: {name} from {', from '.join(parts)}"


def _scatter(count: int) -> Float64Array:
    """Offsets that keep dots apart, the same every time."""
    return np.asarray(0.18 * np.sin(2.4 * np.arange(count)), np.float64)


def _measures(asked: Sequence[str] | None, there: Sequence[str]) -> list[str]:
    return list(asked) if asked else [name for name in there if name.startswith("sum@")] or list(there)


def _title(figure: Figure, message: str) -> None:
    figure.suptitle(message, fontsize=10, fontweight="bold", wrap=True)


def _short(model: str) -> str:
    return _cut(short_name(model), 40)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}\N{HORIZONTAL ELLIPSIS}"


def _proxy_label(proxy: str, models: int) -> str:
    return f"{_PROXIES.get(proxy, proxy)}\n{models} model{'' if models == 1 else 's'}"
