"""``hubhound describe``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engine.errors import InputError, ModelFailedError, Reason
from query.cli.add import parse_size, probing, probing_options
from query.cli.output import bars, data, data_json, format_option, index_option, method_option, note, table
from query.cli.places import index_folder

if TYPE_CHECKING:
    from engine.outputs import OutputTable
    from indexers.adding import AddOptions
    from indexers.probing import ProbeModel
    from indexers.sources import ModelSource
    from query.describe import DescribeAnswer, Describer

MARK = "✗"
"""Stands where label and names disagree."""

MANY = 0.25
"""Above this share of disagreements, more than single labels is wrong."""


@click.command(
    epilog="""
\b
Examples:
  hubhound describe timm/resnet50.a1_in1k --index zoo
  hubhound describe microsoft/resnet-18 --index zoo --output 17 --output 207 -k 5
  hubhound describe ./models/me/my-classifier --index zoo --vocabulary words.txt --format json
  hubhound describe timm/resnet50.a1_in1k --index zoo --only-disagreements
"""
)
@click.argument("model")
@index_option
@click.option("-k", type=click.IntRange(min=1), default=3, show_default=True, help="Names per output.")
@click.option(
    "--vocabulary",
    "vocabulary_path",
    type=click.Path(),
    help="A file with one word or phrase a line; by default the class names of ImageNet-21k.",
)
@click.option("--output", "outputs", type=click.IntRange(min=0), multiple=True, help="Only this output; repeatable.")
@click.option("--only-disagreements", is_flag=True, help="Only outputs whose label and names disagree clearly.")
@method_option
@probing_options
@format_option
def describe(
    model: str,
    index_path: str,
    k: int,
    vocabulary_path: str | None,
    outputs: tuple[int, ...],
    only_disagreements: bool,
    method: str | None,
    max_size: str,
    allow_pickle: bool,
    form: str,
    **given: Any,
) -> None:
    """Name what the outputs of MODEL recognise, beside the labels that it declares.

    MODEL is in the index (org/name), or a folder in Hub layout or a Hub id org/name[@revision] that is not: then it is
    run over the index's probes, and nothing is stored. The score says how much better a name fits the output than it
    fits outputs in general; the names are in its order.
    """
    from engine.index import Index
    from query.describe import Describer, DescribeRequest
    from query.vocabulary import read_vocabulary

    index = Index(index_folder(index_path))
    request = DescribeRequest(k, method, outputs or None)
    size = parse_size(max_size)
    vocabulary = read_vocabulary(Path(vocabulary_path)) if vocabulary_path else None
    with bars() as bar:
        describer = Describer(index, vocabulary, progress=bar("embedding the vocabulary", "phrases"))
        found = model if describer.knows(model) else _looked_up(model, describer)
        if isinstance(found, str):
            answer = describer.describe(found, request)
        else:
            from indexers.adding import AddOptions

            running = bar("", "images")
            options = AddOptions(size, allow_pickle)
            with probing(index.folder, allow_pickle=allow_pickle, **given) as probe:
                run = _run(found, describer, probe, options, lambda what, done, total: running(done, total, what))
            answer = describer.describe_outputs(run, request)
    _write(answer, only_disagreements, form)


def _looked_up(model: str, describer: Describer) -> str | ModelSource:
    """What the user means with a model whose id is not in the index: a folder of one that is, or one to be run.

    Raises:
        InputError: It is nothing, or several models.
    """
    from indexers.sources import expand, revision_of

    try:
        sources = expand([model])
    except InputError as error:
        raise InputError(f"{error}{_hint(model, describer)}") from error
    if len(sources) != 1:
        raise InputError(f"{model} names {len(sources)} models: describe one at a time")
    (source,) = sources
    if source.folder is not None:
        revision, _ = revision_of(source)
        if describer.knows(f"{source.repo}@{revision}"):
            return f"{source.repo}@{revision}"
    return source


def _run(
    source: ModelSource,
    describer: Describer,
    probe: ProbeModel,
    options: AddOptions,
    progress: Callable[[str, int, int], None],
) -> OutputTable:
    """The outputs of a model that is not in the index.

    Raises:
        InputError: There is no such model, or none of its outputs says anything.
        ModelError: It cannot be fetched, loaded or run.
    """
    from indexers.adding import Outcome, run_model
    from indexers.keeping import labels_of
    from indexers.sources import revision_of

    try:
        revision, _ = revision_of(source)
        repository, probed = run_model(probe, source, revision, options, Outcome(source.repo), progress)
    except ModelFailedError as error:
        if error.reason not in {Reason.MISSING, Reason.NETWORK}:
            raise
        raise InputError(f"the index does not have this model; {error}{_hint(source.repo, describer)}") from error
    values = probed.responses
    outputs = describer.outputs_of(repository.repo, revision, labels_of(probed.labels, values.shape[1]), values)
    if not len(outputs):
        raise ModelFailedError(
            Reason.NO_USABLE_OUTPUT,
            f"all {values.shape[1]} outputs are constant, NaN or infinite over the probes",
            repository.repo,
            revision,
        )
    return outputs


def _hint(model: str, describer: Describer) -> str:
    near = describer.near(model)
    return f"; or did you mean {' or '.join(near)}, in the index?" if near else ""


def _write(answer: DescribeAnswer, only_disagreements: bool, form: str) -> None:
    labelled = sum(output.agrees is not None for output in answer.outputs)
    wrong = sum(output.agrees is False for output in answer.outputs)
    shown = answer
    if only_disagreements:
        kept = tuple(output for output in answer.outputs if output.agrees is False)
        shown = answer.model_copy(update={"outputs": kept})
    if form == "json":
        data_json(shown.to_json())
    elif form == "quiet":
        for output in shown.outputs:
            data(f"{output.output}\t{output.concepts[0].name}")
    else:
        rows = [
            [
                str(output.output),
                output.label or "-",
                MARK if output.agrees is False else "",
                " · ".join(f"{found.name} {found.score:.1f}" for found in output.concepts),
            ]
            for output in shown.outputs
        ]
        copied = f", a copy of {answer.copy_of}" if answer.copy_of else ""
        table(f"{answer.model}@{answer.revision}{copied}", [("output", "right"), "label", "", "names and scores"], rows)
    count = len(answer.outputs)
    doubt = f"{MARK} {wrong:,} of {labelled:,} labels disagree clearly with what the output does"
    note(
        f"{count:,} output{'' if count == 1 else 's'}, {answer.vocabulary:,} phrases, {answer.seconds:,.1f} s; "
        + (doubt if labelled else "no label to compare with")
    )
    if labelled >= 10 and wrong > MANY * labelled:
        note(
            "so many disagree that the labels may be in another order, the model weak, or the labels words that the "
            "encoder or the probes do not know"
        )
