"""``hubhound performance``: how well models are known to do on tasks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from query.cli.output import data, data_json, format_option, index_option, note, table
from query.cli.places import index_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.schema import Performance


@click.group()
def performance() -> None:
    """Keep how well models are known to do on tasks."""


@performance.command(
    "import",
    epilog="""
\b
Examples:
  hubhound performance import accuracies.csv --index zoo
""",
)
@click.argument("file", type=click.Path())
@index_option
@format_option
def import_(file: str, index_path: str, form: str) -> None:
    """Read known accuracies from FILE, a CSV with the columns model, pretrained, dataset, acc1 and, if known, source.

    A value replaces the one that is known of its model and task. If one row cannot be used, nothing is imported.
    """
    from engine.performance import read_performance
    from engine.writer import IndexWriter

    imported = read_performance(Path(file).expanduser())
    models = {record.model for record in imported.records}
    tasks = {record.task for record in imported.records}
    with IndexWriter(index_folder(index_path)) as writer:
        known = {record.point_id: record.value for record in writer.store.performance()}
        writer.put_performance(imported.records)
        written = writer.export_knowledge()
    profiled = set(written.models() if written else ())
    old = [known[record.point_id] != record.value for record in imported.records if record.point_id in known]
    facts = {
        "records": len(imported.records),
        "missing": imported.missing,
        "models": len(models),
        "tasks": len(tasks),
        "replaced": sum(old),
        "unchanged": len(old) - sum(old),
        "models_without_profile": len(models - profiled),
    }
    if form == "json":
        data_json(facts)
    elif form == "quiet":
        for model in sorted(models):
            data(model)
    else:
        rows = [[str(facts[key])] for key in ("records", "missing", "models", "tasks", "replaced", "unchanged")]
        names = ("values", "rows without a value", "models", "tasks", "other values replaced", "known before")
        table(None, ["", ("", "right")], [[name, *row] for name, row in zip(names, rows, strict=True)])
    if models - profiled:
        note(
            f"{len(models - profiled)} of {len(models)} models have no profile yet: "
            f"hubhound profile MODEL... --index {index_path}"
        )


@performance.command(
    "list",
    epilog="""
\b
Examples:
  hubhound performance list --index zoo --task cars
  hubhound performance list --index zoo --format json
""",
)
@index_option
@click.option("--task", "task", metavar="T", help="Only this task.")
@format_option
def list_(index_path: str, task: str | None, form: str) -> None:
    """List what is known, the best model of each task first; equal values share the mean of their ranks."""
    from engine.errors import InputError
    from engine.index import Index

    folder = index_folder(index_path)
    known = Index(folder).knowledge().performance
    tasks = sorted({record.task for record in known})
    if task is not None and task not in tasks:
        there = ", ".join(tasks) or "no values"
        raise InputError(f"nothing is known about task {task!r} in {index_path}: it has {there}")
    ranked = _ranked([record for record in known if task in {None, record.task}])
    if form == "json":
        entries = [
            {
                "model": record.model,
                "task": record.task,
                "metric": record.metric,
                "value": record.value,
                "rank": rank,
                "source": record.source,
            }
            for record, rank in ranked
        ]
        data_json({"performance": entries})
    elif form == "quiet":
        for model in dict.fromkeys(record.model for record, _ in ranked):
            data(model)
    else:
        rows = [
            [record.task, f"{rank:g}", record.model, f"{record.value:.4f}", record.metric, record.source or ""]
            for record, rank in ranked
        ]
        table(None, ["task", ("rank", "right"), "model", ("value", "right"), "metric", "source"], rows)


@performance.command(
    epilog="""
\b
Examples:
  hubhound performance remove --task cars --index zoo
  hubhound performance remove --model open_clip:RN50/openai --index zoo
"""
)
@index_option
@click.option("--task", metavar="T", help="What is known about this task.")
@click.option("--model", metavar="MODEL", help="What is known about this model.")
def remove(index_path: str, task: str | None, model: str | None) -> None:
    """Forget what is known about a task, a model, or a model on a task."""
    from engine.errors import InputError
    from engine.writer import IndexWriter

    if task is None and model is None:
        raise click.UsageError("say what to forget: --task, --model or both")
    with IndexWriter(index_folder(index_path)) as writer:
        known = writer.store.performance()
        gone = [one for one in known if task in {None, one.task} and model in {None, one.model}]
        if not gone:
            what = " and ".join(filter(None, (task and f"task {task!r}", model and f"model {model!r}")))
            raise InputError(f"nothing is known about {what} in {index_path}: see 'hubhound performance list'")
        writer.drop_performance(model, task)
        writer.export_knowledge()
    note(f"{len(gone)} value{'' if len(gone) == 1 else 's'} removed")


def _ranked(known: Sequence[Performance]) -> list[tuple[Performance, float]]:
    """Records with their ranks by task, metric and rank."""
    from engine.performance import ranks, table_of

    rank_of: dict[tuple[str, str, str], float] = {}
    for metric in {record.metric for record in known}:
        values = table_of(known, metric=metric)
        places = ranks(values.values)
        for i, model in enumerate(values.models):
            for j, name in enumerate(values.tasks):
                if not math.isnan(places[i, j]):
                    rank_of[model, name, metric] = float(places[i, j])
    ranked = [(record, rank_of[record.model, record.task, record.metric]) for record in known]
    return sorted(ranked, key=lambda pair: (pair[0].task, pair[0].metric, pair[1], pair[0].model))
