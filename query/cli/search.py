"""``hubhound search``."""

from __future__ import annotations

from pathlib import Path

import click

from engine.errors import IndexUnusableError
from query.answers import ConceptResult, SearchAnswer
from query.cli.output import data, data_json, format_option, index_option, note, table


@click.command(
    epilog="""
\b
Examples:
  hubhound search "golden retriever" --index zoo
  hubhound search cat dog @concepts.txt --index zoo -k 3 --format json
  hubhound search "school bus" --index zoo --where library=timm --where max-parameters=10M --explain
"""
)
@click.argument("concepts", nargs=-1, required=True, metavar="CONCEPT...")
@index_option
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="Hits per concept.")
@click.option(
    "--where",
    multiple=True,
    metavar="KEY=VALUE",
    help="model, library, licence, architecture (* and ? allowed), max-parameters, min-downloads, label=yes|no. "
    "Different keys must all hold, of one key any.",
)
@click.option(
    "--method",
    type=click.Choice(["dual", "weighted", "probelog"]),
    envvar="HUBHOUND_METHOD",
    help="How evidence becomes a margin; by default the index's.",
)
@click.option("--explain", is_flag=True, help="Show the probes behind each hit.")
@format_option
def search(
    concepts: tuple[str, ...],
    index_path: str,
    k: int,
    where: tuple[str, ...],
    method: str | None,
    explain: bool,
    form: str,
) -> None:
    """Find the outputs of models that recognise each CONCEPT: a word, a phrase, or @FILE with one a line.

    The margin says how much closer the concept comes to the output than the background does: above 0 is closer than its
    nearest neighbours. The percentile is its standing among the output's background concepts, from the top.
    """
    from engine.index import Index
    from query.filters import parse_conditions
    from query.search import Searcher, SearchRequest, read_concepts

    conditions = parse_conditions(where)
    request = SearchRequest(read_concepts(concepts), k, method, conditions, explain)
    answer = Searcher(Index(_folder(index_path))).search(request)
    if form == "json":
        data_json(answer.to_json())
    elif form == "quiet":
        for result in answer.results:
            for hit in result.hits:
                data(f"{hit.model}#{hit.output}")
    else:
        for result in answer.results:
            _show(result, explain)
        _summary(answer, index_path, bool(conditions))


def _folder(path: str) -> Path:
    if "://" in path:
        raise IndexUnusableError(f"the index {path} is not a folder: this version searches embedded indexes")
    return Path(path).expanduser()


def _show(result: ConceptResult, explain: bool) -> None:
    rows: list[list[str | list[str]]] = []
    for hit in result.hits:
        row: list[str | list[str]] = [
            str(hit.rank),
            hit.model,
            str(hit.output),
            hit.label or "-",
            f"{hit.margin:.2f}",
            f"{hit.percentile:.1f}%",
        ]
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
    if explain:
        columns.append("probes: response / concept")
    table(result.query.text, columns, rows)


def _summary(answer: SearchAnswer, index_path: str, filtered: bool) -> None:
    if answer.searched:
        note(f"{answer.searched:,} outputs searched exactly in {answer.seconds * 1000:,.0f} ms")
    elif filtered:
        note("no output in the index satisfies --where")
    else:
        note(f"the index is empty: add models with 'hubhound index add --index {index_path} MODEL...'")
