"""``hubhound eval recommend``: how good recommendation is, measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from query.cli.output import Function, bars, data, data_json, format_option, note, progress, table
from query.cli.places import index_folder
from query.cli.profile import pass_settings, passes_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engine.index import Index
    from engine.performance import PerformanceTable
    from engine.profiles import ImageProfiles
    from engine.schema import Performance
    from indexers.profiler import ProfileSettings
    from indexers.towers import TowerSource
    from query.cli.output import Advance
    from query.evaluate.recommendation import Float64Array, Settings
    from query.evaluate.transfer_report import Analyses
    from query.evaluate.transferred import RecommendationReport
    from query.evaluate.zoo_profiles import PreparedZoo

_METHODS = ("dcd", "cosine", "jsd", "uniform", "inb", "avgrank", "avgrank-target", "random")
_FROM_PROFILES = _METHODS[:4]  # of recommenders.PROFILE_METHODS, which cannot be imported where help must come at once
_ANALYSES = ("grid", "sampling", "seeds", "proxy", "correlation", "coverage")  # transfer_report.NAMES, likewise
_DIGITS = 9  # of a k: Python reads no number of thousands of digits


def _parts(parameter: click.Parameter, value: str) -> tuple[str, ...]:
    parts = tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))
    if not parts:
        raise click.BadParameter("name at least one", param=parameter)
    return parts


def _names(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    known = {"methods": _METHODS, "analyses": _ANALYSES}[str(parameter.name)]
    if value is None:
        return ()
    names = _parts(parameter, value)
    if known is _ANALYSES and "all" in names:
        return known
    for name in names:
        if name not in known:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(known)}", param=parameter)
    return names


def _sharpnesses(_: click.Context, parameter: click.Parameter, value: str) -> tuple[float, ...]:
    found = []
    for part in _parts(parameter, value):
        try:
            number = float(part)
        except ValueError:
            number = -1.0
        if not isfinite(number) or number < 0:
            raise click.BadParameter(f"{part!r} is not a number from 0", param=parameter)
        found.append(number)
    return tuple(dict.fromkeys(found))


def _tops(_: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    parts = _parts(parameter, value)
    for part in parts:
        if not (part.isascii() and part.isdecimal() and len(part) <= _DIGITS and int(part) >= 2):
            raise click.BadParameter(f"{part[:_DIGITS]!r} is not a whole number from 2", param=parameter)
    return tuple(dict.fromkeys(map(int, parts)))


def _path(name: str, text: str, file_okay: bool = True, envvar: str | None = None) -> Callable[[Function], Function]:
    kind = click.Path(file_okay=file_okay)
    return click.option(name, f"{name[2:]}_path", type=kind, envvar=envvar, help=text)


def _listed(
    name: str, read: Callable[..., tuple[object, ...]], text: str, default: str | None = None
) -> Callable[[Function], Function]:
    return click.option(name, callback=read, default=default, show_default=True, metavar="A,B,...", help=text)


def _number(name: str, default: float, text: str, least: int = 1) -> Callable[[Function], Function]:
    kind = click.IntRange(min=least) if isinstance(default, int) else click.FloatRange(min=least)
    return click.option(name, type=kind, default=default, show_default=True, help=text)


@click.command(
    epilog="""
\b
Examples:
  hubhound eval recommend --performance accuracies.csv
  hubhound eval recommend --performance accuracies.csv --complete --ties ordinal --methods inb,avgrank --k 5
  hubhound eval recommend --index zoo --output results/ --plots plots/
  hubhound eval recommend --index zoo --analyses all --output results/ --plots plots/
  hubhound eval recommend --index zoo --analyses grid,proxy --etas 0,1,2 --gammas 1,5,25 --gap rank
  hubhound eval recommend --index zoo --methods dcd,uniform,random --seeds 20 --target-images 5 --gamma 10
  hubhound eval recommend --zoo openclip48 --tasks datasets/ --index zoo --performance accuracies.csv --device cuda
  hubhound eval recommend --zoo models.txt --tasks datasets/ --index zoo --analyses all --output results/
"""
)
@_path("--index", "An index with profiles; some methods need none.  [env: HUBHOUND_INDEX]", envvar="HUBHOUND_INDEX")
@_path("--performance", "CSV with model, pretrained, dataset and acc1; by default what the index knows.")
@_path("--models", "Only these models: names, one a line, or CSV with model and pretrained. Their order breaks ties.")
@_listed("--methods", _names, f"Of {', '.join(_METHODS)}; by default all that the inputs allow.")
@click.option(
    "--reference",
    default="imagenet1k",
    show_default=True,
    metavar="TASK",
    help="The task that inb ranks by; never a target or a source.",
)
@_listed("--k", _tops, "The tops to measure.", "3,5,7")
@click.option(
    "--ties",
    type=click.Choice(["average", "ordinal"]),
    default="average",
    show_default=True,
    help="What equal values are ranked: all their mean place, or each its own in the order of the models.",
)
@click.option("--complete", is_flag=True, help="Leave out tasks on which a model has no value.")
@_number("--seeds", 10, "Repeat with so many draws of images.")
@_number("--seed", 0, "The first of them.", least=0)
@_number("--source-images", 25, "Images drawn of each source task, at most what there is.")
@_number("--target-images", 1, "Images drawn of the target.")
@_number("--eta", 2.0, "Sharpness of the importance of blocks; 0 makes all equally important.", least=0)
@_number("--gamma", 5.0, "Sharpness of the weights of source tasks; 0 makes them uniform.", least=0)
@_listed("--analyses", _names, f"all, or of {', '.join(_ANALYSES)}; all but seeds need profiles.")
@_listed("--etas", _sharpnesses, "Of the analysis grid.", "0,0.5,1,2,4,8")
@_listed("--gammas", _sharpnesses, "Of the analysis grid.", "0,1,2,5,10,20,50")
@click.option(
    "--gap",
    type=click.Choice(["accuracy", "rank"]),
    default="accuracy",
    show_default=True,
    help="Of the analysis proxy: in what the differences between tasks are that it is to foretell.",
)
@_path(
    "--output",
    "Also write recommend.json and recommend.md to this folder; with --analyses also a JSON file of each and "
    "recommendation.md, their tables.",
    file_okay=False,
)
@_path(
    "--plots",
    "Also draw plots (PNG, SVG) in this folder: the seeds, each model's conductance, the analyses.",
    file_okay=False,
)
@click.option(
    "--zoo",
    metavar="openclip48|FILE",
    help="First profile what is missing of these models: 48 of open_clip, or the names in FILE, one a line.",
)
@_path(
    "--tasks",
    "With --zoo: a folder with a folder of images for each task, named as in the performance table; those that the "
    "index lacks are added. By default the index's tasks.",
)
@_number("--images-per-task", 100, "With --tasks: images kept of each task that is added; seeds draw from them.")
@_number("--n-steps", 50, "With --zoo: steps of the path from the baseline to an image.")
@passes_options
@format_option
def recommend(**given: Any) -> None:
    """Measure how well models are recommended: each task in turn is the target, all others are known.

    Compares rankings predicted from conductance profiles with ranking by ImageNet, by mean rank and at random.
    --analyses: how much depends on eta, gamma, the number of images and the seed, what the distances between tasks are
    worth, and whether models agree on them.

    With --zoo one command does it all: it adds the tasks and makes the profiles that the index lacks, then measures.
    Run it again to go on after an interruption. A model that cannot be loaded is left out.
    """
    from query.evaluate.recommendation import leave_one_out
    from query.evaluate.transfer_report import Plan, analyse, check_profiles, write

    settings = _settings(given)
    plan = Plan(given["analyses"], given["etas"], given["gammas"], given["gap"])
    _check(given)
    output, plots = (Path(given[name]).expanduser() if given[name] else None for name in ("output_path", "plots_path"))
    inputs = _inputs(given)
    profiles = inputs.profiles
    check_profiles(plan, profiles)
    for folder in (output, plots):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)  # fails before the minutes that an evaluation takes
    report = leave_one_out(inputs.table, settings, profiles)
    report = replace(report, left_out_models={**report.left_out_models, **inputs.left_out})
    notes: list[str] = []
    with bars() as bar:
        text = None
        if "proxy" in plan.names and inputs.index is not None:
            text = _text(inputs, given["device"], bar("embedding class names", "texts"), notes)
        found = analyse(plan, report, inputs.table, profiles, settings, text, lambda name: bar(name, ""))
    report = replace(report, notes=(*report.notes, *notes))
    if plots is not None:
        shown = replace(found, recommendation=report, conductance=tuple((profiles or {}).values()))
        with progress("drawing", "plots") as advance:
            drawn = write(plots, shown, texts=False, progress=advance)
        note(f"{len(drawn)} plots in {plots}")
    if output is not None:
        written = write(output, found, plots=False) if plan.names else ()
        for path in (*report.write(output), *written):
            note(f"{path} written")
    _show(report, found if plan.names else None, given["form"])


def _check(given: Mapping[str, Any]) -> None:
    """Refuses options that cannot go together, and plots that cannot be drawn."""
    if not given["index_path"] and not given["performance_path"]:
        raise click.UsageError("give known performance (--performance FILE), an index (--index), or both")
    if given["tasks_path"] and not given["zoo"]:
        raise click.UsageError("--tasks is for --zoo: 'hubhound task add --each' adds tasks without profiling models")
    if given["zoo"]:
        if not given["index_path"]:
            raise click.UsageError("--zoo needs an index that keeps the profiles (--index)")
        if given["models_path"]:
            raise click.UsageError("--zoo and --models both say which models are compared: leave one out")
        if not _from_profiles(given):
            raise click.UsageError("--zoo makes profiles, and nothing that was asked for needs any: leave it out")
    if given["plots_path"]:
        from query.evaluate.plots import require_matplotlib

        require_matplotlib()


def _from_profiles(given: Mapping[str, Any]) -> bool:
    """Whether something that is asked for is made from profiles."""
    methods, analyses = set(given["methods"]), set(given["analyses"])
    return not methods or bool(methods & set(_FROM_PROFILES) or analyses - {"seeds"} or given["plots_path"])


def _settings(given: Mapping[str, Any]) -> Settings:
    from query.evaluate.recommendation import Settings

    return Settings(
        methods=given["methods"],
        reference=given["reference"],
        ks=given["k"],
        ties=given["ties"],
        seeds=tuple(range(given["seed"], given["seed"] + given["seeds"])),
        source_images=given["source_images"],
        target_images=given["target_images"],
        eta=given["eta"],
        gamma=given["gamma"],
        complete=given["complete"],
    )


@dataclass(frozen=True)
class _Inputs:
    """What is measured on: performance, profiles if they are needed, and the models of a zoo that have none."""

    table: PerformanceTable
    profiles: dict[str, ImageProfiles] | None
    index: Index | None
    left_out: Mapping[str, str]


def _inputs(given: dict[str, Any]) -> _Inputs:
    """Known performance, and profiles where there is an index and something needs them."""
    from engine.errors import InputError
    from engine.index import Index
    from engine.performance import read_models, read_performance, table_of

    name, path = given["index_path"], given["performance_path"]
    index = None
    if name:
        index = Index(index_folder(name))
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
    tasks: tuple[str, ...] | None = None
    left_out: Mapping[str, str] = {}
    if given["models_path"]:
        models = read_models(Path(given["models_path"]).expanduser())
        there = {record.model for record in records}
        strangers = [model for model in models if model not in there]
        if strangers:
            raise InputError(
                f"{len(strangers)} of {len(models)} models of {given['models_path']} have no known performance, the "
                f"first is {strangers[0]}: take them out of the list"
            )
    elif given["zoo"]:
        assert index is not None  # noqa: S101
        zoo = _prepared_zoo(given, index, records)
        models, tasks, left_out = zoo.models, zoo.tasks, zoo.left_out
    profiles = None
    if index is not None and _from_profiles(given):
        from query.profiled import image_profiles, known_as_means

        profiles = {
            model: replace(own, images={task: own.images[task] for task in tasks or own.images if task in own.images})
            for model, own in image_profiles(index).items()
            if models is None or model in models
        }
        means = known_as_means(index, profiles)
        if means:
            note(
                f"{len(means)} models have profiles whose single images are no longer remembered, so none can be drawn "
                f"(the first is {means[0]}): hubhound profile MODEL... --again makes them anew"
            )
    return _Inputs(table_of(records, models), profiles, index, left_out)


def _prepared_zoo(given: dict[str, Any], index: Index, records: Sequence[Performance]) -> PreparedZoo:
    """Makes what the index lacks of a zoo."""
    from engine.throughput import pick_device
    from engine.writer import IndexWriter
    from indexers.profiler import default_precision
    from query.evaluate.zoo_profiles import ZooRequest, prepare, task_folders, zoo_sources

    device = pick_device(given["device"])
    folders = task_folders(Path(given["tasks_path"]).expanduser()) if given["tasks_path"] else {}
    request = ZooRequest(zoo_sources(given["zoo"]), folders, given["images_per_task"], given["n_steps"])
    measured: dict[str, set[str]] = {}
    for record in records:
        if record.task != given["reference"]:
            measured.setdefault(record.model, set()).add(record.task)
    with IndexWriter(index.folder) as writer, bars() as bar:

        def settings_of(source: TowerSource) -> ProfileSettings:
            made = writer.store.profiles(model=source.name)
            precision = made[0].precision if made else default_precision(device)
            return pass_settings(given, n_steps=given["n_steps"], precision=precision)

        return prepare(writer, request, measured, str(device), settings_of, _Screen(bar("", ""), bar("", "images")))


@dataclass(frozen=True)
class _Screen:
    """Two progress bars, and the lines above them."""

    outer: Advance
    inner: Advance

    def note(self, text: str) -> None:
        note(text)

    def overall(self, what: str, done: int, total: int) -> None:
        self.outer(done, total, what)

    def current(self, what: str, done: float, total: float) -> None:
        self.inner(done, total, what)


def _text(inputs: _Inputs, device: str, advance: Callable[[int, int], None], notes: list[str]) -> Float64Array | None:
    """What the class names of the profiled tasks say, a row a task of the table; if they cannot, None and a note."""
    from engine.errors import HubhoundError
    from query.evaluate.embedding import LazyEncoder, TextEmbedder
    from query.evaluate.inputfiles import named
    from query.evaluate.transfer_report import class_embeddings

    assert inputs.index is not None  # noqa: S101
    classes = {task.name: task.classes for task in inputs.index.knowledge().tasks}
    profiled = {task for own in (inputs.profiles or {}).values() for task in own.images}
    tasks = [task for task in inputs.table.tasks if task in profiled]
    without = [task for task in tasks if not classes.get(task)]
    why = f"no classes are known of {named(without)} (their images lie in no subfolders)" if without else None
    if tasks and why is None:
        embed = TextEmbedder(inputs.index, LazyEncoder(inputs.index, device), progress=advance)
        try:
            return class_embeddings(inputs.table.tasks, {task: classes[task] for task in tasks}, embed)
        except HubhoundError as error:
            why = str(error)
    notes.append(f"the proxy text is left out: {why or 'there are no profiles'}")
    return None


def _show(report: RecommendationReport, found: Analyses | None, form: str) -> None:
    from query.evaluate.inputfiles import named
    from query.evaluate.transfer_report import tables, to_json

    if form == "json":
        data_json(report.to_json() | ({"analyses": to_json(found)} if found is not None else {}))
    elif form == "quiet":
        for method in report.ranking():
            data(method)
    else:
        for grid in (*report.grids(), *(tables(found) if found is not None else ())):
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
