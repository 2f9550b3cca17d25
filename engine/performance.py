"""Known performance: which model does how well on which task, and the ranks that derive from it."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from engine.errors import InputError
from engine.schema import Performance, Task
from engine.specs import absolute_spec

Float64Array = npt.NDArray[np.float64]

Ties = Literal["average", "ordinal", "min"]
"""What equal values are ranked: all their mean place, each its own in the order of the models, all their best place."""

COLUMNS = ("model", "pretrained", "dataset", "acc1")
"""The columns that a table of performance must have."""

_OPEN_CLIP = "open_clip:"
_WHOLE = ("hf-hub:", "local-dir:")  # names of open_clip that carry no tag
_TASK = re.compile(next(rule.pattern for rule in Task.model_fields["name"].metadata if hasattr(rule, "pattern")))
_SHOWN = 60  # characters of a cell that an error quotes


@dataclass(frozen=True)
class PerformanceTable:
    """Performance of models on tasks.

    Attributes:
        models: m names, in the order that breaks ties under the rule ``ordinal``.
        tasks: t names.
        values: Shares, larger is better, NaN where nothing is known, float64 ``[m, t]``.
    """

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    values: Float64Array


@dataclass(frozen=True)
class Imported:
    """What a file of performance says.

    Attributes:
        records: One for each row that has a value, in the order of the file.
        rows: How many rows the file has below its header.
        missing: How many of them have no value.
    """

    records: tuple[Performance, ...]
    rows: int
    missing: int


def model_name(model: str, pretrained: str) -> str:
    """The name under which profiles know a model.

    Args:
        model: An architecture of open_clip, or a whole name: ``open_clip:hf-hub:ORG/NAME``,
            ``open_clip:local-dir:FOLDER`` (both also without ``open_clip:``) or a classifier's ``org/name``.
        pretrained: Tag of its weights; empty for a whole name.

    Returns:
        ``open_clip:{model}/{pretrained}`` or the whole name; the folder of ``local-dir:`` is made absolute.
    """
    bare = model.removeprefix(_OPEN_CLIP)
    if pretrained:
        return f"{_OPEN_CLIP}{bare}/{pretrained}"
    if not bare.startswith(_WHOLE):
        return model
    if bare.startswith("local-dir:"):
        return absolute_spec(_OPEN_CLIP + bare)
    return _OPEN_CLIP + bare


def read_performance(path: Path) -> Imported:
    """Reads a table of zero-shot accuracies.

    The file is CSV (comma, UTF-8), one row a model and task, with the columns model, pretrained, dataset and acc1 and,
    where it is known, source; other columns are ignored. An empty acc1 is a missing value.

    Raises:
        InputError: The file cannot be read, is empty, lacks a column, or a row cannot be used; it says which line.
    """
    found: dict[tuple[str, str], int] = {}
    records: list[Performance] = []
    rows = 0
    for line, cells in _rows(path):
        rows += 1
        where = f"{path}, line {line}"
        model, task = _model(cells, where), _task(cells, where)
        first = found.setdefault((model, task), line)
        if len(found) < rows:
            raise InputError(f"{where}: {model} has a second row for {task}, the first is line {first}: take one out")
        if cells["acc1"]:
            value = _share(cells["acc1"], where)
            records.append(Performance(model=model, task=task, value=value, source=cells.get("source") or None))
    if not rows:
        raise InputError(f"the performance file {path} has no rows: it needs one a model and task below its header")
    return Imported(tuple(records), rows, rows - len(records))


def read_models(path: Path) -> tuple[str, ...]:
    """Reads a list of models: whole names, one a line, or a CSV with the columns model and pretrained.

    Returns:
        Their names as ``model_name`` makes them, in the order of the file.

    Raises:
        InputError: The file cannot be read, is empty, or a line names no model.
    """
    lines = _lines(path, "list of models")
    if not lines:
        raise InputError(f"the list of models {path} is empty: it must have one a line")
    header = lines[0][1]
    if {"model", "pretrained"} <= set(header):
        named = [(line, _cells(header, cells)) for line, cells in lines[1:]]
    else:
        named = [(line, {"model": ",".join(cells), "pretrained": ""}) for line, cells in lines]
    return tuple(dict.fromkeys(_model(cells, f"{path}, line {line}") for line, cells in named))


def table_of(
    records: Iterable[Performance],
    models: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
    metric: str = "acc1",
) -> PerformanceTable:
    """Records as a table.

    Args:
        records: Of two records of the same model, task and metric the later one counts.
        models: Those to have, in this order; by default all, in the order of their first appearance. A model that no
            record names has no values.
        tasks: The same for the tasks.
        metric: Records of other metrics are left out.
    """
    known = {(record.model, record.task): record.value for record in records if record.metric == metric}
    rows = tuple(dict.fromkeys(models if models is not None else (model for model, _ in known)))
    columns = tuple(dict.fromkeys(tasks if tasks is not None else (task for _, task in known)))
    values = [[known.get((model, task), math.nan) for task in columns] for model in rows]
    return PerformanceTable(rows, columns, np.asarray(values, np.float64).reshape(len(rows), len(columns)))


def ranks(values: npt.NDArray[np.floating], ties: str = "average") -> Float64Array:
    """Ranks of the models on each task among the models that have a value there.

    Args:
        values: Performance, larger is better, NaN where it is not known, ``[m, t]``.
        ties: One of ``Ties``; ``ordinal`` ranks equal values in the order of the rows.

    Returns:
        float64 ``[m, t]``: 1 for the best model, NaN where the value is NaN.

    Raises:
        InputError: There is no such rule.
    """
    if ties not in get_args(Ties):
        raise InputError(f"there is no rule {ties!r} for ties: use one of {', '.join(get_args(Ties))}")
    given = np.asarray(values, np.float64)
    found = np.full(given.shape, np.nan)
    for task, column in enumerate(given.T):
        (known,) = np.nonzero(~np.isnan(column))
        found[known, task] = _ranked(column[known], ties)
    return found


def _ranked(values: Float64Array, ties: str) -> Float64Array:
    """Ranks of one task's values; scipy has the same, for three quarters of a second of import."""
    if ties == "ordinal":
        places = np.empty(len(values))
        places[np.argsort(-values, kind="stable")] = np.arange(1, len(values) + 1)
        return places
    _, group, sizes = np.unique(-values, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    best = last - sizes + 1
    return np.asarray((best if ties == "min" else (best + last) / 2)[group], np.float64)


def _lines(path: Path, what: str) -> list[tuple[int, list[str]]]:
    """Number and cells of each line that is not blank, without surrounding space."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except OSError as error:
        raise InputError(f"the {what} {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the {what} {path} cannot be read: it is not UTF-8 text") from error
    except csv.Error as error:
        raise InputError(f"the {what} {path} cannot be read: {error}") from error
    return [(line, cells) for line, cells in lines if any(cells)]


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Line number and cells of each row below the header."""
    lines = _lines(path, "performance file")
    if not lines:
        raise InputError(f"the performance file {path} is empty: its first line must name {', '.join(COLUMNS)}")
    header = lines[0][1]
    for column in COLUMNS:
        if header.count(column) != 1:
            fault = "no column" if column not in header else "more than one column"
            hint = "; its cells must be separated by commas" if len(header) == 1 else ""
            raise InputError(
                f"the performance file {path} has {fault} {column}: its first line must name {', '.join(COLUMNS)} "
                f"(found: {_quoted(', '.join(header))}){hint}"
            )
    return [(line, _cells(header, cells)) for line, cells in lines[1:]]


def _cells(header: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    """Cells by column; one that is not there is empty, one too many is ignored."""
    return dict(zip(header, [*cells, *[""] * len(header)], strict=False))


def _model(cells: dict[str, str], where: str) -> str:
    model, pretrained = cells["model"], cells["pretrained"]
    if not model:
        raise InputError(f"{where}: it names no model")
    if not pretrained and "/" not in model and not model.removeprefix(_OPEN_CLIP).startswith(_WHOLE):
        raise InputError(
            f"{where}: {_quoted(model)} has no tag: name it in the column pretrained, or write the whole name as model "
            "(open_clip:hf-hub:ORG/NAME, open_clip:local-dir:FOLDER or a classifier's org/name)"
        )
    return model_name(model, pretrained)


def _task(cells: dict[str, str], where: str) -> str:
    task = cells["dataset"]
    if not _TASK.fullmatch(task):
        raise InputError(
            f"{where}: {_quoted(task)!r} cannot name a dataset: use at most 100 letters, digits, dots, dashes and "
            "underscores, the first of them a letter or digit"
        )
    return task


def _share(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise InputError(
            f"{where}: acc1 is {_quoted(text)!r}, which is no number: leave the cell empty if it is not known"
        )
    if 1 < value <= 100:
        raise InputError(f"{where}: acc1 is a share from 0 to 1: {_quoted(text)} looks like per cent, divide by 100")
    if not 0 <= value <= 1:
        raise InputError(f"{where}: acc1 is a share from 0 to 1, not {_quoted(text)}")
    return value


def _quoted(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
