"""Reports as tables and files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from query.evaluate.report import (
    grid,
    grids,
    groups_of,
    ranking,
    task_title,
    to_markdown,
    write_markdown,
    write_report,
)
from query.evaluate.results import Figure, RetrievalReport, Row, SweepReport, Table
from tests.support.reports import retrieval_report, row, sweep_report


def test_a_task_becomes_a_table_with_groups_as_columns() -> None:
    made = grid(retrieval_report().tables[0])
    assert made.title == "Text to output"
    assert made.columns == ("method", "all (1,000)", "seen (800)", "unseen (200)", "mrr", "half-coverage", "ms")
    assert made.rows == (
        ("plain", "50.0 / 75.0", "56.2 / 80.0", "25.0 / 50.0", "0.600", "3", "1.23"),
        ("fine", "87.5 / 95.8", "94.8 / 99.4", "58.5 / 81.5", "0.910", "428", "1.23"),
    )
    assert "±" not in made.note


def test_seeds_show_their_deviation() -> None:
    made = grid(retrieval_report(sd=0.0123).tables[0])
    assert made.rows[1][1] == "87.5 ± 1.2 / 95.8 ± 1.2"
    assert made.rows[1][4:6] == ("0.910 ± 0.012", "428.0 ± 0.0")
    assert "± standard deviation" in made.note


def test_what_is_missing_is_a_dash() -> None:
    gap = Row(method="b", group="all", queries=3, figures={"hit@1": Figure(mean=math.nan)})
    made = grid(Table(task="own", rows=(row("a", "seen", 0.5, 0.6), gap)))
    assert made.title == "own"
    assert made.rows == (("a", "-", "50.0 / 60.0", "1.23"), ("b", "- / -", "-", "-"))


def test_times_are_readable() -> None:
    slow = row("a", "all", 0.5, 0.5).model_copy(update={"milliseconds": 1234.5})
    assert grid(Table(task="output", rows=(slow,))).rows[0][-1] == "1,234"
    untimed = slow.model_copy(update={"milliseconds": None})
    assert "ms" not in grid(Table(task="output", rows=(untimed,))).columns


def test_metrics_that_we_do_not_know_are_shown_too() -> None:
    made = grid(Table(task="output", rows=(row("a", "all", 0.5, 0.5, odd=0.25, mrr=0.5),)))
    assert made.columns[2:4] == ("mrr", "odd")
    assert made.rows[0][2:4] == ("0.500", "0.250")


def test_tasks_have_names() -> None:
    assert task_title("images-1") == "1 example image to output"
    assert task_title("images-10") == "10 example images to output"
    assert task_title("lists") == "A list of concepts to a model"


def test_a_sweep_is_one_table() -> None:
    (made,) = grids(sweep_report())
    assert made.columns == ("r (kept probes)", "method", "all (1,000)", "unseen (200)")
    assert made.names == 2
    assert made.rows == (
        ("5", "plain", "50.0 / 70.0", "20.0 / 40.0"),
        ("5", "fine", "60.0 ± 1.0 / 80.0 ± 1.0", "30.0 ± 1.0 / 50.0 ± 1.0"),
        ("50", "plain", "50.0 / 70.0", "20.0 / 40.0"),
        ("50", "fine", "70.0 ± 1.0 / 80.0 ± 1.0", "40.0 ± 1.0 / 50.0 ± 1.0"),
    )


def test_a_group_whose_size_differs_along_a_sweep_says_between_what() -> None:
    report = sweep_report()
    first, *rest = report.points
    fewer = [row.model_copy(update={"queries": 7}) if row.group == "unseen" else row for row in first.rows]
    changed = report.model_copy(update={"points": (first.model_copy(update={"rows": tuple(fewer)}), *rest)})
    assert grids(changed)[0].columns == ("r (kept probes)", "method", "all (1,000)", "unseen (7 to 200)")


def test_markdown_is_well_formed() -> None:
    for report, title in ((retrieval_report(), "# Retrieval"), (sweep_report(), "# Sweep over r")):
        lines = to_markdown(report).splitlines()
        assert lines[0] == title
        tables: list[list[str]] = [[]]
        for line in lines:
            if line.startswith("|"):
                tables[-1].append(line)
            elif tables[-1]:
                tables.append([])
        for part in filter(None, tables):
            assert len({line.replace("\\|", "").count("|") for line in part}) == 1
            assert set(part[1]) <= set("|-: ")
    text = to_markdown(retrieval_report())
    assert "| fine | 87.5 / 95.8 | 94.8 / 99.4 | 58.5 / 81.5 | 0.910 | 428 | 1.23 |" in text
    assert "| index | a\\|b |" in text
    assert "| seeds | [0, 1] |" in text
    assert "| seconds | 12.3 |" in text


def test_groups_and_ranking() -> None:
    rows = retrieval_report().tables[0].rows
    assert groups_of(rows) == ("all", "seen", "unseen")
    assert groups_of([row("a", "x", 0, 0), row("a", "seen", 0, 0), row("a", "all", 0, 0)]) == ("all", "seen", "x")
    assert ranking(retrieval_report()) == ("fine", "plain")
    assert ranking(sweep_report()) == ("fine", "plain")
    assert ranking(RetrievalReport(settings={}, tables=(), seconds=0)) == ()


@pytest.mark.parametrize("report", [retrieval_report(sd=0.01), sweep_report()], ids=["retrieval", "sweep"])
def test_a_written_report_reads_back(report: RetrievalReport | SweepReport, tmp_path: Path) -> None:
    write_report(tmp_path / "r.json", report)
    assert type(report).model_validate_json((tmp_path / "r.json").read_bytes()) == report
    write_markdown(tmp_path / "r.md", report)
    assert (tmp_path / "r.md").read_text(encoding="utf-8") == to_markdown(report)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "r.md"]
