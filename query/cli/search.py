"""``hubhound search``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from engine.errors import InputError
from query.answers import Hit, ModelHit, Result, SearchAnswer, ServedAnswer, also
from query.cli.output import bars, data, data_json, format_option, index_option, method_option, note, table
from query.cli.places import index_folder

if TYPE_CHECKING:
    from engine.index import Index
    from engine.remote import Remote
    from query.cli.output import Advance
    from query.request import SearchRequest
    from query.search import Searcher
    from query.served import ServedSearcher

SHOWN = 12
"""How many matched concepts of a model a table shows, and with --explain how many copies."""


@click.command(
    epilog="""
\b
Examples:
  hubhound search "golden retriever" --index zoo
  hubhound search cat dog @concepts.txt --index zoo -k 3 --format json
  hubhound search "school bus" --index zoo --where library=timm --where max-parameters=10M --explain
  hubhound search --images photos/forklift/ --index zoo        # by example
  hubhound search forklift --images photos/forklift/ --index zoo --evidence-image why.png
  hubhound search cat dog car --level model --index zoo        # one model for all three
  hubhound search --images photos/forklift/ --rerank dcd --rerank-weight 0.3 --index zoo
  hubhound search --like timm/resnet50.a1_in1k#207 --index zoo
  hubhound search --like microsoft/resnet-18 --level model --index zoo
  hubhound search forklift --engine qdrant --index qdrant://db.example:6333/zoo
"""
)
@click.argument("concepts", nargs=-1, metavar="[CONCEPT]...")
@index_option
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="Hits per question.")
@click.option(
    "--images",
    multiple=True,
    metavar="PATH",
    help="An example image of the concept, or a folder of them; repeatable. With a CONCEPT: the mean of both.",
)
@click.option(
    "--like",
    "likes",
    multiple=True,
    metavar="MODEL[#OUTPUT]",
    help="Find what other models have that does the same, org/name#17 or org/name.",
)
@click.option(
    "--level",
    type=click.Choice(["output", "model"]),
    default="output",
    show_default=True,
    help="Find outputs, or models that cover the whole list of concepts, each by an output of its own.",
)
@click.option(
    "--require",
    type=click.Choice(["all", "any"]),
    help="With --level model: must every concept be covered, or does a model that lacks some only rank lower? "
    "[default: all; any with --like]",
)
@click.option(
    "--ceiling",
    type=click.FloatRange(min=0, min_open=True),
    help="With --level model: a margin above this counts a hundredth, so that models that cover the whole list evenly "
    "come first; with the method whitened, 4 found more on a large hub. By default margins count in full.",
)
@click.option(
    "--where",
    multiple=True,
    metavar="KEY=VALUE",
    help="model, library, licence, architecture (* and ? allowed), max-parameters, min-downloads, label=yes|no. "
    "Different keys must all hold, of one key any.",
)
@method_option
@click.option(
    "--evidence",
    type=click.Choice(["probes", "labels", "both"]),
    default="probes",
    show_default=True,
    help="What speaks for an output: what it responds to, what it is called, or both.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "scan", "qdrant", "candidates"]),
    default="auto",
    show_default=True,
    envvar="HUBHOUND_ENGINE",
    help="Of an index on a Qdrant server: scan compares all outputs here, for which they are fetched once, later only "
    "those that changed; qdrant has the server look through all outputs, fetches a few hundred, and says whether the "
    "answer is certified exact; candidates asks the graph that 'hubhound index candidates' made, and certifies "
    "nothing; auto scans up to 2,000,000 outputs and what was fetched before, takes qdrant for more, and above "
    "20,000,000 candidates that are good enough.  "
    "[env: HUBHOUND_ENGINE]",
)
@click.option(
    "--rerank",
    type=click.Choice(["dcd"]),
    help="With --images: reorder the best hits by how well each model's conductance covers the images. Every candidate "
    "is run on them and on its own best probes, which takes seconds each, once. See --rerank-weight.",
)
@click.option(
    "--rerank-weight",
    type=click.FloatRange(0, 1),
    help="Share of the conductance in the order of reranked hits; the margin has the rest.  [default: 0, which leaves "
    "the order as it is]",
)
@click.option("--rerank-top", type=click.IntRange(min=1), help="Hits that are reranked.  [default: 10]")
@click.option(
    "--models",
    "model_folders",
    multiple=True,
    type=click.Path(),
    metavar="DIR",
    help="With --rerank: where models are, folders in Hub layout; others are looked for where they were added from, or "
    "on the Hub.",
)
@click.option("--explain", is_flag=True, help="Show the probes behind each hit.")
@click.option(
    "--evidence-image",
    "sheet",
    type=click.Path(),
    metavar="FILE.png",
    help="Draw a contact sheet (.png, .jpg, .webp): the strongest probes of each hit, the concept beside the "
    "background's nearest.",
)
@format_option
def search(
    concepts: tuple[str, ...],
    index_path: str,
    k: int,
    images: tuple[str, ...],
    likes: tuple[str, ...],
    level: str,
    require: str | None,
    ceiling: float | None,
    where: tuple[str, ...],
    method: str | None,
    evidence: str,
    engine: str,
    rerank: str | None,
    rerank_weight: float | None,
    rerank_top: int | None,
    model_folders: tuple[str, ...],
    explain: bool,
    sheet: str | None,
    form: str,
) -> None:
    """Find the outputs of models that recognise each CONCEPT: a word, a phrase, or @FILE with one a line.

    Or find them by example images, or by an output that does the same; or find models that cover a list of concepts.

    The margin says how much closer the concept comes to the output than the background does: above 0 is closer than its
    nearest neighbours. The percentile is its standing among the output's background concepts, from the top.
    """
    from engine.index import Index
    from engine.probes import SUFFIXES
    from query.filters import parse_conditions
    from query.request import SearchRequest, read_concepts, read_images

    if not (concepts or images or likes):
        raise click.UsageError("there is nothing to search for: write a CONCEPT, or use --images or --like")
    if images:  # a shell makes several arguments of photos/*.jpg, and only the first belongs to the option
        more = tuple(text for text in concepts if Path(text).suffix.lower() in SUFFIXES and Path(text).is_file())
        images, concepts = images + more, tuple(text for text in concepts if text not in more)
    for text in concepts:
        if Path(text).suffix.lower() in SUFFIXES and Path(text).is_file():
            raise InputError(f"{text} is an image file: use --images {text} to search by example")
    if len(likes) > 1:
        raise click.UsageError("--like is one question: ask for one output or model at a time")
    like = likes[0] if likes else None
    request = SearchRequest(
        concepts=read_concepts(concepts),
        k=k,
        method=method,
        where=parse_conditions(where),
        explain=explain,
        images=read_images(images),
        like=like,
        level=level,  # type: ignore[arg-type]
        require=require,  # type: ignore[arg-type]
        evidence=evidence,  # type: ignore[arg-type]
        ceiling=ceiling,
    )
    request.check()
    if sheet:
        from query.contact_sheet import check_sheet_path

        check_sheet_path(Path(sheet).expanduser())
    index = Index(index_folder(index_path))
    reranking = None
    if rerank or rerank_weight is not None or rerank_top is not None or model_folders:
        from query.cli.reranking import Reranking

        reranking = Reranking.of(rerank, rerank_weight, rerank_top, model_folders, request)
    with bars() as bar:
        searcher = _searcher(index, engine, request, bar)
        bar("reading the question", "")  # the encoder may have to be loaded, which takes seconds
        questions = searcher.ask(request)
        answer = searcher.answer(reranking.widened(request) if reranking else request, questions)
        if reranking:
            answer = reranking.apply(index, searcher.snapshot, answer, request, bar("reranking", ""))
    if sheet:
        from engine.distance import check_method
        from query.contact_sheet import write_contact_sheet
        from query.panels import panels

        used = check_method(method or index.manifest.method)
        drawn = panels(index, searcher.snapshot, searcher.background, used, questions, answer)
        asked = ", ".join(name for question in questions for name in question.names[:SHOWN])
        write_contact_sheet(Path(sheet).expanduser(), drawn, f"like {like}" if like else asked)
        found = sum(
            1 if isinstance(hit, Hit) else sum(matched.output is not None for matched in hit.outputs)
            for result in answer.results
            for hit in result.hits
        )
        whole = "" if len(drawn) == found else f" of {found:,}"
        note(f"{sheet}: {len(drawn)}{whole} output{'' if found == 1 else 's'} with their strongest probes")
        gone = {tile.image for panel in drawn for tile in panel.tiles if not tile.image.is_file()}
        if gone:
            note(f"{len(gone)} of the probe images are no longer in {index.probe_folder}: put them back to see them")
    _write(answer, request, form)
    if form == "table":
        _summary(answer, request, index_path)


def _write(answer: SearchAnswer, request: SearchRequest, form: str) -> None:
    if form == "json":
        data_json(answer.to_json())
        return
    for result in answer.results:
        if form == "table":
            show = _show_models if request.level == "model" else _show
            show(result, request.explain)
            continue
        for found in result.models:
            data(found.model)
        for hit in result.outputs:
            data(f"{hit.model}#{hit.output}")
    if form == "quiet" and isinstance(answer, ServedAnswer) and answer.why:
        note(_how(answer))


def _searcher(
    index: Index, engine: str, request: SearchRequest, bar: Callable[[str, str], Advance]
) -> Searcher | ServedSearcher:
    """What answers a request."""
    from query.search import Searcher

    if index.remote is not None or engine not in {"auto", "scan"}:
        from query.served import ServedSearcher, choose_engine

        chosen = choose_engine(engine, index, request)
        if chosen != "scan" and index.remote is not None:
            if chosen == "candidates":
                return _by_candidates(index, index.remote)
            return ServedSearcher(index, index.remote.store, engine=chosen)
        index.snapshot(bar("fetching what has changed", "models"))
    return Searcher(index, progress=bar("embedding labels", "labels") if request.evidence != "probes" else None)


def _by_candidates(index: Index, remote: Remote) -> ServedSearcher:
    """What answers by the graph of candidates; it says how far the graph can be trusted."""
    from engine.store.joint import need_joint
    from query.served import ServedSearcher

    joint = need_joint(index.folder, remote.store, index.manifest.background.fingerprint)
    recall = {} if joint.recall is None else joint.recall.recall
    shares = ", ".join(f"{share:.4f} of the best {k}" for k, share in recall.items())
    why = f"candidates are approximate: measured recall {shares or 'unknown'}"
    missing, what = joint.joined.missing(), "model"
    if not missing:  # unless the server has lost some since
        missing, what = remote.store.count_outputs() - joint.count(), "output"
    if missing > 0:
        again = f"'hubhound index candidates --index {index.name}'"
        why += f"; {missing:,} {what}{'s are' if missing > 1 else ' is'} not among them yet, run {again}"
    return ServedSearcher(index, remote.store, finder=joint.find, engine="candidates", why=why)


def _title(result: Result) -> str:
    query = result.query
    if query.like:
        return f"like {query.like}" + (f", a copy of {query.copy_of}" if query.copy_of else "")
    texts = query.texts or ((query.text,) if query.text else ())
    images = f"{len(query.images)} image{'s' if len(query.images) > 1 else ''}" if query.images else None
    return ", ".join([*texts, *([images] if images else [])])


def _model(hit: Hit | ModelHit, explain: bool) -> list[str]:
    """A hit's model and, below it, its copies."""
    return [hit.model, also(hit.copies, SHOWN if explain else 2)] if hit.copies else [hit.model]


def _show(result: Result, explain: bool) -> None:
    witnessed = any(hit.witnesses is not None for hit in result.outputs)
    rows: list[list[str | list[str]]] = []
    for hit in result.outputs:
        row: list[str | list[str]] = [
            str(hit.rank),
            _model(hit, explain),
            str(hit.output),
            hit.label or "-",
            f"{hit.margin:.2f}",
            f"{hit.percentile:.1f}%",
        ]
        if witnessed:
            row.append("-" if hit.label_margin is None else f"{hit.label_margin:.2f}")
            row.append(", ".join(hit.witnesses or ()) or "-")
        if explain:
            row.append([f"{p.file}  {p.response:+.1f} / {p.concept:+.1f}" for p in hit.probes or ()])
        rows.append(row)
    columns: list[str | tuple[str, str]] = [
        ("", "right"),
        "model",
        ("output", "right"),
        "label",
        ("margin", "right"),
        ("percentile", "right"),
    ]
    if witnessed:
        columns += [("label's margin", "right"), "witnesses"]
    if explain:
        columns.append("probes: response / concept")
    table(_title(result), columns, rows)


def _show_models(result: Result, explain: bool) -> None:
    rows: list[list[str | list[str]]] = []
    ranked = any(hit.score is not None for hit in result.models)
    for hit in result.models:
        matched = []
        for m in hit.outputs[:SHOWN]:
            what = "nothing" if m.output is None else f"#{m.output} {m.label or ''}".rstrip() + f"  {m.margin:.2f}"
            matched.append(f"{m.concept}: {what}")
            if explain:
                matched += [f"    {p.file}  {p.response:+.1f} / {p.concept:+.1f}" for p in m.probes or ()]
        if len(hit.outputs) > SHOWN:
            matched.append(f"and {len(hit.outputs) - SHOWN} more (--format json has them)")
        counts = [] if hit.score is None else [f"{hit.score:.2f}"]
        covered = f"{hit.covered}/{len(hit.outputs)}"
        rows.append([str(hit.rank), _model(hit, explain), f"{hit.margin:.2f}", *counts, covered, matched])
    columns: list[str | tuple[str, str]] = [
        ("", "right"),
        "model",
        ("margin", "right"),
        *([("counts", "right")] if ranked else []),
        ("covered", "right"),
        "concept: output, label, margin",
    ]
    table(_title(result), columns, rows)


def _how(answer: SearchAnswer) -> str:
    """One line on how an answer was found."""
    took = f"{answer.seconds * 1000:,.0f} ms"
    if not isinstance(answer, ServedAnswer):
        return f"{answer.searched:,} outputs searched exactly in {took}"
    line = f"{answer.searched:,} outputs searched by the server, {answer.candidates:,} compared here, in {took}"
    if answer.exact:
        return f"{line}: certified exact"
    if answer.engine == "candidates":
        return f"{line}: {answer.why}; --engine qdrant and scan are exact"
    return f"{line}: not certified, {answer.why}: --engine scan is exact"


def _summary(answer: SearchAnswer, request: SearchRequest, index_path: str) -> None:
    if not answer.searched:
        if request.where:
            note(f"no output {'of another model' if request.like else 'in the index'} satisfies --where")
        elif request.like:
            note("there is no other model in the index")
        else:
            note(f"the index is empty: add models with 'hubhound index add --index {index_path} MODEL...'")
        return
    note(_how(answer))
    if answer.rerank:
        from query.cli.reranking import summary

        note(summary(answer.rerank))
    if any(result.hits for result in answer.results):
        return
    if request.evidence == "labels":
        note("none of these outputs has a label that says anything: try --evidence both")
    elif request.require == "any" or (request.like and request.require is None):
        note("no model qualifies: none has an output that is closer to one of the concepts than the background")
    else:
        note("no model qualifies: with --require all each concept needs an output of its own; try --require any")
