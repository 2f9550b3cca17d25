"""``hubhound profile``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from query.cli.add import ALLOW_PICKLE, DEVICE, MAX_SIZE, cache_folder, parse_size
from query.cli.output import Function, bars, data, data_json, fail, format_option, index_option, note, seconds, table
from query.cli.places import index_folder

if TYPE_CHECKING:
    from engine.schema import Task
    from indexers.profiler import ImageFile, ProfileSettings
    from indexers.profiling import Profiled

N_STEPS = 50
"""``engine.conductance.N_STEPS``, which cannot be imported where help must come at once."""


def passes_options(function: Function) -> Function:
    """Adds the options of every command that runs towers forwards and backwards."""
    options = (
        click.option(
            "--max-batch",
            type=click.IntRange(min=2),
            help="Inputs in one pass; by default as many as fit into the memory. Changes no number.",
        ),
        MAX_SIZE,
        ALLOW_PICKLE,
        click.option(
            "--cache",
            type=click.Path(),
            envvar="HUBHOUND_CACHE",
            help="Where downloads of classifiers are kept.  [env: HUBHOUND_CACHE; by default huggingface_hub's cache]",
        ),
        DEVICE,
    )
    for option in reversed(options):
        function = option(function)
    return function


def pass_settings(given: dict[str, Any], **more: Any) -> ProfileSettings:
    """What the options of ``passes_options`` ask for."""
    from indexers.profiler import ProfileSettings
    from indexers.towers import LoadOptions

    cache = cache_folder(given["cache"]) / "models" if given["cache"] else None
    load = LoadOptions(parse_size(given["max_size"]), given["allow_pickle"], cache)
    return ProfileSettings(max_batch=given["max_batch"], load=load, **more)


@click.command(
    epilog="""
\b
Examples:
  hubhound profile open_clip:ViT-B-32/laion2b_s34b_b79k open_clip:RN50/openai --index zoo
  hubhound profile @candidates.txt --index zoo            # one model a line; go on after an interruption
  hubhound profile timm/resnet50.a1_in1k --index zoo --task pets --task cars
  hubhound profile open_clip:local-dir:my-clip --index zoo --blocks "visual.trunk.stages.*"
"""
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@index_option
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="Only this task; repeatable. By default all.")
@click.option(
    "--n-steps",
    type=click.IntRange(min=1),
    help="Steps of the path from the baseline to an image. All profiles of a model need the same.  [default: those of "
    "the model's other profiles, or else 50]",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Of the passes. auto is that of the model's other profiles, or else the device's.",
)
@click.option(
    "--blocks",
    "pattern",
    metavar="PATTERN",
    help="Names of the blocks, for towers whose blocks are not known: * is one part of a dotted name, ** several.",
)
@click.option("--again", is_flag=True, help="Make the models' profiles anew and drop the old ones.")
@passes_options
@format_option
def profile(models: tuple[str, ...], index_path: str, form: str, **given: Any) -> None:
    """Compute the conductance profiles of MODELs on the index's tasks.

    A MODEL is a vision-language model by the names that encoders have (open_clip:ARCH/PRETRAINED,
    open_clip:hf-hub:ORG/NAME, open_clip:local-dir:FOLDER), a classifier (a Hub id or a folder), or @FILE, one a line.

    Profiles that are there are kept. Every image is remembered as it is done: run it again to go on.
    """
    from engine.errors import HubhoundError, StoreError
    from engine.throughput import pick_device
    from engine.writer import IndexWriter
    from indexers.profiler import default_precision
    from indexers.profiling import Profiled, profile_model
    from indexers.towers import expand_towers

    if given["again"] and given["tasks"]:
        raise click.UsageError("--again makes all profiles of a model anew: leave out --task")
    sources = expand_towers(models)
    device = pick_device(given["device"])
    outcomes: list[Profiled] = []
    failures: list[HubhoundError] = []
    with IndexWriter(index_folder(index_path)) as writer:
        tasks = _tasks(writer.index.folder, writer.store.tasks(), given["tasks"], index_path)
        try:
            with bars() as bar:
                overall = bar("models", "")
                current = bar("", "images")
                overall(0, len(sources))
                for source in sources:
                    started = time.monotonic()

                    def tell(what: str, done: float, total: float, name: str = source.name) -> None:
                        current(done, total, f"{name}: {what}")

                    known = [] if given["again"] else writer.store.profiles(model=source.name)
                    precision = given["precision"]
                    if precision == "auto":
                        precision = known[0].precision if known else default_precision(device)
                    n_steps = given["n_steps"] or (known[0].n_steps if known else N_STEPS)
                    settings = pass_settings(given, n_steps=n_steps, precision=precision, pattern=given["pattern"])
                    try:
                        outcome = profile_model(
                            writer, source, tasks, str(device), settings, again=given["again"], progress=tell
                        )
                    except StoreError:
                        raise
                    except HubhoundError as error:
                        failures.append(error)
                        outcome = Profiled(source.name, seconds=time.monotonic() - started, detail=str(error))
                    outcomes.append(outcome)
                    overall(len(outcomes), len(sources), f"models, {sum(o.computed for o in outcomes)} profiles")
        finally:
            writer.export_knowledge()
    if failures and len(failures) == len(sources) == 1:
        raise failures[0]
    _report(outcomes, form)
    if failures:
        fail(f"{len(failures)} of {len(sources)} models could not be profiled, the first: {failures[0]}")
        raise click.exceptions.Exit(1)


def _tasks(
    folder: Path, known: list[Task], wanted: tuple[str, ...], index_path: str
) -> dict[Task, tuple[ImageFile, ...]]:
    from engine.errors import InputError
    from engine.tasks import task_images
    from indexers.profiler import ImageFile

    if not known:
        raise InputError(
            f"the index {index_path} has no tasks to profile models on: add some with "
            f"'hubhound task add NAME --images DIR --index {index_path}'"
        )
    names = {task.name: task for task in known}
    for name in wanted:
        if name not in names:
            raise InputError(f"there is no task {name!r} in {index_path}: it has {', '.join(names)}")
    return {
        task: tuple(
            ImageFile(path, image.sha256) for path, image in zip(task_images(folder, task), task.images, strict=True)
        )
        for task in known
        if not wanted or task.name in wanted
    }


def _report(outcomes: list[Profiled], form: str) -> None:
    if form == "json":
        data_json(
            {
                "models": [
                    {
                        "model": o.model,
                        "blocks": o.blocks,
                        "profiles": o.profiles,
                        "computed": o.computed,
                        "images": o.images,
                        "completeness_gap": o.completeness_gap,
                        "seconds": round(o.seconds, 3),
                        "detail": o.detail,
                    }
                    for o in outcomes
                ]
            }
        )
    elif form == "quiet":
        for outcome in outcomes:
            if outcome.detail is None:
                data(outcome.model)
    else:
        rows = [
            [
                o.model,
                *(
                    ["", "", "", "", "", seconds(o.seconds), o.detail]
                    if o.detail
                    else [
                        str(o.blocks),
                        str(o.profiles),
                        str(o.computed),
                        str(o.images),
                        f"{o.completeness_gap:.0%}",
                        seconds(o.seconds),
                        "profiled" if o.computed else "there already",
                    ]
                ),
            ]
            for o in outcomes
        ]
        right = [(name, "right") for name in ("blocks", "profiles", "new", "images shown", "completeness gap", "s")]
        table(None, ["model", *right, "state"], rows)
    done = sum(o.detail is None for o in outcomes)
    note(f"{done} of {len(outcomes)} models have profiles of these tasks")
