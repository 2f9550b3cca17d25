"""Messages of Qdrant's gRPC API as the JSON of its REST API, and answers back.

Filters, queries and settings are translated by qdrant-client's own conversions; points and payloads, of which there
are many, by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qdrant_client import grpc
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc, grpc_to_payload, payload_to_grpc
from qdrant_client.http import models as rest

Json = dict[str, Any]


def _dumped(model: Any) -> Any:
    """Models of the REST API as JSON, without what is not set."""
    if isinstance(model, dict):
        return {name: _dumped(one) for name, one in model.items()}
    return model.model_dump(mode="json", by_alias=True, exclude_none=True) if hasattr(model, "model_dump") else model


def _set(**fields: Any) -> Json:
    return {name: value for name, value in fields.items() if value is not None}


def _field(message: Any, name: str, convert: Callable[[Any], Any] = lambda value: value) -> Any:
    """A field of a message as JSON, None if it is not set."""
    return _dumped(convert(getattr(message, name))) if message.HasField(name) else None


def _filter(message: Any, name: str = "filter") -> Any:
    return _field(message, name, GrpcToRest.convert_filter)


# ------------------------------------------------------------------------------------------------ collections


def about(found: Json) -> Json:
    """What the server says of itself."""
    return {name: found[name] for name in ("title", "version", "commit")}


def creation(request: Any) -> Json:
    """The body of ``PUT /collections/NAME``."""
    to = GrpcToRest
    plain = ("shard_number", "on_disk_payload", "replication_factor", "write_consistency_factor")
    return _set(
        vectors=_field(request, "vectors_config", to.convert_vectors_config),
        sparse_vectors=_field(request, "sparse_vectors_config", to.convert_sparse_vector_config),
        hnsw_config=_field(request, "hnsw_config", to.convert_hnsw_config_diff),
        optimizers_config=_field(request, "optimizers_config", to.convert_optimizers_config_diff),
        wal_config=_field(request, "wal_config", to.convert_wal_config_diff),
        quantization_config=_field(request, "quantization_config", to.convert_quantization_config),
        strict_mode_config=_field(request, "strict_mode_config", to.convert_strict_mode_config),
        payload=_field(request, "payload", to.convert_payload_storage_params),
        id_tracker=_field(request, "id_tracker", to.convert_id_tracker_params),
        metadata=grpc_to_payload(request.metadata) or None,
        **{name: _field(request, name) for name in plain},
    )


def alteration(request: Any) -> Json:
    """The body of ``PATCH /collections/NAME``; null in metadata removes a key, so it is kept."""
    body: Json = _dumped(GrpcToRest.convert_update_collection(request))
    return body | _set(metadata=grpc_to_payload(request.metadata) or None)


def alias_actions(request: Any) -> Json:
    """The body of ``POST /collections/aliases``."""
    return {"actions": [_dumped(GrpcToRest.convert_alias_operations(one)) for one in request.actions]}


def collection_info(found: Json) -> Any:
    """The description of a collection."""
    made = RestToGrpc.convert_collection_info(rest.CollectionInfo.model_validate(found))
    return grpc.GetCollectionInfoResponse(result=made)


def collections(found: Json) -> Any:
    """The names of all collections."""
    named = [grpc.CollectionDescription(**one) for one in found["collections"]]
    return grpc.ListCollectionsResponse(collections=named)


def existence(found: Json) -> Any:
    """Whether there is a collection."""
    return grpc.CollectionExistsResponse(result=grpc.CollectionExists(**found))


def aliases(found: Json) -> Any:
    """Aliases and what they stand for."""
    return grpc.ListAliasesResponse(aliases=[grpc.AliasDescription(**one) for one in found["aliases"]])


def done(found: bool) -> Any:
    """Whether a collection was changed."""
    return grpc.CollectionOperationResponse(result=found)


# ----------------------------------------------------------------------------------------------------- updates


def upsert(request: Any) -> Json:
    """The body of ``PUT /points``; also of an upsert in a batch."""
    mode = _field(request, "update_mode", GrpcToRest.convert_update_mode)
    return {
        "points": [_point(one) for one in request.points],
        **_set(update_filter=_filter(request, "update_filter"), update_mode=mode),
    }


def _point(one: Any) -> Json:
    vectors = _vectors(one.vectors) if one.HasField("vectors") else {}
    return {"id": GrpcToRest.convert_point_id(one.id), "vector": vectors, "payload": grpc_to_payload(one.payload)}


def _vectors(given: Any) -> Any:
    found = GrpcToRest.convert_vectors(given)
    return {name: _vector(one) for name, one in found.items()} if isinstance(found, dict) else _vector(found)


def _vector(found: Any) -> Any:
    return {"indices": found.indices, "values": found.values} if isinstance(found, rest.SparseVector) else found


def vectors_of(request: Any) -> Json:
    """The body of ``PUT /points/vectors``."""
    points = [{"id": GrpcToRest.convert_point_id(one.id), "vector": _vectors(one.vectors)} for one in request.points]
    return {"points": points, **_set(update_filter=_filter(request, "update_filter"))}


def selection(request: Any) -> Json:
    """The body of a request about some points."""
    return _selected(request.points)


def _selected(selector: Any) -> Json:
    kind = selector.WhichOneof("points_selector_one_of")
    if kind == "points":
        return {"points": [GrpcToRest.convert_point_id(one) for one in selector.points.ids]}
    return {} if kind is None else {"filter": _filter(selector)}


def payload(request: Any) -> Json:
    """The body of ``POST`` and ``PUT /points/payload``."""
    return {
        "payload": grpc_to_payload(request.payload),
        **_selected(request.points_selector),
        **_set(key=_field(request, "key")),
    }


def payload_keys(request: Any) -> Json:
    """The body of ``POST /points/payload/delete``."""
    return {"keys": list(request.keys), **_selected(request.points_selector)}


def vector_names(request: Any) -> Json:
    """The body of ``POST /points/vectors/delete``."""
    return {"vector": list(request.vectors.names), **_selected(request.points_selector)}


_OPERATIONS: dict[str, tuple[str, Callable[[Any], Json]]] = {
    "upsert": ("upsert", upsert),
    "delete_points": ("delete", selection),
    "set_payload": ("set_payload", payload),
    "overwrite_payload": ("overwrite_payload", payload),
    "delete_payload": ("delete_payload", payload_keys),
    "clear_payload": ("clear_payload", selection),
    "update_vectors": ("update_vectors", vectors_of),
    "delete_vectors": ("delete_vectors", vector_names),
}


def operations(request: Any) -> Json:
    """The body of ``POST /points/batch``."""
    made = []
    for one in request.operations:
        kind = one.WhichOneof("operation")
        name, body = _OPERATIONS[kind]
        made.append({name: body(getattr(one, kind))})
    return {"operations": made}


_FIELD_TYPES = ("keyword", "integer", "float", "geo", "text", "bool", "datetime", "uuid")
"""By their numbers in ``FieldType``."""


def field_index(request: Any) -> Json:
    """The body of ``PUT /index``."""
    schema: Any = _FIELD_TYPES[request.field_type]
    if request.HasField("field_index_params"):
        schema = {**_dumped(GrpcToRest.convert_payload_schema_params(request.field_index_params)), "type": schema}
    return {"field_name": request.field_name, "field_schema": schema}


def updated(found: Json) -> Any:
    """What an update says of itself."""
    return grpc.PointsOperationResponse(result=_update_result(found))


def updated_all(found: list[Json]) -> Any:
    """What the updates of a batch say of themselves."""
    return grpc.UpdateBatchResponse(result=[_update_result(one) for one in found])


def _update_result(found: Json) -> Any:
    return RestToGrpc.convert_update_result(rest.UpdateResult.model_validate(found))


# ------------------------------------------------------------------------------------------------------- reads


def _wanted(request: Any) -> Json:
    """``with_payload`` and ``with_vector``."""
    return _set(
        with_payload=_field(request, "with_payload", GrpcToRest.convert_with_payload_interface),
        with_vector=_field(request, "with_vectors", GrpcToRest.convert_with_vectors_selector),
    )


def retrieval(request: Any) -> Json:
    """The body of ``POST /points``."""
    return {"ids": [GrpcToRest.convert_point_id(one) for one in request.ids], **_wanted(request)}


def scrolling(request: Any) -> Json:
    """The body of ``POST /points/scroll``."""
    chosen = _set(
        filter=_filter(request),
        offset=_field(request, "offset", GrpcToRest.convert_point_id),
        limit=_field(request, "limit"),
        order_by=_field(request, "order_by", GrpcToRest.convert_order_by),
    )
    return chosen | _wanted(request)


def counting(request: Any) -> Json:
    """The body of ``POST /points/count``."""
    return _set(filter=_filter(request), exact=_field(request, "exact"))


def faceting(request: Any) -> Json:
    """The body of ``POST /facet``."""
    limit, exact = _field(request, "limit"), _field(request, "exact")
    return _set(key=request.key, filter=_filter(request), limit=limit, exact=exact)


def query(request: Any) -> Json:
    """The body of ``POST /points/query``."""
    made: Json = _dumped(GrpcToRest.convert_query_points(request))
    return made


def queries(request: Any) -> Json:
    """The body of ``POST /points/query/batch``."""
    return {"searches": [query(one) for one in request.query_points]}


def got(found: list[Json]) -> Any:
    """Records by id."""
    return grpc.GetResponse(result=[grpc.RetrievedPoint(**_record(one)) for one in found])


def scrolled(found: Json) -> Any:
    """A page of records."""
    following = found["next_page_offset"]
    return grpc.ScrollResponse(
        result=[grpc.RetrievedPoint(**_record(one)) for one in found["points"]],
        next_page_offset=None if following is None else _id(following),
    )


def counted(found: Json) -> Any:
    """A number of points."""
    return grpc.CountResponse(result=grpc.CountResult(**found))


def faceted(found: Json) -> Any:
    """The values of a field and how many points have each."""
    kinds = {bool: "bool_value", int: "integer_value", str: "string_value"}
    hits = [
        grpc.FacetHit(value=grpc.FacetValue(**{kinds[type(one["value"])]: one["value"]}), count=one["count"])
        for one in found["hits"]
    ]
    return grpc.FacetResponse(hits=hits)


def queried(found: Json) -> Any:
    """What a query found."""
    return grpc.QueryResponse(result=_scored(found))


def queried_all(found: list[Json]) -> Any:
    """What several queries found."""
    return grpc.QueryBatchResponse(result=[grpc.BatchResult(result=_scored(one)) for one in found])


def _scored(found: Json) -> list[Any]:
    return [grpc.ScoredPoint(**_record(one), score=one["score"], version=one["version"]) for one in found["points"]]


def _record(found: Json) -> Json:
    made: Json = {"id": _id(found["id"]), "payload": payload_to_grpc(found.get("payload") or {})}
    if found.get("vector") is not None:
        made["vectors"] = _output_vectors(found["vector"])
    if found.get("order_value") is not None:
        made["order_value"] = RestToGrpc.convert_order_value(found["order_value"])
    return made


def _id(given: int | str) -> Any:
    return grpc.PointId(num=given) if isinstance(given, int) else grpc.PointId(uuid=given)


def _output_vectors(given: Any) -> Any:
    if isinstance(given, dict) and given.keys() != {"indices", "values"}:
        named = {name: _output_vector(one) for name, one in given.items()}
        return grpc.VectorsOutput(vectors=grpc.NamedVectorsOutput(vectors=named))
    return grpc.VectorsOutput(vector=_output_vector(given))


def _output_vector(given: Any) -> Any:
    if isinstance(given, dict):
        return grpc.VectorOutput(sparse=grpc.SparseVector(indices=given["indices"], values=given["values"]))
    if given and isinstance(given[0], list):
        rows = [grpc.DenseVector(data=row) for row in given]
        return grpc.VectorOutput(multi_dense=grpc.MultiDenseVector(vectors=rows))
    return grpc.VectorOutput(dense=grpc.DenseVector(data=given))
