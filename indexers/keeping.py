"""What an index keeps of a model's answers; needs none of the libraries that models need."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engine.errors import ModelFailedError, Reason
from engine.outputs import OutputTable
from engine.schema import Model
from engine.writer import IndexWriter


def describe_answers(
    writer: IndexWriter, facts: Model, declared: tuple[str | None, ...], values: npt.NDArray[np.float32]
) -> tuple[Model, OutputTable]:
    """What the index keeps of a model's answers.

    Args:
        writer: The index.
        facts: The model's record, without its outputs.
        declared: Labels, of as many outputs as the model declares.
        values: Logits, or what stands for them, over the index's probes, ``[n, outputs]``.

    Returns:
        Its whole record, and its outputs.

    Raises:
        ModelFailedError: No output carries information.
    """
    count = values.shape[1]
    table, left_out = writer.describe(facts.repo, facts.revision, labels_of(declared, count), values)
    if not len(table):
        finite = np.isfinite(values).all(axis=0)
        kinds = (["the same for every probe"] if finite.any() else []) + (["NaN or infinite"] * (not finite.all()))
        raise ModelFailedError(
            Reason.NO_USABLE_OUTPUT,
            f"all {count} outputs are {' or '.join(kinds)}",
            facts.repo,
            facts.revision,
        )
    return facts.model_copy(update={"outputs": len(table), "left_out": left_out}), table


def labels_of(declared: tuple[str | None, ...], outputs: int) -> tuple[str | None, ...]:
    """Declared labels, one per output that the model really has."""
    return (*declared[:outputs], *[None] * (outputs - len(declared)))
