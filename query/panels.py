"""What a contact sheet shows of an answer: each hit's strongest probes, what was asked for beside the background."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.calibration import Background
from engine.descriptors import ConceptDescriptors
from engine.distance import Method, margins
from engine.index import Index
from engine.scan import decode_anchors
from engine.snapshot import Snapshot
from query.answers import Hit, SearchAnswer, also
from query.contact_sheet import ROW, Panel, Tile
from query.lookup import find_model
from query.questions import Question

MOST = 200
"""Panels of a sheet at most: 50,000 pixels of height."""

OF_A_MODEL = 12
"""Matched outputs of one model at most."""


def panels(
    index: Index,
    snapshot: Snapshot,
    background: Background,
    method: Method,
    questions: Sequence[Question],
    answer: SearchAnswer,
) -> list[Panel]:
    """One panel for each output of an answer, in its order; at most ``OF_A_MODEL`` of a model and ``MOST`` in all.

    Args:
        index: Whose probes are shown.
        snapshot: The generation that answered.
        background: The one that its constants were made with; its nearest phrase stands beside what was asked for.
        method: Of the margins.
        questions: What was asked, one for each result.
        answer: The answer.
    """
    made: list[Panel] = []
    for question, result in zip(questions, answer.results, strict=True):
        for hit in result.hits:
            if isinstance(hit, Hit):
                found = [(0, hit.output, hit.label, f"margin {hit.margin:.2f}, percentile {hit.percentile:.1f}%")]
            else:
                found = [
                    (c, matched.output, matched.label, f"for {matched.concept}: margin {matched.margin:.2f}")
                    for c, matched in enumerate(hit.outputs)
                    if matched.output is not None
                ][:OF_A_MODEL]
            for c, output, label, said in found[: MOST - len(made)]:
                row = _row_of(snapshot, hit.model, output)
                name, tiles = _tiles(index, snapshot, background, method, question.concepts.take(c), row)
                copied = f", {also(hit.copies, most=1)}" if hit.copies else ""
                title = f"{hit.rank}. {hit.model} #{output} {label or ''}".rstrip()
                made.append(Panel(title, said + copied, question.names[c], name, tiles))
    return made


def _row_of(snapshot: Snapshot, model: str, output: int) -> int:
    place = find_model(snapshot, model)
    start, stop = snapshot.starts[place], snapshot.starts[place + 1]
    return int(start + np.searchsorted(snapshot.output[start:stop], output))


def _tiles(
    index: Index, snapshot: Snapshot, background: Background, method: Method, concept: ConceptDescriptors, row: int
) -> tuple[str, tuple[Tile, ...]]:
    """The background phrase that comes nearest to an output, and its strongest probes."""
    arrays, rows = snapshot.arrays, np.array([row])
    idx, z = arrays.kept(rows)
    anchor = decode_anchors(arrays, rows).astype(np.float32)
    nearest = int(margins(idx, z, anchor, arrays.constants(rows), background.concepts, method)[:, 0].argmax())
    tiles = tuple(
        Tile(
            Path(index.probe_folder) / index.probe_files[probe][0],
            float(response),
            float(concept.z[0, probe]),
            float(background.concepts.z[nearest, probe]),
        )
        for probe, response in zip(idx[0, :ROW].tolist(), z[0, :ROW].tolist(), strict=True)
    )
    return background.names[nearest], tiles
