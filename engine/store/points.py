"""Records as they lie in a store, to be copied verbatim, and what a server adds to them to search by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import StoreError
from engine.schema import Model, output_point_id
from engine.store.base import Part, StoredPoint
from engine.store.knowledge import known_record
from engine.store.records import BACKGROUND, EXACT, HIT_FIELDS, model_record

STATE = "state"
"""Field of a model's payload (``Model.state``)."""
CALIBRATION = "calibration"
"""Field of a model's payload (``Model.calibration``)."""
SEQ = "seq"
"""On a server, of a model: when its record was last changed, microseconds, greater than all before."""
REMOVED = "removed"
"""On a server, of a model: true if the record only says that the model is gone."""
HOLDERS = "holders"
"""On a server, of an output: its model and the copies of that, with the facts that searches are limited by."""
LABELLED = "labelled"
"""On a server, of an output: whether it has a declared label."""
WRITTEN = "written"
"""On a server, of an output: when it was written, a number like those of the models' changes (``SEQ``)."""
JOINED = "joined"
"""On a server, of a model: which collection of candidates has the vectors of this revision (``engine.store.joint``)."""
SERVER_FIELDS = frozenset({JOINED, SEQ, REMOVED, HOLDERS, LABELLED, BACKGROUND, WRITTEN})
"""Payload fields that only a server keeps: a copy does not need them."""


def holder(model: Model) -> dict[str, Any]:
    """The facts of a model that searches are limited by, texts in lower case; what is None is left out."""
    texts = {
        "model": model.repo,
        "library": model.library,
        "licence": model.licence,
        "architecture": model.architecture,
    }
    facts: dict[str, Any] = {field: text.lower() for field, text in texts.items() if text is not None}
    numbers = {"parameters": model.parameters, "downloads": model.downloads}
    return facts | {field: number for field, number in numbers.items() if number is not None}


def plain_payload(payload: Mapping[str, Any] | None) -> dict[str, Any]:
    """A payload without :data:`SERVER_FIELDS`."""
    return {field: value for field, value in (payload or {}).items() if field not in SERVER_FIELDS}


def stored_output(
    point_id: str, payload: Mapping[str, Any] | None, indices: Iterable[int], values: Iterable[float], dense: Any
) -> StoredPoint:
    """An output as a store hands it over; its numbers become float32, of which JSON writes only the first digits."""
    return StoredPoint(
        point_id,
        plain_payload(payload),
        list(indices),
        np.asarray(list(values), np.float32).tolist(),
        np.asarray(dense, np.float32).tolist(),
    )


def check_points(part: Part, points: Iterable[StoredPoint], path: Path | str) -> None:
    """Refuses points that are not of a part of a store, before any of them is written.

    Args:
        part: Which part they are to go to.
        points: The points.
        path: Of the store, for the message.

    Raises:
        StoreError: One is something else.
    """
    for point in points:
        try:
            if part == "outputs":
                fits = point.id == output_point_id(*(point.payload[field] for field in HIT_FIELDS))
                fits = fits and isinstance(point.payload[EXACT], str) and len(point.dense) > 1
            elif part == "models":
                fits = point.id == model_record(point.payload).point_id
            else:
                fits = point.id == known_record(point.payload).point_id
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            raise StoreError(f"the record {point.id} is none of the {part} of an index: restore another copy", path)
