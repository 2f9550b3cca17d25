"""``hubhound index``: make, fill and check an index."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from query.cli.add import add
from query.cli.output import (
    METHOD_NAMES,
    bars,
    data,
    data_json,
    format_option,
    index_option,
    note,
    progress,
    size,
    table,
)

if TYPE_CHECKING:
    from engine.descriptors import FloatArray

DEVICE = click.option(
    "--device", default="auto", show_default=True, envvar="HUBHOUND_DEVICE", help="auto, cpu, cuda, cuda:1, mps."
)


@click.group()
def index() -> None:
    """Make, fill and check an index."""


index.add_command(add)


def _templates(path: str | None) -> tuple[str, ...]:
    from engine.concepts import DEFAULT_TEMPLATES
    from engine.errors import InputError
    from engine.textfiles import read_lines

    if path is None:
        return DEFAULT_TEMPLATES
    templates = tuple(read_lines(Path(path), "template"))
    if not templates:
        raise InputError(f"the template file {path} is empty: write one template with {{}} a line")
    return templates


FEW = 100
"""With fewer background phrases margins are rough."""


def _background(path: str | None, count: int, seed: int) -> tuple[tuple[str, ...], str]:
    """Phrases, and where they come from."""
    names, source = _phrases(path, count, seed)
    if len(names) < FEW:
        note(f"a background of {len(names)} phrases is small: margins will be rough, some hundreds are better")
    return names, source


def _phrases(path: str | None, count: int, seed: int) -> tuple[tuple[str, ...], str]:
    from engine.calibration import draw_background
    from engine.textfiles import read_lines

    if path is None:
        return draw_background(count, seed), f"imagenet21k:{count}@seed={seed}"
    return tuple(dict.fromkeys(read_lines(Path(path), "background"))), path


BACKGROUND = click.option(
    "--background", metavar="FILE", help="Phrases, one a line; by default class names of ImageNet-21k."
)
BACKGROUND_SIZE = click.option(
    "--background-size", type=click.IntRange(min=11), default=500, show_default=True, help="How many names are drawn."
)
SEED = click.option("--seed", type=int, default=0, show_default=True, help="Of every draw.")
NEAREST = click.option(
    "--nearest",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="How many of the nearest background phrases make the hubness.",
)
METHODS = click.Choice(METHOD_NAMES)
NORMALISATIONS = click.Choice(["divisive", "none"])


@index.command(
    epilog="""
\b
Examples:
  hubhound index create --index zoo --probes photos/ --encoder open_clip:ViT-B-32/laion2b_s34b_b79k
  hubhound index create --index zoo --probes dead-leaves:2000 --encoder open_clip:local-dir:my-clip
  hubhound index create --index zoo --probes hf:zh-plus/tiny-imagenet:valid:4000 --encoder open_clip:hf-hub:timm/ViT-B-16-SigLIP
"""  # noqa: E501
)
@index_option
@click.option(
    "--probes",
    "probe_source",
    required=True,
    metavar="P",
    help="A folder of images, hf:ORG/DATASET:SPLIT:N or dead-leaves:N.",
)
@click.option(
    "--encoder",
    "encoder_spec",
    required=True,
    metavar="E",
    help="open_clip:ARCH/PRETRAINED, open_clip:hf-hub:ORG/NAME or open_clip:local-dir:FOLDER.",
)
@click.option("--top-r", type=click.IntRange(min=1), default=50, show_default=True, help="Probes kept of each output.")
@BACKGROUND
@BACKGROUND_SIZE
@NEAREST
@click.option(
    "--templates", metavar="FILE", help="Prompt templates with {}, one a line; their embeddings are averaged."
)
@click.option("--method", type=METHODS, default="whitened", show_default=True, help="The default method of searches.")
@click.option(
    "--normalise",
    type=NORMALISATIONS,
    default="divisive",
    show_default=True,
    help="Divide each probe's responses by their spread over a model's outputs; none for the ProbeLog paper's own.",
)
@click.option(
    "--responses",
    type=click.Choice(["keep", "drop"]),
    default="keep",
    show_default=True,
    help="Archive the full responses, so that index rebuild needs no models.",
)
@click.option("--skip-bad", is_flag=True, help="Leave out images that cannot be read instead of stopping.")
@SEED
@DEVICE
def create(
    index_path: str,
    probe_source: str,
    encoder_spec: str,
    top_r: int,
    background: str | None,
    background_size: int,
    nearest: int,
    templates: str | None,
    method: str,
    normalise: str,
    responses: str,
    skip_bad: bool,
    seed: int,
    device: str,
) -> None:
    """Make an empty index from a probe set and an encoder."""
    from engine.creation import create_index
    from engine.index import IndexSettings, refuse_occupied

    folder = Path(index_path).expanduser()
    refuse_occupied(folder)
    prompts = _templates(templates)
    names, source = _background(background, background_size, seed)
    settings = IndexSettings(top_r, method, responses, prompts, names, source, nearest, normalise)
    with bars() as bar:
        index_ = create_index(
            folder,
            probe_source,
            encoder_spec,
            settings,
            seed=seed,
            skip_bad=skip_bad,
            device=device,
            gathering=bar("gathering probes", "images"),
            embedding=bar("embedding probes", "images"),
            skipped=lambda error: note(f"left out: {error}"),
        )
    manifest = index_.manifest
    note(
        f"{folder}: {manifest.probes.count} probes, {manifest.encoder.dimension} dimensions, "
        f"{manifest.background.count} background phrases"
    )
    note(f"next: hubhound index add --index {folder} MODEL...")


@index.command()
@index_option
@click.option("--hubness", "with_hubness", is_flag=True, help="Tell how evenly answers fall on outputs; takes a scan.")
@format_option
def info(index_path: str, with_hubness: bool, form: str) -> None:
    """Say what an index was made with and what is in it."""
    from engine.errors import HubhoundError
    from engine.index import Index
    from engine.snapshot import Snapshot
    from query.index_facts import crawl_facts, index_facts

    folder = Path(index_path).expanduser()
    opened = Index(folder)
    snapshot = Snapshot.open(folder / "snapshots")
    if form == "quiet":
        for model in snapshot.models if snapshot else ():
            data(f"{model.repo}@{model.revision}")
        return
    try:
        crawl = crawl_facts(opened)
    except HubhoundError as error:  # what the index holds can be told all the same
        note(f"the crawl into this index is not shown: {error}")
        crawl = None
    facts = index_facts(opened, snapshot, opened.knowledge(), crawl)
    if with_hubness:
        from query.hubness import hubness

        found = hubness(snapshot, opened.background(snapshot.background), opened.manifest.method) if snapshot else None
        facts = facts.model_copy(update={"hubness": found})
    if form == "json":
        data_json(facts.to_json())
        return
    manifest = facts.manifest
    originals = len(snapshot.copies) if snapshot else 0
    rows = [
        ("models", f"{facts.models}  ({_counted(facts.libraries) or 'none'})"),
        ("licences", _counted(facts.licences) or "none"),
        ("copies", f"{facts.copies:,}  (of {originals:,} of these models)" if originals else "none"),
        ("outputs", f"{facts.outputs:,}, {facts.left_out} left out"),
        ("probes", f"{manifest.probes.count} from {manifest.probes.source}"),
        ("encoder", f"{manifest.encoder.spec}, {manifest.encoder.dimension} dimensions"),
        ("kept probes", f"{manifest.top_r} an output"),
        ("method", f"{manifest.method}, {manifest.normalisation} normalisation"),
        ("background", f"{manifest.background.count} phrases from {manifest.background.source}"),
        ("snapshot", f"generation {facts.generation}"),
        (
            "tasks",
            f"{facts.tasks}, {facts.profiles} profiles of {facts.profiled_models} models, "
            f"{facts.performance} values of performance",
        ),
        ("on disk", ", ".join(f"{part} {size(bytes_)}" for part, bytes_ in facts.bytes.items())),
    ]
    if facts.hubness:
        rows.append(("hubness", f"{facts.hubness.half:,} outputs give half of the answers"))
    table(str(folder), ["", ""], rows)


def _counted(names: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(names.items()))


@index.command()
@index_option
@click.option("--format", "form", type=click.Choice(["table", "json", "quiet"]), default="table", show_default=True)
def models(index_path: str, form: str) -> None:
    """List every model, also copies of others and those that failed or were refused, with the reason."""
    from engine.writer import IndexWriter

    with IndexWriter(Path(index_path).expanduser()) as writer:
        records = writer.store.models()
        lost = {copy.repo for copy in writer.lost_copies()}
    if form == "json":
        data_json([json.loads(record.model_dump_json()) for record in records])
    elif form == "quiet":
        for record in records:
            data(f"{record.repo}@{record.revision}")
    else:
        rows = [
            (
                r.repo,
                r.revision[:12],
                f"copy of {r.copy_of}" if r.copy_of else r.state.value,
                str(r.outputs),
                r.library or "-",
                "the original is gone or has changed: add it again" if r.repo in lost else r.detail or "",
            )
            for r in records
        ]
        table(None, ["model", "revision", "state", ("outputs", "right"), "library", "why"], rows)


@index.command()
@index_option
def verify(index_path: str) -> None:
    """Check files, probes, store and snapshot against each other; exit status 1 if something is wrong."""
    from engine.errors import IndexUnusableError
    from engine.verify import verify as check

    folder = Path(index_path).expanduser()
    with progress("checking models") as advance:
        problems = check(folder, advance)
    for problem in problems:
        data(problem)
    if problems:
        raise IndexUnusableError(f"{folder}: {len(problems)} problem(s), see above")
    note(f"{folder} is whole")


@index.command()
@index_option
def snapshot(index_path: str) -> None:
    """Write the snapshot that queries read anew from the store."""
    import shutil

    from engine.writer import IndexWriter

    folder = Path(index_path).expanduser()
    with IndexWriter(folder) as writer:
        shutil.rmtree(folder / "snapshots", ignore_errors=True)  # a damaged generation must not be copied from
        written = writer.snapshot()
    if written is not None:
        note(f"generation {written.number}: {len(written):,} outputs of {len(written.models)} models")


@index.command(
    epilog="""
\b
Examples:
  hubhound index calibrate --index zoo --background phrases.txt
  hubhound index calibrate --index zoo --background-size 1000 --seed 3
"""
)
@index_option
@BACKGROUND
@BACKGROUND_SIZE
@NEAREST
@SEED
@DEVICE
def calibrate(
    index_path: str, background: str | None, background_size: int, nearest: int, seed: int, device: str
) -> None:
    """Compute every output's calibration against another background; no model is loaded."""
    from engine.index import describe_background
    from engine.writer import IndexWriter

    folder = Path(index_path).expanduser()
    names, source = _background(background, background_size, seed)
    with IndexWriter(folder) as writer, progress("calibrating", "models") as advance:
        opened = writer.index

        def encode(texts: Sequence[str]) -> FloatArray:
            return opened.load_encoder(device).encode_texts(texts, opened.manifest.encoder.templates)

        made = describe_background(names, nearest, opened.probe_embeddings, encode)
        writer.set_background(made, source)
        count = writer.recalibrate(advance)
        writer.finish()
    note(f"{folder}: {count} models calibrated against {len(names)} phrases")


@index.command(
    epilog="""
\b
Examples:
  hubhound index rebuild --index zoo --to zoo-r100 --top-r 100
  hubhound index rebuild --index zoo --to zoo-siglip --encoder open_clip:hf-hub:timm/ViT-B-16-SigLIP
"""
)
@index_option
@click.option("--to", "target", type=click.Path(), required=True, help="Folder of the new index.")
@click.option("--top-r", type=click.IntRange(min=1), help="Probes kept of each output.")
@click.option("--method", type=METHODS, help="The default method of searches.")
@click.option("--normalise", type=NORMALISATIONS, help="What is done to responses before they are described.")
@click.option("--encoder", "encoder_spec", metavar="E", help="Another encoder.")
@click.option("--templates", metavar="FILE", help="Other prompt templates.")
@click.option("--background", metavar="FILE", help="Other background phrases.")
@click.option("--nearest", type=click.IntRange(min=1), help="How many of the nearest make the hubness.")
@click.option("--responses", type=click.Choice(["keep", "drop"]), help="Whether the new index keeps them too.")
@click.option("--probes", "probe_folder", type=click.Path(), help="Where the probe images are now, if they were moved.")
@DEVICE
def rebuild(
    index_path: str,
    target: str,
    top_r: int | None,
    method: str | None,
    normalise: str | None,
    encoder_spec: str | None,
    templates: str | None,
    background: str | None,
    nearest: int | None,
    responses: str | None,
    probe_folder: str | None,
    device: str,
) -> None:
    """Make a new index with other settings from the responses that an index has kept; no model is run."""
    from engine.creation import create_like
    from engine.index import Index, IndexSettings
    from engine.rebuild import rebuild as fill

    source, folder = Path(index_path).expanduser(), Path(target).expanduser()
    old = Index(source)
    manifest = old.manifest
    phrases = old.background().names, manifest.background.source
    if background is not None:
        phrases = _background(background, 0, 0)
    settings = IndexSettings(
        top_r or manifest.top_r,
        method or manifest.method,
        responses or manifest.responses,
        _templates(templates) if templates else manifest.encoder.templates,
        *phrases,
        nearest or manifest.background.k,
        normalise or manifest.normalisation,
    )
    with bars() as bar:
        if not (folder / "manifest.json").exists():  # else an earlier run was interrupted: fill in the rest
            create_like(
                old,
                folder,
                settings,
                encoder_spec or manifest.encoder.spec,
                device=device,
                probe_folder=Path(probe_folder) if probe_folder else None,
                embedding=bar("embedding probes", "images"),
            )
        count = fill(source, folder, bar("rebuilding", "models"))
    note(f"{folder}: {count} models made again from responses")
