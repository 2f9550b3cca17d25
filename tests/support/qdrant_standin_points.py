"""Points of the stand-in server: from the JSON of Qdrant's REST API to the engine's, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import UUID

import qdrant_edge as qe

from tests.support.qdrant_standin_faults import Fault
from tests.support.qdrant_standin_filters import edge_filter, is_sparse, point_id, vector

Json = dict[str, Any]

_UPDATE_MODES = {
    "upsert": qe.UpdateMode.Upsert,
    "insert_only": qe.UpdateMode.InsertOnly,
    "update_only": qe.UpdateMode.UpdateOnly,
}


def upsert(body: Json) -> tuple[Any, int]:
    """The operation of ``PUT /points``: a list of points or a batch of columns; and how many points it has."""
    given = list(_rows(body["batch"])) if body.get("batch") is not None else body["points"]
    points = [qe.Point(point_id(one["id"]), vectors(one["vector"]), one.get("payload") or {}) for one in given]
    mode = _UPDATE_MODES[body.get("update_mode") or "upsert"]
    condition = edge_filter(body.get("update_filter"))
    return qe.UpdateOperation.upsert_points(points, condition=condition, update_mode=mode), len(points)


def vectors(given: Any) -> Any:
    """The vectors of a point: one without a name, or by name."""
    if isinstance(given, dict) and not is_sparse(given):
        return {name: vector(one) for name, one in given.items()}
    return vector(given)


def _rows(batch: Json) -> Iterator[Json]:
    ids, columns = batch["ids"], batch["vectors"]
    payloads = batch.get("payloads") or [None] * len(ids)
    for column in [payloads, *(columns.values() if isinstance(columns, dict) else [columns])]:
        if len(column) != len(ids):
            raise Fault(422, f"Validation error in JSON body: [{len(ids)} ids, {len(column)} values]")
    for row, one in enumerate(ids):
        named = {name: column[row] for name, column in columns.items()} if isinstance(columns, dict) else columns[row]
        yield {"id": one, "vector": named, "payload": payloads[row]}


def selected(body: Json) -> tuple[list[Any] | None, qe.Filter | None]:
    """What an update is about: ids, or else a filter.

    Raises:
        Fault: Neither is given.
    """
    if body.get("points") is not None:
        return [point_id(one) for one in body["points"]], None
    if body.get("filter") is not None:
        return None, edge_filter(body["filter"]) or qe.Filter()
    raise Fault(422, "Validation error in JSON body: [either list of point ids or filter must be provided]")


def update(kind: str, body: Any) -> tuple[Any, int]:
    """An update by its name in ``POST /points/batch``, as the engine's; and how many points it writes.

    Args:
        kind: ``upsert``, ``delete``, ``set_payload``, ``overwrite_payload``, ``delete_payload``, ``clear_payload``,
            ``update_vectors`` or ``delete_vectors``.
        body: Its request.
    """
    if kind == "upsert":
        return upsert(body)
    if kind == "update_vectors":
        points = [qe.PointVectors(point_id(one["id"]), vectors(one["vector"])) for one in body["points"]]
        where = edge_filter(body.get("update_filter"))
        return qe.UpdateOperation.update_vectors(points, condition=where), len(points)
    if kind not in _UPDATES:
        raise Fault(400, f"Format error in JSON body: unknown operation {kind}")
    ids, where = selected(body)
    by_ids, by_filter, fields = _UPDATES[kind]
    given = [body.get(field) for field in fields]
    return by_ids(ids, *given) if where is None else by_filter(where, *given), 0


_UPDATES: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[str, ...]]] = {
    "delete": (qe.UpdateOperation.delete_points, qe.UpdateOperation.delete_points_by_filter, ()),
    "clear_payload": (qe.UpdateOperation.clear_payload, qe.UpdateOperation.clear_payload_by_filter, ()),
    "delete_payload": (qe.UpdateOperation.delete_payload, qe.UpdateOperation.delete_payload_by_filter, ("keys",)),
    "delete_vectors": (qe.UpdateOperation.delete_vectors, qe.UpdateOperation.delete_vectors_by_filter, ("vector",)),
    "set_payload": (qe.UpdateOperation.set_payload, qe.UpdateOperation.set_payload_by_filter, ("payload", "key")),
    "overwrite_payload": (
        qe.UpdateOperation.overwrite_payload,
        qe.UpdateOperation.overwrite_payload_by_filter,
        ("payload", "key"),
    ),
}
"""By ids, by filter, and which fields of the request they take."""


def payload_wanted(given: Any, usual: bool) -> Any:
    """``with_payload`` as the engine's: a switch, a list of fields, or fields to include or to leave out."""
    if given is None:
        return usual
    if isinstance(given, dict):
        if given.get("include") is not None:
            return qe.PayloadSelector.Include(given["include"])
        return qe.PayloadSelector.Exclude(given["exclude"])
    return given


def record(found: Any, wanted: Any) -> Json:
    """A record or scored point of the engine as JSON.

    Args:
        found: The record.
        wanted: ``with_payload`` as the engine's.
    """
    answer: Json = {"id": json_id(found.id)}
    if hasattr(found, "score"):
        answer["version"] = found.version
        answer["score"] = found.score
    if wanted is not False:
        answer["payload"] = found.payload or {}
    if found.vector is not None:
        answer["vector"] = _json_vectors(found.vector)
    if found.order_value is not None:
        answer["order_value"] = found.order_value
    return answer


def records(found: Sequence[Any], wanted: Any) -> list[Json]:
    """Several, see :func:`record`."""
    return [record(one, wanted) for one in found]


def json_id(found: Any) -> int | str | None:
    """The id of a point as JSON."""
    return str(found) if isinstance(found, UUID) else found


def _json_vectors(found: Any) -> Any:
    if isinstance(found, dict):
        if found.keys() == {""}:
            return _json_vector(found[""])
        return {name: _json_vector(one) for name, one in found.items()}
    return _json_vector(found)


def _json_vector(found: Any) -> Any:
    if isinstance(found, qe.SparseVector):
        return {"indices": list(found.indices), "values": list(found.values)}
    return found
