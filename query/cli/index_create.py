"""``hubhound index create`` and ``rebuild``: make an index, in a folder or on a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from query.cli.output import METHOD_NAMES, bars, data, data_json, format_option, index_option, note
from query.cli.places import index_folder, server_choices

Function = TypeVar("Function", bound=Callable[..., Any])

DEVICE = click.option(
    "--device", default="auto", show_default=True, envvar="HUBHOUND_DEVICE", help="auto, cpu, cuda, cuda:1, mps."
)


def spread_options(function: Function) -> Function:
    """Adds how a new index on a server is spread and kept."""
    for name, told in (
        ("--write-consistency", "Replicas that must have a write before it counts."),
        ("--replicas", "Copies of every shard, on as many nodes."),
        ("--shards", "Parts that the outputs of a new index on a server are spread over, at best a multiple of nodes."),
    ):
        function = click.option(name, type=click.IntRange(min=1), default=1, show_default=True, help=told)(function)
    return function


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


def background_phrases(path: str | None, count: int, seed: int) -> tuple[tuple[str, ...], str]:
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


@click.command(
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
@spread_options
@format_option
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
    form: str,
    **spread: int,
) -> None:
    """Make an empty index from a probe set and an encoder.

    On a server (--index qdrant://HOST:PORT/NAME) the probe images are kept there, too, for every machine that adds
    models.
    """
    from engine.creation import create_index
    from engine.index import IndexSettings
    from engine.remote_creation import new_index
    from engine.store.address import ServerAddress

    server_choices(index_path, **spread)
    prompts = _templates(templates)
    names, source = background_phrases(background, background_size, seed)
    settings = IndexSettings(top_r, method, responses, prompts, names, source, nearest, normalise)
    with bars() as bar, new_index(index_path, spread, bar("to the server", "files")) as folder:
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
            copy_images=ServerAddress.is_server(index_path),
        )
    manifest = index_.manifest
    if form == "json":
        data_json({"index": index_path, "manifest": manifest.model_dump(mode="json")})
    elif form == "quiet":
        data(index_path)
    note(
        f"{index_path}: {manifest.probes.count} probes, {manifest.encoder.dimension} dimensions, "
        f"{manifest.background.count} background phrases"
    )
    note(f"next: hubhound index add --index {index_path} MODEL...")


@click.command(
    epilog="""
\b
Examples:
  hubhound index rebuild --index zoo --to zoo-r100 --top-r 100
  hubhound index rebuild --index zoo --to zoo-siglip --encoder open_clip:hf-hub:timm/ViT-B-16-SigLIP
"""
)
@index_option
@click.option(
    "--to", "target", type=click.Path(), required=True, help="The new index: a folder or qdrant://HOST:PORT/NAME."
)
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
@spread_options
@format_option
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
    form: str,
    **spread: int,
) -> None:
    """Make a new index with other settings from the responses that an index has kept; no model is run."""
    from engine.creation import create_like
    from engine.index import Index, IndexSettings
    from engine.rebuild import rebuild as fill
    from engine.remote import is_index
    from engine.remote_creation import new_index
    from engine.store.address import ServerAddress

    server_choices(target, **spread)
    source = index_folder(index_path)
    old = Index(source)
    manifest = old.manifest
    phrases = old.background().names, manifest.background.source
    if background is not None:
        phrases = background_phrases(background, 0, 0)
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
        if not is_index(target):  # else an earlier run was interrupted: fill in the rest
            with new_index(target, spread, bar("to the server", "files")) as folder:
                create_like(
                    old,
                    folder,
                    settings,
                    encoder_spec or manifest.encoder.spec,
                    device=device,
                    probe_folder=Path(probe_folder) if probe_folder else None,
                    embedding=bar("embedding probes", "images"),
                    copy_images=ServerAddress.is_server(target),
                )
        count = fill(source, index_folder(target), bar("rebuilding", "models"))
    if form == "json":
        data_json({"index": index_path, "to": target, "models": count})
    elif form == "quiet":
        data(target)
    note(f"{target}: {count} models made again from responses")
