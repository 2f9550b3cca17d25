"""Plots: what is drawn, that it says what the figures say, and that it comes out the same every time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.errors import InputError
from query.evaluate import plots
from query.evaluate.plots import draw, require_matplotlib
from query.evaluate.report import Report
from query.evaluate.results import RetrievalReport, SweepReport, Table
from tests.support.reports import retrieval_report, row, sweep_report


def figures(report: Report) -> dict[str, Any]:
    with plots.style():
        return dict(plots._figures(report))


def title(figure: Any) -> str:
    return str(figure.get_suptitle())


def test_every_part_of_a_report_becomes_a_png_and_an_svg(tmp_path: Path) -> None:
    made = draw(retrieval_report(sd=0.01), tmp_path / "new" / "plots")
    names = [
        f"{name}.{kind}" for name in ("task-output", "task-images-5", "hubness", "quality") for kind in ("png", "svg")
    ]
    assert [path.name for path in made] == names
    assert sorted(path.name for path in (tmp_path / "new" / "plots").iterdir()) == sorted(names)
    for path in made:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert min(image.size) > 200
                assert np.asarray(image.convert("L")).std() > 5  # something is drawn
        else:
            assert path.read_text().lstrip().startswith("<?xml")


def test_the_same_report_gives_the_same_files(tmp_path: Path) -> None:
    report = retrieval_report()
    small = report.model_copy(update={"tables": report.tables[:1], "hubness": (), "quality": ()})
    first, second = draw(small, tmp_path / "a"), draw(small, tmp_path / "b")
    for ours, theirs in zip(first, second, strict=True):
        assert ours.read_bytes() == theirs.read_bytes()
    assert "dc:date" not in first[1].read_text()


def test_bars_are_the_figures_of_seen_and_unseen_apart() -> None:
    figure = figures(retrieval_report())["task-output"]
    seen, unseen = figure.axes
    assert seen.get_title() == "seen (800 queries)"
    assert unseen.get_title() == "unseen (200 queries)"
    assert [label.get_text() for label in seen.get_yticklabels()] == ["fine", "plain"]  # the best one on top
    assert seen.get_ylim()[0] > seen.get_ylim()[1]
    widths = [[bar.get_width() for bar in container] for container in unseen.containers]
    np.testing.assert_allclose(widths, [[58.5, 25.0], [81.5, 50.0]])
    assert unseen.get_xlabel() == "queries answered right (%)"
    assert title(figure) == "Text to output: fine is right first most often (seen 94.8 %, unseen 58.5 %)"


def test_without_groups_there_is_one_panel() -> None:
    (ax,) = figures(retrieval_report())["task-images-5"].axes
    assert ax.get_title() == "all (1,000 queries)"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ((row("a", "all", 0.5, 0.6),), "a is right first in 50.0 %"),
        ((row("a", "all", 0.5, 0.6), row("b", "all", 0.4, 0.6)), "a is right first most often (50.0 %)"),
        ((row("a", "all", 0.5, 0.6), row("b", "all", 0.5, 0.6)), "a, among others, is right first most often (50.0 %)"),
        (
            (row("a", "x", 0.9, 1), row("a", "y", 0.1, 1), row("b", "x", 0.3, 1), row("b", "y", 0.2, 1)),
            "a is right first most often on the whole (x 90.0 %, y 10.0 %)",
        ),
    ],
)
def test_the_title_says_no_more_than_the_bars(rows: Any, expected: str) -> None:
    report = RetrievalReport(settings={}, tables=(Table(task="model", rows=rows),), seconds=0)
    assert title(figures(report)["task-model"]) == f"Text to model: {expected}"


def test_the_hubness_curve() -> None:
    figure = figures(retrieval_report())["hubness"]
    (ax,) = figure.axes
    assert title(figure) == "Half of the first answers come from 2 outputs with plain, 3 with fine"
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [40, 55, 80, 100])
    assert (ax.get_xscale(), ax.get_ylabel()) == ("log", "share of the first answers (%)")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["plain", "fine"]
    assert ax.get_legend() is None  # it stands beside the data


def test_the_quality_curve() -> None:
    figure = figures(retrieval_report())["quality"]
    assert title(figure) == "fine: quality falls with rank, PR-AUC 0.90 at rank 1, 0.30 at 3"
    assert figure.axes[0].get_ylim()[0] == 0
    flat = retrieval_report().model_copy(update={"quality": retrieval_report().quality[:1]})
    assert "does not fall" in title(figures(flat)["quality"])


def test_a_sweep_over_numbers() -> None:
    figure = figures(sweep_report(values=("200", "5", "50")))["sweep-r"]
    assert title(figure) == "fine is right first most often at r = 50 (80.0 % of queries)"
    assert len(figure.axes) == 2  # hit@1 and hit@5 of unseen; what all is made of says more than all
    upper = figure.axes[0]
    line = upper.containers[1].lines[0]
    assert line.get_xdata().tolist() == [5, 50, 200]
    np.testing.assert_allclose(line.get_ydata(), [40, 50, 30])
    assert upper.containers[1].has_yerr
    assert not upper.containers[0].has_yerr
    assert upper.get_xscale() == "log"
    assert figure.axes[1].get_xlabel() == "kept probes r (number)"
    assert upper.get_ylabel() == "right answer first (%)"
    assert figures(sweep_report(values=("5", "50")))["sweep-r"].axes[0].get_xscale() == "linear"


def test_a_sweep_over_names_has_no_lines() -> None:
    values = ("photographs", "a very long name of a source of probes")
    figure = figures(sweep_report("probe-source", values))["sweep-probe-source"]
    upper = figure.axes[0]
    assert [label.get_text() for label in upper.get_xticklabels()] == ["photographs", "a very long name of a sou\u2026"]
    assert upper.containers[0].lines[0].get_linestyle() == "None"


def test_methods_can_be_told_apart_without_colours() -> None:
    styles = [(style["marker"], style["linestyle"]) for style in plots._styles()]
    assert len(set(styles)) == len(styles) == 21


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert draw(RetrievalReport(settings={}, tables=(), seconds=0), tmp_path) == ()
    assert draw(SweepReport(settings={}, parameter="r", unit="", points=(), seconds=0), tmp_path) == ()


def test_matplotlib_is_asked_for_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for attempt in (require_matplotlib, lambda: draw(sweep_report(), tmp_path / "plots")):
        with pytest.raises(InputError, match="pip install matplotlib"):
            attempt()
    assert not (tmp_path / "plots").exists()


def test_settings_of_the_program_around_are_left_alone(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw(sweep_report(), tmp_path)
    assert dict(matplotlib.rcParams) == before
