"""Reports for people and for files: Markdown tables, and the JSON that they are made from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.files import write_atomic
from query.evaluate.results import Figure, RetrievalReport, Row, SweepReport, Table
from query.evaluate.tally import ALL

Report = RetrievalReport | SweepReport

TASKS: Mapping[str, str] = {
    "output": "Text to output",
    "model": "Text to model",
    "naming": "Output to text (naming)",
    "lists": "A list of concepts to a model",
    "images": "Example images to output",
}
"""What the tasks are called."""

_PAIR = ("hit@1", "hit@5")
_ONCE = ("mrr", "half-coverage")  # shown of the first group only: of every group they would drown the hits


@dataclass(frozen=True)
class Grid:
    """A table of texts.

    Attributes:
        title: Above it.
        columns: Headings.
        rows: One a method.
        note: What the numbers are.
        names: How many of the first columns are names; the others are numbers.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str
    names: int = 1


def task_title(task: str) -> str:
    """What a task is called; its name where we know no better. ``images-5``: queries of five images."""
    kind, _, count = task.partition("-")
    if kind == "images" and count.isdecimal():
        return f"{count} example image{'' if count == '1' else 's'} to output"
    return TASKS.get(task, task)


def grid(table: Table) -> Grid:
    """One task as a table: methods as rows, groups of queries as columns."""
    groups = groups_of(table.rows)
    methods = list(dict.fromkeys(row.method for row in table.rows))
    by = {(row.method, row.group): row for row in table.rows}
    others = _other_metrics(table.rows)
    timed = any(row.milliseconds is not None for row in table.rows)
    columns = ["method"]
    for group in groups:
        counts = {row.queries for row in table.rows if row.group == group}
        columns.append(f"{group} ({max(counts):,})")
    columns += [*others, *(["ms"] if timed else [])]
    rows = []
    for method in methods:
        own = [by.get((method, group)) for group in groups]
        first = next((row for row in own if row is not None), None)
        cells = [method, *(_hits(row) for row in own)]
        cells += [_figure(name, first.figures.get(name) if first else None) for name in others]
        if timed:
            times = [row.milliseconds for row in own if row is not None and row.milliseconds is not None]
            cells.append(_milliseconds(times[0]) if times else "-")
        rows.append(tuple(cells))
    return Grid(task_title(table.task), tuple(columns), tuple(rows), _note(table.rows, groups, others, timed))


def grids(report: Report) -> tuple[Grid, ...]:
    """All tables of a report; of a sweep, one that has a row a value and method."""
    if isinstance(report, RetrievalReport):
        return tuple(grid(table) for table in report.tables)
    return (_sweep_grid(report),)


def to_markdown(report: Report) -> str:
    """A report as Markdown: its tables, and below them the settings that decide the numbers."""
    sweep = isinstance(report, SweepReport)
    lines = [f"# Sweep over {report.parameter}" if isinstance(report, SweepReport) else "# Retrieval", ""]
    for part in grids(report):
        if not sweep:
            lines += [f"## {part.title}", ""]
        lines += [*markdown_table(part.columns, part.rows, part.names), "", part.note, ""]
    return "\n".join([*lines, *markdown_settings(report.settings, report.seconds)])


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> list[str]:
    """The lines of a table in Markdown.

    Args:
        columns: Headings.
        rows: A text a column.
        names: How many of the first columns are names; the others are numbers.
    """
    rule = ["---" if i < names else "---:" for i in range(len(columns))]
    cells = [columns, rule, *rows]
    return ["| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in row) + " |" for row in cells]


def markdown_settings(settings: Mapping[str, object], seconds: float) -> list[str]:
    """The lines of a section in Markdown: what decided the numbers of a report, and the seconds it took."""
    texts = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in settings.items()
    }
    rows = [*texts.items(), ("seconds", f"{seconds:.1f}")]
    return ["## Settings", "", *markdown_table(("setting", "value"), rows, 2), ""]


def figure_text(figure: Figure | None, digits: int = 3, factor: float = 1.0) -> str:
    """A figure for people, with its standard deviation if it has one; ``-`` where there is no number.

    Args:
        figure: The figure.
        digits: After the point.
        factor: What it is multiplied by; 100 for per cent.
    """
    if figure is None or math.isnan(figure.mean):
        return "-"
    text = f"{factor * figure.mean:.{digits}f}"
    return text if figure.sd is None else f"{text} ± {factor * figure.sd:.{digits}f}"


def write_report(path: Path, report: Report) -> None:
    """Writes a report as JSON, atomically.

    Raises:
        OSError: It cannot be written.
    """
    content = json.dumps(report.model_dump(mode="json"), ensure_ascii=False, indent=1).encode()
    write_atomic(path, lambda file: file.write(content + b"\n"))


def write_markdown(path: Path, report: Report) -> None:
    """Writes a report as Markdown, atomically.

    Raises:
        OSError: It cannot be written.
    """
    content = to_markdown(report).encode()
    write_atomic(path, lambda file: file.write(content))


def groups_of(rows: Iterable[Row]) -> tuple[str, ...]:
    """The groups of queries in some rows: ``all``, seen, unseen, the others as they come."""
    first = (ALL, "seen", "unseen")
    found = dict.fromkeys(row.group for row in rows)
    return tuple(sorted(found, key=lambda group: first.index(group) if group in first else len(first)))


def ranking(report: Report) -> tuple[str, ...]:
    """Methods by the hit@1 of their first task over all queries, best first; of a sweep, by their best value."""
    rows = report.tables[0].rows if isinstance(report, RetrievalReport) and report.tables else ()
    if isinstance(report, SweepReport):
        rows = tuple(row for point in report.points for row in point.rows)
    best: dict[str, float] = {}
    for row in rows:
        if row.group == groups_of(rows)[0]:
            found = row.figures.get(_PAIR[0])
            best[row.method] = max(best.get(row.method, -1.0), found.mean if found else -1.0)
    return tuple(sorted(best, key=lambda method: -best[method]))


def _sweep_grid(report: SweepReport) -> Grid:
    rows = [row for point in report.points for row in point.rows]
    groups = groups_of(rows)
    others = _other_metrics(rows)
    heading = f"{report.parameter} ({report.unit})" if report.unit else report.parameter
    made = []
    for point in report.points:
        by = {(row.method, row.group): row for row in point.rows}
        for method in dict.fromkeys(row.method for row in point.rows):
            own = [by.get((method, group)) for group in groups]
            first = next((row for row in own if row is not None), None)
            cells = [_figure(name, first.figures.get(name) if first else None) for name in others]
            made.append((point.value, method, *(_hits(row) for row in own), *cells))
    columns = (heading, "method", *(f"{group} ({_counts(rows, group)})" for group in groups), *others)
    return Grid(f"Sweep over {report.parameter}", columns, tuple(made), _note(rows, groups, others, timed=False), 2)


def _counts(rows: Sequence[Row], group: str) -> str:
    """How many queries a group has: with fewer probes fewer are seen."""
    counts = [row.queries for row in rows if row.group == group]
    least, most = min(counts), max(counts)
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def _other_metrics(rows: Sequence[Row]) -> list[str]:
    found = dict.fromkeys(name for row in rows for name in row.figures if name not in _PAIR)
    return sorted(found, key=lambda name: _ONCE.index(name) if name in _ONCE else len(_ONCE))


def _note(rows: Sequence[Row], groups: Sequence[str], others: Sequence[str], timed: bool) -> str:
    parts = ["hit@1 / hit@5 in per cent"]
    if any(figure.sd is not None for row in rows for figure in row.figures.values()):
        parts[0] += " ± standard deviation over the seeds"
    if others and len(groups) > 1:
        parts.append(f"{', '.join(others)}: over {groups[0]}")
    if "half-coverage" in others:
        parts.append("half-coverage: how many distinct outputs cover half of the first answers")
    if timed:
        parts.append("ms: median time of one query")
    parts.append("(n): number of queries")
    return "; ".join(parts) + "."


def _hits(row: Row | None) -> str:
    if row is None:
        return "-"
    return " / ".join(figure_text(row.figures.get(name), 1, 100) for name in _PAIR)


def _figure(name: str, figure: Figure | None) -> str:
    if name == "half-coverage":  # a number of outputs
        return figure_text(figure, 0 if figure is None or figure.sd is None else 1)
    return figure_text(figure)


def _milliseconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"
