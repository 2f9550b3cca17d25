"""``hubhound eval recommend``: how good recommendation is, measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from query.cli.output import data, data_json, format_option, note, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.performance import PerformanceTable
    from engine.profiles import ImageProfiles
    from query.evaluate.recommendation import Settings
    from query.evaluate.transferred import RecommendationReport

_METHODS = ("dcd", "cosine", "jsd", "uniform", "inb", "avgrank", "avgrank-target", "random")
_FROM_PROFILES = _METHODS[:4]  # of recommenders.PROFILE_METHODS, which cannot be imported where help must come at once
_DIGITS = 9  # of a k: Python reads no number of thousands of digits


def _methods(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    if value is None:
        return ()
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    for name in names:
        if name not in _METHODS:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(_METHODS)}", param=parameter)
    if not names:
        raise click.BadParameter("name at least one", param=parameter)
    return names


def _tops(_: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    parts = [part.strip() for part in value.split(",") if part.strip()]
    for part in parts:
        if not (part.isascii() and part.isdecimal() and len(part) <= _DIGITS and int(part) >= 2):
            raise click.BadParameter(f"{part[:_DIGITS]!r} is not a whole number from 2", param=parameter)
    if not parts:
        raise click.BadParameter("name at least one", param=parameter)
    return tuple(dict.fromkeys(int(part) for part in parts))


@click.command(
    epilog="""
\b
Examples:
  hubhound eval recommend --performance accuracies.csv
  hubhound eval recommend --performance accuracies.csv --complete --ties ordinal --methods inb,avgrank --k 5
  hubhound eval recommend --index zoo --output results/
  hubhound eval recommend --index zoo --methods dcd,uniform,random --seeds 20 --target-images 5 --gamma 10
"""
)
@click.option(
    "--index",
    "index_path",
    type=click.Path(),
    envvar="HUBHOUND_INDEX",
    help="An index with profiles; not needed for the methods that need none.  [env: HUBHOUND_INDEX]",
)
@click.option(
    "--performance",
    "performance_path",
    type=click.Path(),
    help="CSV with model, pretrained, dataset and acc1; by default what the index knows.",
)
@click.option(
    "--models",
    "models_path",
    type=click.Path(),
    help="Only these models: names, one a line, or a CSV with model and pretrained. Their order breaks ties.",
)
@click.option(
    "--methods",
    callback=_methods,
    metavar="A,B,...",
    help=f"Of {', '.join(_METHODS)}; by default all that the inputs allow.",
)
@click.option(
    "--reference",
    default="imagenet1k",
    show_default=True,
    metavar="TASK",
    help="The task that inb ranks by; never a target or a source.",
)
@click.option(
    "--k", "ks", callback=_tops, default="3,5,7", show_default=True, metavar="A,B,...", help="The tops to measure."
)
@click.option(
    "--ties",
    type=click.Choice(["average", "ordinal"]),
    default="average",
    show_default=True,
    help="What equal values are ranked: all their mean place, or each its own in the order of the models.",
)
@click.option("--complete", is_flag=True, help="Leave out tasks on which a model has no value.")
@click.option(
    "--seeds", type=click.IntRange(min=1), default=10, show_default=True, help="Repeat with so many draws of images."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The first of them.")
@click.option(
    "--source-images",
    type=click.IntRange(min=1),
    default=25,
    show_default=True,
    help="Images drawn of each source task, at most what there is.",
)
@click.option(
    "--target-images", type=click.IntRange(min=1), default=1, show_default=True, help="Images drawn of the target."
)
@click.option(
    "--eta",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    help="Sharpness of the importance of blocks; 0 makes all equally important.",
)
@click.option(
    "--gamma",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="Sharpness of the weights of source tasks; 0 makes them uniform.",
)
@click.option(
    "--output", type=click.Path(file_okay=False), help="Also write recommend.json and recommend.md to this folder."
)
@format_option
def recommend(**given: Any) -> None:
    """Measure how well models are recommended: each task in turn is the target, all others are known.

    Compares rankings predicted from conductance profiles with ranking by ImageNet, by mean rank and at random.
    """
    from query.evaluate.recommendation import leave_one_out

    settings = _settings(given)
    known, profiles = _inputs(given)
    report = leave_one_out(known, settings, profiles)
    if given["output"]:
        for path in report.write(Path(given["output"]).expanduser()):
            note(f"{path} written")
    _show(report, given["form"])


def _settings(given: Mapping[str, Any]) -> Settings:
    from query.evaluate.recommendation import Settings

    return Settings(
        methods=given["methods"],
        reference=given["reference"],
        ks=given["ks"],
        ties=given["ties"],
        seeds=tuple(range(given["seed"], given["seed"] + given["seeds"])),
        source_images=given["source_images"],
        target_images=given["target_images"],
        eta=given["eta"],
        gamma=given["gamma"],
        complete=given["complete"],
    )


def _inputs(given: Mapping[str, Any]) -> tuple[PerformanceTable, dict[str, ImageProfiles] | None]:
    """Known performance, and profiles where there is an index and a method needs them."""
    from engine.errors import IndexUnusableError, InputError
    from engine.index import Index
    from engine.performance import read_models, read_performance, table_of

    name, path = given["index_path"], given["performance_path"]
    if not name and not path:
        raise click.UsageError("give known performance (--performance FILE), an index (--index), or both")
    index = None
    if name:
        if "://" in name:
            raise IndexUnusableError(f"the index {name} is not a folder: evaluations read embedded indexes")
        index = Index(Path(name).expanduser())
    if path:
        records = read_performance(Path(path).expanduser()).records
    else:
        assert index is not None  # noqa: S101
        records = index.knowledge().performance
        if not records:
            raise InputError(
                f"the index {name} knows no performance: import some (hubhound performance import FILE --index {name}) "
                "or give --performance FILE"
            )
    models = None
    if given["models_path"]:
        models = read_models(Path(given["models_path"]).expanduser())
        there = {record.model for record in records}
        strangers = [model for model in models if model not in there]
        if strangers:
            raise InputError(
                f"{len(strangers)} of {len(models)} models of {given['models_path']} have no known performance, the "
                f"first is {strangers[0]}: take them out of the list"
            )
    profiles = None
    if index is not None and (not given["methods"] or set(given["methods"]) & set(_FROM_PROFILES)):
        from query.profiled import image_profiles

        profiles = image_profiles(index)
        if models is not None:
            profiles = {model: own for model, own in profiles.items() if model in models}
    return table_of(records, models), profiles


def _show(report: RecommendationReport, form: str) -> None:
    from query.evaluate.inputfiles import named

    if form == "json":
        data_json(report.to_json())
    elif form == "quiet":
        for method in report.ranking():
            data(method)
    else:
        for grid in report.grids():
            justified = [(name, "left" if i < grid.names else "right") for i, name in enumerate(grid.columns)]
            table(grid.title, justified, grid.rows)
            if grid.note:
                note(grid.note)
    for what, left_out in (("models", report.left_out_models), ("tasks", report.left_out_tasks)):
        for reason in dict.fromkeys(left_out.values()):
            names = [name for name, why in left_out.items() if why == reason]
            note(f"{what} left out, {reason} ({len(names)}): {named(names)}")
    for line in report.notes:
        note(line)
