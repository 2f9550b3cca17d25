"""What an evaluation of recommendation found: figures by method, task and seed, as JSON and as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import numpy.typing as npt

from engine.files import write_atomic, write_json
from query.evaluate.ranking import AT_K, REGRET
from query.evaluate.report import Grid, figure_text, markdown_settings, markdown_table
from query.evaluate.results import Figure

Float64Array = npt.NDArray[np.float64]

FILE = "recommend"
"""Name of the files of a report, without their ending."""

_TITLES: Mapping[str, str] = {"ndcg": "NDCG", "ndcg_strict": "NDCG strict", "tau": "tau", "sum": "NDCG + tau"}
_NOTE = (
    "NDCG: ideal order of the models in both the predicted and the true top k; strict: of the whole true top k. "
    "tau: Kendall's over the models in both. All 0 where fewer than two models are in both. "
    "Regret: accuracy points lost by taking the model predicted best."
)


@dataclass(frozen=True)
class MethodResult:
    """What one method reached.

    Attributes:
        method: Its name.
        drawn: Whether its predictions depend on the seed.
        figures: By measure (``ndcg@k``, ``ndcg_strict@k``, ``tau@k``, ``sum@k``, ``regret``) one number a seed and
            target, float64 ``[seeds, t]``; NaN where no model was ranked (regret only).
        predicted: Predicted ranks, or figures of which smaller is better, float64 ``[seeds, t, m]``; NaN for a model
            that was not ranked or has no value on the target.
        not_ranked: By target the models that have a value there and could not be ranked.
    """

    method: str
    drawn: bool
    figures: Mapping[str, Float64Array] = field(repr=False)
    predicted: Float64Array = field(repr=False)
    not_ranked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def by_seed(self, measure: str) -> tuple[float, ...]:
        """Mean over the targets, one number a seed."""
        return tuple(_mean(row) for row in self.figures[measure].tolist())

    def figure(self, measure: str) -> Figure:
        """Mean over the seeds of ``by_seed``, and its standard deviation."""
        return self._figure(self.by_seed(measure))

    def on_task(self, measure: str, place: int) -> Figure:
        """Mean and standard deviation over the seeds on one target, by its place."""
        return self._figure(self.figures[measure][:, place].tolist())

    def _figure(self, values: Sequence[float]) -> Figure:
        there = [value for value in values if not math.isnan(value)]
        sd = stdev(there) if self.drawn and len(there) > 1 else None
        return Figure(mean=_mean(values), sd=sd)


@dataclass(frozen=True)
class RecommendationReport:
    """What leaving one task out at a time found.

    Attributes:
        settings: Everything that decides the numbers.
        models: The m candidates.
        tasks: The t targets.
        ks: The tops that were measured.
        values: Performance of the candidates on the targets, NaN where it is not known, float64 ``[m, t]``.
        results: One a method.
        left_out_models: Those that are no candidates, and why.
        left_out_tasks: Those that are neither target nor source, and why.
        missing: How many candidates have no value, by task; only tasks where some have none.
        notes: What a reader must know, one line each.
        seconds: What it took.
    """

    settings: Mapping[str, object]
    models: tuple[str, ...]
    tasks: tuple[str, ...]
    ks: tuple[int, ...]
    values: Float64Array = field(repr=False)
    results: tuple[MethodResult, ...]
    left_out_models: Mapping[str, str] = field(default_factory=dict)
    left_out_tasks: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def result(self, method: str) -> MethodResult:
        """What one method reached.

        Raises:
            KeyError: It was not measured.
        """
        return {result.method: result for result in self.results}[method]

    @property
    def measures(self) -> tuple[str, ...]:
        """All measures by name."""
        return (*(f"{name}@{k}" for k in self.ks for name in AT_K), REGRET)

    def ranking(self) -> tuple[str, ...]:
        """The methods, best first: by NDCG + tau, mean over the tops."""
        key = {r.method: -mean(r.figure(f"sum@{k}").mean for k in self.ks) for r in self.results}
        return tuple(sorted(key, key=lambda method: key[method]))

    def to_json(self) -> dict[str, object]:
        """The report as a value of JSON; a number that is not known is null."""
        methods: list[dict[str, object]] = []
        for result in self.results:
            by_task = {
                task: {measure: _number(result.on_task(measure, place)) for measure in self.measures}
                for place, task in enumerate(self.tasks)
            }
            methods.append(
                {
                    "method": result.method,
                    "figures": {measure: _number(result.figure(measure)) for measure in self.measures},
                    "seeds": {m: [_finite(value) for value in result.by_seed(m)] for m in self.measures},
                    "tasks": by_task,
                    "not_ranked": {task: list(models) for task, models in result.not_ranked.items()},
                }
            )
        return {
            "settings": dict(self.settings),
            "models": list(self.models),
            "tasks": list(self.tasks),
            "methods": methods,
            "left_out": {"models": dict(self.left_out_models), "tasks": dict(self.left_out_tasks)},
            "missing": dict(self.missing),
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
        }

    def grids(self) -> tuple[Grid, ...]:
        """The tables: NDCG + tau and regret, one for each k, and NDCG + tau by task."""
        spread = any(result.figure(REGRET).sd is not None for result in self.results)
        over = f"mean over {len(self.tasks)} tasks"
        if spread:
            over += f" ± standard deviation over {len(self.results[0].predicted)} seeds"
        sums = [f"sum@{k}" for k in self.ks]
        made = [
            Grid(
                "NDCG + tau",
                ("method", *(f"@{k}" for k in self.ks), "regret"),
                tuple(
                    (r.method, *(figure_text(r.figure(m)) for m in sums), figure_text(r.figure(REGRET), 2))
                    for r in self.results
                ),
                f"{over}, {len(self.models)} models. {_NOTE}",
            )
        ]
        for k in self.ks:
            names = [name for name in AT_K if name != "sum"]
            rows = tuple((r.method, *(figure_text(r.figure(f"{name}@{k}")) for name in names)) for r in self.results)
            made.append(Grid(f"k = {k}", ("method", *(_TITLES[name] for name in names)), rows, f"{over}."))
        middle = self.ks[len(self.ks) // 2]
        made.append(
            Grid(
                f"NDCG + tau by task, k = {middle}",
                ("task", *(r.method for r in self.results)),
                tuple(
                    (task, *(figure_text(r.on_task(f"sum@{middle}", place)) for r in self.results))
                    for place, task in enumerate(self.tasks)
                ),
                "mean ± standard deviation over the seeds." if spread else "",
            )
        )
        return tuple(made)

    def to_markdown(self) -> str:
        """The report as Markdown: its tables, what was left out, and the settings that decide the numbers."""
        lines = ["# Recommendation, one task left out at a time", ""]
        for grid in self.grids():
            lines += [f"## {grid.title}", "", *markdown_table(grid.columns, grid.rows, grid.names), ""]
            lines += [grid.note, ""] if grid.note else []
        if self.notes:
            lines += ["## Notes", "", *(f"- {note}" for note in self.notes), ""]
        for what, left_out in (("Models", self.left_out_models), ("Tasks", self.left_out_tasks)):
            if left_out:
                columns = (what.lower()[:-1], "why")
                lines += [f"## {what} left out", "", *markdown_table(columns, left_out.items(), 2), ""]
        return "\n".join([*lines, *markdown_settings(self.settings, self.seconds)])

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Writes ``recommend.json`` and ``recommend.md``, each atomically.

        Args:
            folder: Made if it does not exist.

        Raises:
            OSError: They cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / f"{FILE}.json", folder / f"{FILE}.md"
        write_json(written[0], self.to_json())
        content = self.to_markdown().encode()
        write_atomic(written[1], lambda file: file.write(content))
        return written


def _mean(values: Sequence[float]) -> float:
    there = [value for value in values if not math.isnan(value)]
    return mean(there) if there else math.nan


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value


def _number(figure: Figure) -> dict[str, float | None]:
    return {"mean": _finite(figure.mean), "sd": figure.sd}


def short_name(model: str) -> str:
    """A model's name where there is little room: without ``open_clip:``, of a folder the last two parts of its path."""
    bare = model.removeprefix("open_clip:")
    return "/".join(Path(bare).parts[-2:]) if bare.startswith("local-dir:") else bare


def measure_title(name: str) -> str:
    """What a measure is called in tables and plots."""
    kind, _, k = name.partition("@")
    return f"NDCG@{k} + tau@{k}" if kind == "sum" else name
