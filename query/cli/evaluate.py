"""``hubhound eval``: how good search is, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from query.cli.bench import Bench
from query.cli.eval_recommend import recommend
from query.cli.output import format_option, index_option, note, progress

if TYPE_CHECKING:
    from query.evaluate.retrieval import Settings
    from query.evaluate.sweeps import Case
    from query.evaluate.zoo import Query

Function = TypeVar("Function", bound=Callable[..., Any])

_TASKS = ("output", "model", "naming", "lists", "images")
_DIGITS = 9  # of a value: Python reads no number of thousands of digits
_PARAMETERS = ("r", "probes", "background", "k", "templates", "probe-source")


@click.group()
def evaluate() -> None:
    """Measure how good search is."""


evaluate.add_command(recommend)


def _listed(_: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Names with commas between them."""
    if value is None:
        return None
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    if not names:
        raise click.BadParameter("name at least one", param=parameter)
    return names


def _known_tasks(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    names = _listed(context, parameter, value)
    for name in names or ():
        if name not in _TASKS:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(_TASKS)}", param=parameter)
    return names


def _shared(function: Function) -> Function:
    """The options that every measurement of retrieval has."""
    options = (
        index_option,
        click.option(
            "--truth",
            "truth_path",
            type=click.Path(),
            required=True,
            help="What each output stands for: JSON, by model a list of {index, label, class}.",
        ),
        click.option(
            "--queries",
            "queries_path",
            type=click.Path(),
            help="JSON or CSV with text and class; by default one query a class, its label's first synonym.",
        ),
        click.option(
            "--images",
            "images_path",
            type=click.Path(),
            help="CSV with file and class of labelled images. Classes with a labelled probe are reported as seen.",
        ),
        click.option(
            "--methods",
            callback=_listed,
            metavar="A,B,...",
            help="What is compared: by default everything, in a sweep the methods of the index and probelog. "
            "whitened, dual, weighted, probelog, the same with +divisive, truncated, all-probes, "
            "all-probes-uncalibrated, cosine, wpmi, soft-wpmi, soft-wpmi-100, top-text, top-bottom.",
        ),
        click.option("-r", "top_r", type=click.IntRange(min=1), help="Kept probes; by default the index's."),
        click.option(
            "--nearest",
            type=click.IntRange(min=1),
            help="How many of the nearest background phrases make the hubness; by default the index's.",
        ),
        click.option(
            "--background",
            type=click.IntRange(min=2),
            default=500,
            show_default=True,
            help="How many background phrases are drawn; never a synonym of a label or a query.",
        ),
        click.option("--probes", type=click.IntRange(min=2), help="Use so many of the probes; by default all."),
        click.option(
            "--seeds",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Repeat with so many draws of background, probes, lists and images; shows the standard deviation.",
        ),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The first of them."),
        click.option(
            "--templates",
            multiple=True,
            default=("index",),
            show_default="index",
            metavar="one|index|TEXT",
            help="Prompt templates: one, the index's, or a text with {}; again for several.",
        ),
        click.option("--out", type=click.Path(dir_okay=False), help="Also write the figures to this JSON file."),
        click.option("--markdown", type=click.Path(dir_okay=False), help="Also write the tables to this file."),
        click.option("--plots", type=click.Path(file_okay=False), help="Also draw plots (PNG, SVG) in this folder."),
        click.option("--device", default="auto", show_default=True, envvar="HUBHOUND_DEVICE", help="auto, cpu, cuda."),
        format_option,
    )
    for option in reversed(options):
        function = option(function)
    return function


@evaluate.command(
    epilog="""
\b
Examples:
  hubhound eval retrieval --index zoo --truth labels.json
  hubhound eval retrieval --index zoo --truth labels.json --images images.csv --seeds 5 --plots plots/
  hubhound eval retrieval --index zoo --truth labels.json --methods dual,probelog,soft-wpmi --tasks output,lists
  hubhound eval retrieval --index zoo --truth labels.json --templates "a photo of a {}" --out figures.json
"""
)
@_shared
@click.option(
    "--tasks",
    callback=_known_tasks,
    metavar="A,B,...",
    help=f"Of {', '.join(_TASKS)}; by default all (images only with --images).",
)
@click.option("--lists", type=click.IntRange(min=1), default=500, show_default=True, help="How many concept lists.")
def retrieval(tasks: tuple[str, ...] | None, lists: int, **given: Any) -> None:
    """Measure how often search finds the right outputs, models and names, by several methods.

    Needs an index with responses kept and a truth file that says what the outputs stand for.
    """
    from query.evaluate import retrieval as measuring
    from query.evaluate.methods import METHODS

    if tasks and "images" in tasks and given["images_path"] is None:
        raise click.UsageError("the task images needs --images")
    tasks = tasks or tuple(task for task in _TASKS if task != "images" or given["images_path"] is not None)
    with Bench(given) as bench:
        settings = bench.settings(tasks, lists, given["methods"] or tuple(METHODS))
        measuring.check_settings(settings, bench.index.manifest.probes.count)
        zoo, queries = bench.load(embed_images="images" in tasks)
        advance = bench.bar("measuring", "")
        report = measuring.evaluate(
            zoo, queries, bench.embed(), settings, images=bench.images, pool=bench.pool(queries), progress=advance
        )
    bench.finish(report)


@evaluate.command(
    epilog="""
\b
Examples:
  hubhound eval sweep r --values 5,10,50,200 --index zoo --truth labels.json --plots plots/
  hubhound eval sweep background --index zoo --truth labels.json --seeds 5 --markdown background.md
  hubhound eval sweep templates --values 1 --values 5 --values "{}" --index zoo --truth labels.json
  hubhound eval sweep probe-source --index photographs --also dead-leaves --truth labels.json
"""
)
@click.argument("parameter", type=click.Choice(_PARAMETERS))
@click.option(
    "--values",
    multiple=True,
    metavar="A,B,...",
    help="Values of the parameter. For templates: how many of the default ones, one, index, or a text with {}.",
)
@click.option(
    "--also",
    multiple=True,
    type=click.Path(),
    help="For probe-source: another index of the same models, made with other probes; again for several.",
)
@_shared
def sweep(parameter: str, values: tuple[str, ...], also: tuple[str, ...], **given: Any) -> None:
    """Measure search (text to output) for several values of one PARAMETER, everything else fixed.

    PARAMETER: r (kept probes), probes (how many), background (how many phrases), k (nearest of them), templates (of
    the prompt), probe-source (indexes with other probes).
    """
    from query.evaluate import sweeps

    if (parameter == "probe-source") != bool(also):
        raise click.UsageError("probe-source compares --index with further indexes given by --also, nothing else does")
    if parameter == "probe-source" and values:
        raise click.UsageError("probe-source takes no --values: its values are the indexes")
    split = tuple(part for value in values for part in ([value] if "{}" in value else value.split(",")) if part.strip())
    with Bench(given) as bench:
        settings = bench.settings(("output",), 1, given["methods"] or bench.own_methods())
        split = split or bench.default_values(parameter)
        if parameter in {"probe-source", "templates"}:
            cases, queries = _sources(bench, also, settings) if also else _prompts(bench, split, settings)
            report = sweeps.sweep_over(
                cases,
                queries,
                parameter,
                "",
                pool=bench.pool(queries),
                progress=bench.bar("measuring", ""),
            )
        else:
            numbers = _numbers(split)
            zoo, queries = bench.load()
            report = sweeps.sweep(
                parameter,
                numbers,
                zoo,
                queries,
                bench.embed(),
                settings,
                pool=bench.pool(queries),
                progress=bench.bar("measuring", ""),
                images=bench.images,
            )
    bench.finish(report)


@evaluate.command(
    "make-hub",
    epilog="""
\b
Examples:
  hubhound eval make-hub --from zoo --truth labels.json --out hub1500
  hubhound eval make-hub --from zoo --truth labels.json --out noisy --models 200 --noise 0.5 --seed 1
  hubhound eval retrieval --index hub1500 --truth hub1500/truth.json
""",
)
@click.option("--from", "source", type=click.Path(), required=True, help="An index with responses kept.")
@click.option("--truth", "truth_path", type=click.Path(), required=True, help="What its outputs stand for.")
@click.option("--out", type=click.Path(), required=True, help="Folder of the new index; its truth lies in truth.json.")
@click.option("--models", type=click.IntRange(min=1), default=1500, show_default=True, help="How many.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of every draw.")
@click.option(
    "--min-classes", type=click.IntRange(min=2), default=15, show_default=True, help="Fewest outputs of a model."
)
@click.option(
    "--max-classes", type=click.IntRange(min=2), default=200, show_default=True, help="Most outputs of a model."
)
@click.option(
    "--noise",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="Gaussian noise on the responses, as a share of each output's standard deviation.",
)
@click.option(
    "--probabilities",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Share of the models that answer probabilities (softmax over their own outputs).",
)
def make_hub(
    source: str,
    truth_path: str,
    out: str,
    models: int,
    seed: int,
    min_classes: int,
    max_classes: int,
    noise: float,
    probabilities: float,
) -> None:
    """Make an index of many derived models, real ones restricted to some of their classes; no model is run."""
    from engine.index import refuse_occupied
    from query.evaluate.derived import TRUTH_FILE, HubSettings, make_hub
    from query.evaluate.truth import read_truth

    settings = HubSettings(models, seed, min_classes, max_classes, noise, probabilities)
    target = Path(out).expanduser()
    refuse_occupied(target)
    truth = read_truth(Path(truth_path).expanduser())
    with progress("deriving", "models") as advance:
        made = make_hub(Path(source).expanduser(), truth, target, settings, advance)
    note(f"{target}: {made.models:,} models, {made.outputs:,} outputs, {made.known:,} of known class")
    if made.skipped:
        note(f"{made.skipped:,} models left out: none of their outputs is usable")
    note(f"next: hubhound eval retrieval --index {target} --truth {target / TRUTH_FILE}")


def _prompts(bench: Bench, values: Sequence[str], settings: Settings) -> tuple[list[Case], tuple[Query, ...]]:
    """One case for each choice of templates."""
    from query.evaluate.embedding import template_cases
    from query.evaluate.sweeps import Case

    chosen = template_cases(values, bench.index)
    zoo, queries = bench.load()
    return [Case(label, zoo, bench.embed(templates), settings, bench.images) for label, templates in chosen], queries


def _sources(bench: Bench, also: Sequence[str], settings: Settings) -> tuple[list[Case], tuple[Query, ...]]:
    """One case for each index; the queries that all of them can answer."""
    from query.evaluate.sweeps import Case

    benches = [bench, *(bench.beside(path) for path in also)]
    loaded = [one.load() for one in benches]
    zoos = {one.name: zoo for one, (zoo, _) in zip(benches, loaded, strict=True)}
    queries = bench.answerable(loaded[0][1], zoos)
    sources = [one.index.manifest.probes.source for one in benches]
    # The same source with another number of probes or another seed is told apart by the index.
    labels = sources if len(set(sources)) == len(sources) else [one.name for one in benches]
    pairs = zip(labels, benches, strict=True)
    return [Case(label, zoos[one.name], one.embed(), settings, one.images) for label, one in pairs], queries


def _numbers(values: Sequence[str]) -> tuple[int, ...]:
    for value in values:
        if len(value.strip()) > _DIGITS:
            raise click.BadParameter(
                f"{value.strip()[:_DIGITS]}... is not a whole number of at most {_DIGITS} digits", param_hint="--values"
            )
        if not value.strip().isdecimal() or not int(value):
            raise click.BadParameter(f"{value.strip()!r} is not a whole number from 1", param_hint="--values")
    return tuple(dict.fromkeys(int(value) for value in values))
