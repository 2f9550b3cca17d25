"""``hubhound recommend``."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from query.cli.output import bars, data, data_json, format_option, index_option, note, table
from query.cli.places import index_folder
from query.cli.profile import pass_settings, passes_options

if TYPE_CHECKING:
    from indexers.towers import TowerSource
    from query.recommendation import Recommendation, Recommended

_SHOWN = 4  # source tasks of a model in a table
_NAMED = 5  # candidates that could not be ranked, in a note
_ROUGH = 0.5  # completeness gap from which the steps do not follow the path well
_WIDTH = 20  # of the longest bar


@click.command(
    epilog="""
\b
Examples:
  hubhound recommend --images photos/new-task/ --index zoo
  hubhound recommend --images one.jpg --images two.jpg --index zoo -k 3 --explain
  hubhound recommend --images photos/ --index zoo --max-params 200M --format json
  hubhound recommend --images photos/ --index zoo --candidates @shortlist.txt --gamma 10
"""
)
@click.argument("more_images", nargs=-1, metavar="[PATH]...")
@click.option(
    "--images", multiple=True, required=True, metavar="PATH", help="An image of the task, or a folder; repeatable."
)
@index_option
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="Models shown.")
@click.option(
    "--candidates",
    multiple=True,
    metavar="MODEL",
    help="Only these models; repeatable, @FILE has one a line. By default all that are known.",
)
@click.option("--max-params", metavar="N", help="Only models with at most so many parameters, such as 200M.")
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
@click.option("--explain", is_flag=True, help="Show what each block contributed: its importance and its deviation.")
@passes_options
@format_option
def recommend(
    more_images: tuple[str, ...],
    images: tuple[str, ...],
    index_path: str,
    k: int,
    candidates: tuple[str, ...],
    max_params: str | None,
    eta: float,
    gamma: float,
    explain: bool,
    form: str,
    **given: Any,
) -> None:
    """Rank the models that are known by how well they are predicted to do on a few images without labels.

    A model's blocks respond to the images as they do to those of some source tasks; its known ranks on these, weighted
    by likeness, predict its rank. Images that were asked about before cost nothing.
    """
    from engine.index import Index
    from query.recommend import RecommendRequest
    from query.recommend import recommend as answer_to
    from query.request import read_images
    from query.targets import TargetProfiler

    strange = [path for path in more_images if not Path(path).expanduser().exists()]
    if strange:
        raise click.UsageError(f"{strange[0]!r} is no image; models to choose from are named with --candidates")
    wanted = _candidates(candidates)
    shown = read_images((*images, *more_images))  # a shell makes several arguments of photos/*.jpg
    request = RecommendRequest(shown, tuple(wanted), k, _count(max_params), eta, gamma, explain=explain)
    index = Index(index_folder(index_path))
    with bars() as bar:
        current = bar("reading", "images")

        def tell(model: str, what: str, done: float, total: float) -> None:
            current(done, total, f"{model}: {what}")

        settings = pass_settings(given)
        folders = {name: one for name, one in wanted.items() if one.classifier and one.classifier.folder}
        profiler = TargetProfiler(index, given["device"], settings, folders, tell)
        found = answer_to(index, request, profiler, index_path)
    if form == "json":
        data_json(found.to_json())
    elif form == "quiet":
        for one in found.ranking:
            data(one.model)
    else:
        _show(found)
    _notes(found, form)


def _candidates(arguments: tuple[str, ...]) -> dict[str, TowerSource]:
    if not arguments:
        return {}
    from indexers.towers import expand_towers

    return {source.name: source for source in expand_towers(arguments)}


def _count(text: str | None) -> int | None:
    if text is None:
        return None
    units = {"K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9}
    upper = text.strip().upper()
    try:
        unit = upper[-1:] if upper[-1:] in units else ""
        value = float(upper.removesuffix(unit)) * units.get(unit, 1)
    except ValueError:
        value = -1.0
    if not 1 <= value < 1e18:
        raise click.BadParameter(f"{text!r} is not a number of parameters such as 200M", param_hint="--max-params")
    return int(value)


def _show(found: Recommendation) -> None:
    rows: list[list[str | list[str]]] = []
    for one in found.ranking:
        decided = [f"{s.weight:4.0%} {s.task}: rank {s.rank:g} of {s.of}, D {s.divergence:.3f}" for s in one.sources]
        more = [f"and {len(decided) - _SHOWN} more (--format json has them)"] if len(decided) > _SHOWN else []
        rows.append([str(one.rank), one.model, f"{one.predicted_rank:.2f}", [*decided[:_SHOWN], *more]])
    table(None, [("", "right"), "model", ("predicted rank", "right"), "source tasks that decided"], rows)
    for one in found.ranking:
        if one.blocks:
            _show_blocks(one)


def _show_blocks(one: Recommended) -> None:
    blocks = one.blocks or ()
    most = max((block.importance for block in blocks), default=0.0) or 1.0
    furthest = max((block.deviation for block in blocks), default=0.0) or 1.0
    rows = [
        [
            block.block,
            f"{block.importance:.1%}",
            _bar(block.importance / most),
            f"{block.deviation:.3f}",
            _bar(block.deviation / furthest),
        ]
        for block in blocks
    ]
    table(
        f"{one.rank}. {one.model}",
        ["block", ("importance", "right"), "", ("deviation", "right"), ""],
        rows,
    )


def _bar(share: float) -> str:
    eighths = round(share * _WIDTH * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _notes(found: Recommendation, form: str) -> None:
    note(
        f"{_counted(found.candidates, 'model')} ranked for {_counted(len(found.target.images), 'image')} in "
        f"{found.seconds * 1000:.1f} ms; {found.profiled} profiles of images had to be computed"
    )
    if form != "table":  # json has them all, quiet is quiet
        return
    counts = {len(one.sources) for one in found.ranking}
    if counts == {1}:
        note("there is only one source task: it decides alone, whatever its weight")
    elif len(counts) > 1:
        fewest = min(found.ranking, key=lambda one: len(one.sources))
        note(
            f"models are judged by different source tasks, {fewest.model} by {len(fewest.sources)} of {max(counts)}: "
            "profile all on all tasks and import what is known of them there"
        )
    rough = [one for one in found.ranking if (one.completeness_gap or 0) > _ROUGH]
    if rough:
        note(
            f"the completeness gap of {len(rough)} is above {_ROUGH:.0%} ({rough[0].model}: "
            f"{rough[0].completeness_gap:.0%}): profiles with more --n-steps follow the path better"
        )
    for reason in dict.fromkeys(one.reason for one in found.left_out):
        same = [one for one in found.left_out if one.reason == reason]
        names = ", ".join(one.model for one in same[:_NAMED])
        more = f" and {len(same) - _NAMED} more" if len(same) > _NAMED else ""
        command = same[0].command or ""
        if len(same) > 1:
            command = command.replace(quote(same[0].model), "MODEL...")
        how = f": {command}" if command else ""
        note(f"not ranked, {reason} ({len(same)}): {names}{more}{how}")
