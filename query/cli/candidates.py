"""``hubhound index candidates``: a graph on the server that finds candidates in very large indexes."""

from __future__ import annotations

import click

from query.cli.output import bars, data, data_json, format_option, index_option, note, table
from query.cli.places import index_folder


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
them; where there are candidates already, the command only brings them up to date, unless --again is given."""
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
    from engine.joint_making import MakingSettings, drop_candidates, has_candidates, make_candidates, update_candidates
    from engine.joint_recall import NEEDED, JointRecall

    folder = index_folder(index_path)
    if drop:
        note("the candidates are removed" if drop_candidates(folder) else "there were no candidates")
        return
    settings = MakingSettings(rank, concepts, held_out, oversampling, storage, seed, build_timeout_s)  # type: ignore[arg-type]
    with bars() as bar:
        there = None if again or not has_candidates(folder) else JointRecall.read(folder)
        if there is not None:
            missing, stale = update_candidates(folder, bar)
        recall = there or make_candidates(folder, settings, bar)
    if there is not None and not missing and not stale:
        note(
            f"the candidates are up to date; recall was measured on {recall.measured_at:%Y-%m-%d}: --again does so anew"
        )
    elif there is not None:
        note(
            f"{missing:,} outputs were missing and are put in, {stale:,} of models that are gone are taken out; recall "
            f"is that of {recall.measured_at:%Y-%m-%d}, with {recall.outputs:,} outputs: --again measures it anew"
        )
    if form == "json":
        data_json({**recall.model_dump(mode="json"), "sufficient": recall.sufficient})
    elif form == "quiet":
        data(f"{min(recall.recall.values(), default=0.0):.4f}")
    else:
        rows = [(f"recall of the best {k}", f"{share:.4f}") for k, share in recall.recall.items()]
        rows += [
            ("outputs", f"{recall.outputs:,}"),
            ("in the graph", f"{recall.in_graph:,}"),
            ("longer than expected", f"{recall.overlong:,}"),
            ("oversampling", f"{recall.oversampling:g}"),
            ("breadth of the search", str(recall.breadth)),
        ]
        table(None, ("candidates", ("", "right")), rows)
    if not recall.in_graph and form == "table":
        note("the server has made no graph for so few outputs: it compares all of them, and that is what was measured")
    if not recall.sufficient:
        note(
            f"recall is below {NEEDED}: candidates are used only where --engine candidates asks for them; "
            "try a higher --oversampling or --rank"
        )
