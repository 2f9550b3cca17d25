"""Plots and files of the analyses of recommendation: they show the figures they were given."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.errors import InputError
from engine.performance import PerformanceTable
from engine.profiles import ImageProfiles
from query.evaluate import transfer_plots as plots
from query.evaluate.heatmaps import block_labels, clustered
from query.evaluate.proxy import CorrelationReport, ModelReliability, ProxyReliability, ProxyReport
from query.evaluate.recommendation import Settings, leave_one_out
from query.evaluate.results import Figure
from query.evaluate.set_coverage import CoverageReport, ModelCoverage, TailPoint
from query.evaluate.transfer_analysis import GridReport, SamplingCurve, SamplingPoint, SamplingReport
from query.evaluate.transfer_report import Analyses, tables, to_markdown, write
from query.evaluate.transferred import RecommendationReport

VIT = tuple(f"visual.transformer.resblocks.{i}" for i in range(3))


def grid_report() -> GridReport:
    cells = ((0.1, 0.2, 0.3), (0.4, 0.9, 0.5))
    figures = tuple(tuple(Figure(mean=value, sd=0.01) for value in row) for row in cells)
    return GridReport(
        etas=(0, 2), gammas=(1, 5, 10), eta=2, gamma=10,
        figures={"ndcg@3": figures, "sum@3": figures, "regret": figures},
        models=4, tasks=3, settings={}, notes=("a note",),
    )  # fmt: skip


def sampling_report() -> SamplingReport:
    def curve(method: str, *means: float) -> SamplingCurve:
        points = zip((1, 10), means, strict=True)
        return SamplingCurve(
            method=method,
            points=tuple(
                SamplingPoint(images=n, short=0, figures={"sum@3": Figure(mean=m, sd=0.1), "regret": Figure(mean=2.0)})
                for n, m in points
            ),
        )

    return SamplingReport(
        source=(curve("dcd", 0.5, 0.75), curve("jsd", 0.2, 0.3)),
        target=(curve("dcd", 0.6, 0.8), curve("jsd", 0.1, 0.2)),
        source_images=25, target_images=1, models=4, tasks=3, settings={}, notes=("100 images: none",),
    )  # fmt: skip


def proxy_report() -> ProxyReport:
    return ProxyReport(
        gap="rank", eta=2.0,
        proxies=(
            ProxyReliability(proxy="cosine", mean=None, sd=None, models=0, left_out={"constant": 2}),
            ProxyReliability(proxy="dcd", mean=0.25, sd=0.1, models=2, left_out={}),
            ProxyReliability(proxy="jsd", mean=0.5, sd=None, models=1, left_out={"too few pairs": 1}),
        ),
        models=(
            ModelReliability(model="m0", tasks=4, correlations={"cosine": None, "dcd": 0.2, "jsd": 0.5}),
            ModelReliability(model="m1", tasks=2, correlations={"cosine": None, "dcd": 0.3, "jsd": None}),
        ),
        unknown=("m2",),
    )  # fmt: skip


def correlation_report() -> CorrelationReport:
    matrix = ((1.0, 0.2, 0.9, None), (0.2, 1.0, 0.3, 0.1), (0.9, 0.3, 1.0, 0.2), (None, 0.1, 0.2, 1.0))
    return CorrelationReport(
        kind="spearman", eta=2.0, models=("open_clip:A/x", "B", "C", "D"), families=("one", "two", "one", "three"),
        matrix=matrix, within=0.9, across=0.2, pairs_within=1, pairs_across=4, left_out={"constant": 1},
    )  # fmt: skip


def coverage_report(worst: float = 0.3) -> CoverageReport:
    return CoverageReport(
        eta=2.0, tasks=("a", "b", "c"), divergences=((0.0, 0.5, 0.1), (0.4, 0.0, None), (0.2, 0.6, 0.0)),
        models=(ModelCoverage(model="m0", tasks=3, mean=0.3, agreement=None),), images=10, draws=50,
        tail=(TailPoint(share=0.1, bound=0.9, mean=0.1, worst=worst),
              TailPoint(share=0.5, bound=0.1, mean=0.0, worst=0.0)),
    )  # fmt: skip


def conductance() -> ImageProfiles:
    values = {"a": (1.0, 4.0, 0.0), "b": (3.0, 4.0, 0.0), "c": (0.5, 1.0, 0.0)}
    return ImageProfiles("open_clip:ViT-B-32/openai", VIT, {task: np.array([v, v]) for task, v in values.items()})


def recommendation() -> RecommendationReport:
    rng = np.random.default_rng(0)
    models, tasks = tuple(f"m{i}" for i in range(6)), tuple("abcd")
    profiles = {m: ImageProfiles(m, VIT, {t: rng.gamma(2.0, 1.0, (8, 3)) for t in tasks}) for m in models}
    settings = Settings(methods=("avgrank", "dcd", "random"), ks=(3,), seeds=tuple(range(6)))
    return leave_one_out(PerformanceTable(models, tasks, rng.random((6, 4))), settings, profiles)


def everything() -> Analyses:
    return Analyses(
        recommendation(), grid_report(), sampling_report(), (proxy_report(),), correlation_report(), coverage_report(),
        (conductance(),),
    )  # fmt: skip


def shown(ax: Any) -> Any:
    return np.ma.filled(ax.images[0].get_array().astype(float), np.nan)


def labels(axis: Any) -> list[str]:
    return [label.get_text() for label in axis]


def test_conductance_is_normalised_by_the_mean_of_each_block() -> None:
    figure = plots.conductance_heatmap(conductance())
    top, ax = figure.axes[:2]
    rows = dict(zip(labels(ax.get_yticklabels()), shown(ax), strict=True))
    np.testing.assert_allclose(rows["a"], [math.log2(1 / 1.5), math.log2(4 / 3), 0])
    np.testing.assert_allclose(rows["b"], [1, math.log2(4 / 3), 0])
    np.testing.assert_allclose([bar.get_height() for bar in top.patches], [100 / 3, 200 / 3, 0], atol=1e-9)
    assert labels(ax.get_xticklabels()) == ["0", "1", "2"]
    assert ax.get_xlabel() == "block (visual.transformer.resblocks)"
    assert "ViT-B-32/openai" in str(figure.get_suptitle())
    assert "each column over its mean" in str(figure.get_suptitle())
    with pytest.raises(InputError, match="no profiles"):
        plots.conductance_heatmap(ImageProfiles("m", VIT, {}))


def test_the_grid_marks_the_default_and_the_best() -> None:
    figure = plots.grid_heatmap(grid_report())
    (ax,) = figure.axes
    np.testing.assert_allclose(shown(ax), [[0.1, 0.2, 0.3], [0.4, 0.9, 0.5]])
    (frame,) = ax.patches
    assert (round(frame.get_x() + 0.47), round(frame.get_y() + 0.47)) == (2, 1)
    assert [text.get_text() for text in ax.texts if text.get_fontweight() == "bold"] == ["0.900"]
    assert "Best sum@3 at eta 2, gamma 5" in str(figure.get_suptitle())
    assert labels(ax.get_yticklabels()) == ["0", "2"]
    regret = plots.grid_heatmap(grid_report(), ["regret", "ndcg@3"])
    assert "Best regret at eta 0, gamma 1" in str(regret.get_suptitle())
    assert len(regret.axes) == 2
    elsewhere = plots.grid_heatmap(grid_report().model_copy(update={"eta": 3.0}))
    assert not elsewhere.axes[0].patches
    assert "framed" not in str(elsewhere.get_suptitle())
    flat = grid_report().model_copy(update={"figures": {"sum@3": ((Figure(mean=0.0),) * 3,) * 2}})
    assert "Best sum@3 everywhere" in str(plots.grid_heatmap(flat).get_suptitle())


def test_the_correlation_is_ordered_by_likeness_and_unknown_is_grey() -> None:
    report = correlation_report()
    figure = plots.correlation_heatmap(report)
    ax = figure.axes[0]
    names = labels(ax.get_yticklabels())
    assert abs(names.index("A/x") - names.index("C")) == 1
    order = [["A/x", "B", "C", "D"].index(name) for name in names]
    np.testing.assert_allclose(shown(ax), np.array(report.matrix, dtype=float)[np.ix_(order, order)])
    assert len({patch.get_facecolor() for patch in ax.patches}) == 3
    assert "0.90 within a family, 0.20 across families" in str(figure.get_suptitle())
    assert sorted(labels(figure.legends[0].get_texts())) == ["one", "three", "two"]


def test_sampling_has_a_panel_a_side_with_bands() -> None:
    figure = plots.sampling_curve(sampling_report())
    source, target = figure.axes
    assert source.get_title() == "source images varied, 1 target image"
    assert target.get_title() == "target images varied, 25 source images"
    assert target.get_xlabel().startswith("target images")
    np.testing.assert_allclose(source.lines[0].get_ydata(), [0.5, 0.75])
    np.testing.assert_allclose(target.lines[1].get_ydata(), [0.1, 0.2])
    assert source.get_ylabel() == "NDCG@3 + tau@3"
    band = source.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((0.4, 0.85))
    assert "dcd: sum@3 from 0.500 with 1 to 0.750 with 10 source images" in str(figure.get_suptitle())
    assert labels(figure.legends[0].get_texts()) == ["dcd", "jsd"]


def test_seeds_are_dots_and_a_method_without_chance_is_one() -> None:
    report = recommendation()
    (ax,) = plots.seed_distribution(report).axes
    order = labels(ax.get_yticklabels())
    means = {own.method: np.mean(own.by_seed("sum@3")) for own in report.results}
    assert order == sorted(means, key=lambda method: -means[method])
    dots = {
        round(float(np.mean(line.get_ydata()))): line
        for line in ax.lines
        if line.get_marker() == "o" and len(line.get_xdata())
    }
    assert sorted(dots) == sorted(order.index(name) for name in ("dcd", "random"))
    np.testing.assert_allclose(dots[order.index("dcd")].get_xdata(), report.result("dcd").by_seed("sum@3"))
    lost = plots.seed_distribution(report, "regret").axes[0]
    best = min(report.results, key=lambda own: float(np.mean(own.by_seed("regret")))).method
    assert labels(lost.get_yticklabels())[0] == best


def test_proxies_are_bars_best_first_and_one_without_models_says_so() -> None:
    figure = plots.proxy_bars(proxy_report())
    (ax,) = figure.axes
    assert [label.split("\n")[0] for label in labels(ax.get_yticklabels())] == [
        "conductance, Jensen-Shannon", "conductance, directed (dcd)", "conductance, cosine",
    ]  # fmt: skip
    assert [bar.get_width() for bar in ax.patches] == [0.5, 0.25]
    assert [text.get_text() for text in ax.texts] == ["no correlation"]
    assert str(figure.get_suptitle()) == "jsd foretells gaps in rank best: mean correlation 0.50"
    none = proxy_report().model_copy(update={"proxies": proxy_report().proxies[:1]})
    assert str(plots.proxy_bars(none).get_suptitle()) == "No proxy has a correlation with gaps in rank"


def test_coverage_shows_pairs_and_whether_the_bound_holds() -> None:
    figure = plots.coverage_plot(coverage_report())
    ax, tail = figure.axes[:2]
    names = labels(ax.get_yticklabels())
    assert names == labels(ax.get_xticklabels())
    assert shown(ax)[names.index("a"), names.index("b")] == 0.5
    assert np.isnan(shown(ax)[names.index("b"), names.index("c")])
    np.testing.assert_allclose(tail.lines[0].get_ydata(), [0.9, 0.1])
    assert "stay below" in str(figure.get_suptitle())
    assert "EXCEED" in str(plots.coverage_plot(coverage_report(0.95)).get_suptitle())
    alone = coverage_report().model_copy(update={"tail": ()})
    assert len(plots.coverage_plot(alone).axes) == 2  # the matrix and its colours


def test_rows_that_are_alike_stand_together() -> None:
    rows = np.array([[0.0, 0], [9, 9], [0, 1], [9, 8]])
    order = clustered(rows)
    assert sorted(order) == [0, 1, 2, 3]
    assert abs(order.index(0) - order.index(2)) == abs(order.index(1) - order.index(3)) == 1
    assert clustered(rows[:2]) == [0, 1]


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (VIT, ("visual.transformer.resblocks", ("0", "1", "2"))),
        (("visual.layer1", "visual.layer2"), ("visual", ("layer1", "layer2"))),
        (("layer1", "layer2"), ("", ("layer1", "layer2"))),
        (("a.b.c",), ("", ("a.b.c",))),
        (("stages.0.blocks", "stages.1.blocks"), ("stages", ("0.blocks", "1.blocks"))),
    ],
)
def test_labels_of_blocks_are_what_differs(blocks: Any, expected: Any) -> None:
    assert block_labels(blocks) == expected


def test_everything_is_written(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    folder = tmp_path / "new" / "analyses"
    made = write(folder, everything(), progress=lambda done, total: told.append((done, total)))
    drawn = ("seeds", "grid", "sampling", "proxy-rank", "correlation", "coverage", "conductance-ViT-B-32-openai")
    written = [f"{name}.json" for name in ("grid", "sampling", "correlation", "coverage", "proxy")]
    assert [path.name for path in made] == [
        *written,
        "recommendation.md",
        *(f"{n}.{k}" for n in drawn for k in ("png", "svg")),
    ]
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in made)
    assert told == [(i, 7) for i in range(1, 8)]
    for path in made:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert min(image.size) > 150
                assert np.asarray(image.convert("L")).std() > 5
    assert GridReport.model_validate_json((folder / "grid.json").read_text()) == grid_report()
    assert CoverageReport.model_validate_json((folder / "coverage.json").read_text()) == coverage_report()
    found = json.loads((folder / "proxy.json").read_text())
    assert ProxyReport.model_validate(found["rank"]) == proxy_report()


def test_what_is_not_known_is_null_in_json_and_a_dash_in_tables(tmp_path: Path) -> None:
    report = grid_report()
    unknown = ((Figure(mean=math.nan), *report.figures["regret"][0][1:]), report.figures["regret"][1])
    holed = report.model_copy(update={"figures": report.figures | {"regret": unknown}})
    write(tmp_path, Analyses(grid=holed))
    text = (tmp_path / "grid.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["figures"]["regret"][0][0]["mean"] is None
    assert "| eta 0 | - | 0.200 ± 0.010 |" in (tmp_path / "recommendation.md").read_text()


def test_the_page_has_the_figures() -> None:
    page = to_markdown(everything())
    for line in (
        "## Grid: NDCG@3 + tau@3",
        "| eta 2 | 0.400 ± 0.010 | 0.900 ± 0.010 | **0.500 ± 0.010** |",
        "| dcd | 10 | 0.750 ± 0.100 | 2.000 | 0 |",
        "| cosine | - | - | 0 | 2 constant |",
        "| jsd | 0.500 | - | 1 | 1 too few pairs |",
        "| within a family | 0.900 | 1 |",
        "| m0 | 3 | 0.300 | - |",
        "| 10 % | 0.900 | 0.100 | 0.300 |",
        "- a note",
        "- 100 images: none",
    ):
        assert line in page.splitlines(), line
    for table in tables(everything()):
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_nothing_analysed_is_an_empty_page_without_plots(tmp_path: Path) -> None:
    assert [path.name for path in write(tmp_path, Analyses())] == ["recommendation.md"]
    assert [path.name for path in write(tmp_path, everything(), plots=False) if path.suffix == ".png"] == []


def test_without_matplotlib_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match="pip install matplotlib"):
        write(tmp_path / "out", everything())
    assert not (tmp_path / "out").exists()
