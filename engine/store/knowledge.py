"""What a store keeps of tasks, profiles and known performance, and how it is read back: the same for every store.

All three lie in one collection, told apart by the payload's ``kind``. The floating-point numbers of a record are one
payload field, ``exact``: base64 of little-endian float64, bit for bit, because a float64 does not survive Qdrant's JSON
(:mod:`engine.store.records`). Everything else is JSON as the records define it, without what is None.
"""

from __future__ import annotations

import binascii
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from engine.schema import Performance, Profile, Task

Known = Task | Profile | Performance
"""What is known about tasks: a sample, how a model works on it, or how well."""

KIND = "kind"
NAME = "name"
MODEL = "model"
TASK = "task"
EXACT = "exact"
TASK_KIND, PROFILE_KIND, PERFORMANCE_KIND = "task", "profile", "performance"

_BATCH_BYTES = 512 << 10
"""JSON of the records in one operation; with the embedded engine it fits a segment of the log."""


def known_payload(record: Known) -> dict[str, Any]:
    """A record as a JSON object in which every number survives."""
    if isinstance(record, Task):
        return {KIND: TASK_KIND, **record.model_dump(mode="json", exclude_none=True)}
    if isinstance(record, Profile):
        plain = record.model_dump(mode="json", exclude_none=True, exclude={"conductance", "completeness_gap"})
        return {KIND: PROFILE_KIND, **plain, EXACT: _packed(*record.conductance, record.completeness_gap)}
    plain = record.model_dump(mode="json", exclude_none=True, exclude={"value"})
    return {KIND: PERFORMANCE_KIND, **plain, EXACT: _packed(record.value)}


def known_record(payload: Mapping[str, Any]) -> Known:
    """A record from what :func:`known_payload` made of it.

    Raises:
        ValueError: The payload is something else.
    """
    fields = dict(payload)
    kind = fields.pop(KIND, None)
    if kind == TASK_KIND:
        return Task.model_validate(fields)
    if kind not in {PROFILE_KIND, PERFORMANCE_KIND} or not isinstance(fields.get(EXACT), str):
        raise ValueError(f"a record of the kind {kind!r} is no task, profile or performance")
    exact = _unpacked(fields.pop(EXACT))
    if kind == PROFILE_KIND:
        return Profile.model_validate({**fields, "conductance": exact[:-1], "completeness_gap": exact[-1]})
    if len(exact) != 1:
        raise ValueError(f"a performance has {len(exact)} values instead of one")
    return Performance.model_validate({**fields, "value": exact[0]})


def known_batches(records: Iterable[Known]) -> Iterator[tuple[list[tuple[str, dict[str, Any]]], int]]:
    """Ids and payloads of records, as many at once as one operation should write.

    Yields:
        Pairs of id and payload, and how many bytes of JSON they are.
    """
    batch: list[tuple[str, dict[str, Any]]] = []
    size_bytes = 0
    for record in records:
        payload = known_payload(record)
        length = len(json.dumps(payload))
        if batch and size_bytes + length > _BATCH_BYTES:
            yield batch, size_bytes
            batch, size_bytes = [], 0
        batch.append((record.point_id, payload))
        size_bytes += length
    if batch:
        yield batch, size_bytes


def known_order(record: Known) -> tuple[int, str, str, str]:
    """The order in which records are listed: tasks by name; profiles by model and task; performance likewise."""
    if isinstance(record, Task):
        return 0, record.name, "", ""
    if isinstance(record, Profile):
        return 1, record.model, record.task, ""
    return 2, record.model, record.task, record.metric


def _packed(*numbers: float) -> str:
    return binascii.b2a_base64(struct.pack(f"<{len(numbers)}d", *numbers), newline=False).decode("ascii")


def _unpacked(text: str) -> tuple[float, ...]:
    raw = binascii.a2b_base64(text)
    if not raw or len(raw) % 8:
        raise ValueError(f"{len(raw)} bytes are no float64 numbers")
    return struct.unpack(f"<{len(raw) // 8}d", raw)
