"""``hubhound index candidates``: a graph on the server that finds candidates in very large indexes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from query.cli.output import bars, data, data_json, format_option, index_option, note, table
from query.cli.places import index_folder

if TYPE_CHECKING:
    from engine.joint_recall import JointRecall


@click.command(
    epilog="""
\b
Examples:
  hubhound index candidates --index qdrant://localhost/zoo
  hubhound index candidates --index qdrant://localhost/zoo --again --storage int8 --oversampling 10
  hubhound index candidates --index qdrant://localhost/zoo --drop

Every output becomes one vector that stands for both kinds of evidence, in a collection with a graph. A search asks it
for candidates and compares those exactly. How many of the exact best 10 and 100 are among them is measured with names
that are not in the background; below 0.99 the command says so. Models that are added later are put in by whoever adds
them; where there are candidates that fit, the command only puts in what they miss and takes out what is gone, unless
--again is given. They belong to one background: with another they are made anew."""
)
@index_option
@click.option("--rank", type=click.IntRange(1, 1024), default=128, show_default=True, help="Numbers of the local code.")
@click.option(
    "--concepts", type=click.IntRange(min=50), help="Names to fit the code to; by default 2000, or more with E's size."
)
@click.option(
    "--held-out", type=click.IntRange(1, 1000), default=100, show_default=True, help="Names to measure recall with."
)
@click.option(
    "--oversampling",
    type=click.FloatRange(1, 1000),
    default=5.0,
    show_default=True,
    help="Candidates for each hit that is wanted; there are at least 100.",
)
@click.option(
    "--storage",
    type=click.Choice(["float32", "float16", "int8"]),
    default="float16",
    show_default=True,
    help="Numbers that the graph compares.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of every draw.")
@click.option(
    "--build-timeout",
    "build_timeout_s",
    type=click.FloatRange(min=0),
    default=86_400.0,
    show_default=True,
    help="Seconds that the server may take to build the graph.",
)
@click.option("--again", is_flag=True, help="Make and measure them again, though there are some that fit.")
@click.option("--drop", is_flag=True, help="Remove the candidates.")
@format_option
def candidates(
    index_path: str,
    rank: int,
    concepts: int | None,
    held_out: int,
    oversampling: float,
    storage: str,
    seed: int,
    build_timeout_s: float,
    again: bool,
    drop: bool,
    form: str,
) -> None:
    """Make and measure the graph by which a very large index on a server is searched."""
    from engine.joint_making import (
        MakingSettings,
        candidates_now,
        drop_candidates,
        has_candidates,
        make_candidates,
        update_candidates,
    )
    from engine.joint_recall import JointRecall

    folder = index_folder(index_path)
    if drop:
        dropped = drop_candidates(folder)
        if form == "json":
            data_json({"index": index_path, "dropped": dropped})
        else:
            note("the candidates are removed" if dropped else "there were no candidates")
        return
    settings = MakingSettings(rank, concepts, held_out, oversampling, storage, seed, build_timeout_s)  # type: ignore[arg-type]
    missing = stale = None
    with bars() as bar:
        there = None if again or not has_candidates(folder) else JointRecall.read(folder)
        if there is not None:
            missing, stale = update_candidates(folder, bar)
        recall = there or make_candidates(folder, settings, bar)
    outputs, in_graph = candidates_now(folder)
    if form == "json":
        now = {"missing": missing, "stale": stale, "now": {"outputs": outputs, "in_graph": in_graph}}
        data_json({"index": index_path, **recall.model_dump(mode="json"), "sufficient": recall.sufficient, **now})
    elif form == "quiet":
        data(f"{min(recall.recall.values(), default=0.0):.4f}")
    else:
        rows = [(f"recall of the best {k}", f"{share:.4f}") for k, share in recall.recall.items()]
        rows += [
            ("measured on", f"{recall.measured_at:%Y-%m-%d}"),
            ("outputs then", f"{recall.outputs:,}"),
            ("of them in the graph", f"{recall.in_graph:,}"),
            ("outputs now", f"{outputs:,}"),
            ("of them in the graph", f"{in_graph:,}"),
            ("longer than expected", f"{recall.overlong:,}"),
            ("oversampling", f"{recall.oversampling:g}"),
            ("breadth of the search", str(recall.breadth)),
        ]
        table(None, ("candidates", ("", "right")), rows)
    for line in _notes(recall, missing, stale, outputs, in_graph, form):
        note(line)


def _notes(
    recall: JointRecall, missing: int | None, stale: int | None, outputs: int, in_graph: int, form: str
) -> Iterator[str]:
    """What is to be said beside the figures."""
    from engine.joint_recall import NEEDED

    if missing is not None and not missing and not stale:
        measured = f"recall was measured on {recall.measured_at:%Y-%m-%d}: --again does so anew"
        yield f"the candidates are up to date; {measured}"
    elif missing is not None:
        yield (
            f"{missing:,} outputs were missing and are put in, {stale:,} of models that are gone are taken out; recall "
            f"is that of {recall.measured_at:%Y-%m-%d}, with {recall.outputs:,} outputs: --again measures it anew"
        )
    if form == "table" and not in_graph:
        yield "the server has made no graph for so few outputs: it compares all of them, and that is what was measured"
    elif form == "table" and in_graph < outputs:
        yield f"{outputs - in_graph:,} outputs are not in the graph yet: the server compares them one by one"
    if form == "table" and recall.overlong:
        yield (
            f"{recall.overlong:,} outputs are longer than any that the code was fitted to: they are found a little too "
            "often; --again fits it to them"
        )
    if not recall.sufficient:
        yield (
            f"recall is below {NEEDED}: candidates are used only where --engine candidates asks for them; "
            "try a higher --oversampling or --rank"
        )
