"""``hubhound index``: make, fill and check an index."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from query.cli.add import add
from query.cli.candidates import candidates
from query.cli.index_copy import backup, copy, export, migrate, restore
from query.cli.index_create import (
    BACKGROUND,
    BACKGROUND_SIZE,
    DEVICE,
    NEAREST,
    SEED,
    background_phrases,
    create,
    rebuild,
)
from query.cli.index_delete import delete
from query.cli.output import (
    data,
    data_json,
    format_option,
    index_option,
    note,
    progress,
    size,
    table,
)
from query.cli.places import index_folder

if TYPE_CHECKING:
    from engine.descriptors import FloatArray


@click.group()
def index() -> None:
    """Make, fill and check an index."""


for command in (create, add, rebuild, copy, backup, restore, export, delete, migrate, candidates):
    index.add_command(command)


@index.command()
@index_option
@click.option("--hubness", "with_hubness", is_flag=True, help="Tell how evenly answers fall on outputs; takes a scan.")
@format_option
def info(index_path: str, with_hubness: bool, form: str) -> None:
    """Say what an index was made with and what is in it."""
    from engine.errors import HubhoundError
    from engine.index import Index
    from query.index_facts import crawl_facts, index_facts, server_facts

    opened = Index(index_folder(index_path))
    with progress("reading what has changed", "models") as advance:
        snapshot = opened.current_snapshot(advance)
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
    server = server_facts(opened)
    if form == "json":
        data_json(facts.to_json() | ({} if server is None else {"server": server.model_dump(mode="json")}))
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
        ("on this disk" if server else "on disk", ", ".join(f"{p} {size(b)}" for p, b in facts.bytes.items())),
    ]
    if server is not None:
        recall = sorted(f"best {k} {share:.1%}" for k, share in server.recall.items())
        rows.append(("server", f"{server.models:,} records, {server.outputs:,} outputs, format {server.format}"))
        spread = f"shards {server.shards}, replicas {server.replicas}, write consistency {server.write_consistency}"
        rows.append(("spread", spread))
        rows.append(("candidates", f"recall of the {', '.join(recall)}" if recall else "none"))
        if server.missing:
            rows.append(("not candidates", f"{server.missing:,} models: index candidates puts them in"))
        if server.incomplete:
            rows.append(("incomplete", f"{', '.join(server.incomplete)}: index verify says what is missing"))
    if facts.hubness:
        rows.append(("hubness", f"{facts.hubness.half:,} outputs give half of the answers"))
    table(opened.name, ["", ""], rows)


def _counted(names: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(names.items()))


@index.command()
@index_option
@format_option
def models(index_path: str, form: str) -> None:
    """List every model, also copies of others and those that failed or were refused, with the reason."""
    from engine.writer import IndexWriter

    with IndexWriter(index_folder(index_path)) as writer:
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


@index.command(
    epilog="""
\b
Examples:
  hubhound index verify --index zoo
  hubhound index verify --index qdrant://db.example:6333/zoo --format json
  hubhound index verify --index zoo --repair
"""
)
@index_option
@click.option("--repair", "mend", is_flag=True, help="First mend what needs no model to be run; it is told.")
@format_option
def verify(index_path: str, mend: bool, form: str) -> None:
    """Check files, probes, store and snapshot against each other; exit status 1 if something is wrong.

    --repair removes outputs and responses that killed runs have left and no record names, ends a calibration that was
    killed, and brings the snapshot up to date. Then everything is checked.
    """
    from engine.errors import IndexUnusableError
    from engine.verify import repair
    from engine.verify import verify as check

    folder = index_folder(index_path)
    mended: list[str] = []
    if mend:
        with progress("mending") as advance:
            mended = repair(folder, advance)
        for line in mended:
            note(line)
    with progress("checking models") as advance:
        problems = check(folder, advance)
    if form == "json":
        data_json({"index": index_path, "whole": not problems, "problems": problems, "repair": mended})
    else:
        for problem in problems:
            data(problem)
    if problems:
        raise IndexUnusableError(f"{index_path}: {len(problems)} problem(s), see above")
    note(f"{index_path} is whole")


@index.command()
@index_option
@format_option
def snapshot(index_path: str, form: str) -> None:
    """Write the snapshot that queries read anew from the store."""
    import shutil

    from engine.writer import IndexWriter

    folder = index_folder(index_path)
    with IndexWriter(folder) as writer:
        shutil.rmtree(folder / "snapshots", ignore_errors=True)  # a damaged generation must not be copied from
        written = writer.snapshot()
    number, outputs, models = (0, 0, 0) if written is None else (written.number, len(written), len(written.models))
    if form == "json":
        data_json({"index": index_path, "generation": number, "outputs": outputs, "models": models})
    elif form == "quiet":
        data(str(number))
    if written is None:
        note(f"{index_path} has no outputs: there is nothing to write")
    else:
        note(f"generation {number}: {outputs:,} outputs of {models:,} models")


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
@format_option
def calibrate(
    index_path: str, background: str | None, background_size: int, nearest: int, seed: int, device: str, form: str
) -> None:
    """Compute every output's calibration against another background; no model is loaded."""
    from engine.index import background_part, describe_background
    from engine.writer import IndexWriter

    folder = index_folder(index_path)
    names, source = background_phrases(background, background_size, seed)
    with IndexWriter(folder) as writer, progress("calibrating", "models") as advance:
        opened = writer.index

        def encode(texts: Sequence[str]) -> FloatArray:
            return opened.load_encoder(device).encode_texts(texts, opened.manifest.encoder.templates)

        made = describe_background(names, nearest, opened.probe_embeddings, encode)
        writer.set_background(made, source)
        count = writer.recalibrate(advance)
        writer.finish()
        part = background_part(made, source)
    if form == "json":
        data_json({"index": index_path, "models": count, "background": part.model_dump(mode="json")})
    elif form == "quiet":
        data(part.fingerprint)
    note(f"{index_path}: {count} models calibrated against {len(names)} phrases")
