"""Settings of a collection of the stand-in server: from the JSON of Qdrant's REST API to the engine's, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import qdrant_edge as qe

from tests.support.qdrant_standin_faults import Fault, wrong_input

Json = dict[str, Any]

NO_VECTOR = "standin-none"
"""The engine insists on a vector; a collection without one gets this, which stays empty and is never shown."""

_DISTANCES = {
    "Cosine": qe.Distance.Cosine,
    "Dot": qe.Distance.Dot,
    "Euclid": qe.Distance.Euclid,
    "Manhattan": qe.Distance.Manhattan,
}
_MEMORIES = {"cold": qe.Memory.Cold, "cached": qe.Memory.Cached, "pinned": qe.Memory.Pinned}
_DATATYPES = {
    "float32": qe.VectorStorageDatatype.Float32,
    "float16": qe.VectorStorageDatatype.Float16,
    "uint8": qe.VectorStorageDatatype.Uint8,
}
_SCHEMAS = {
    "keyword": (qe.PayloadSchemaType.Keyword, qe.KeywordIndexParams),
    "integer": (qe.PayloadSchemaType.Integer, qe.IntegerIndexParams),
    "float": (qe.PayloadSchemaType.Float, qe.FloatIndexParams),
    "bool": (qe.PayloadSchemaType.Bool, qe.BoolIndexParams),
    "geo": (qe.PayloadSchemaType.Geo, qe.GeoIndexParams),
    "datetime": (qe.PayloadSchemaType.Datetime, qe.DatetimeIndexParams),
    "uuid": (qe.PayloadSchemaType.Uuid, qe.UuidIndexParams),
    "text": (qe.PayloadSchemaType.Text, qe.TextIndexParams),
}
_TOKENIZERS = {
    "prefix": qe.TokenizerType.Prefix,
    "whitespace": qe.TokenizerType.Whitespace,
    "word": qe.TokenizerType.Word,
    "multilingual": qe.TokenizerType.Multilingual,
}

# What Qdrant answers for a collection that was created without saying otherwise.
_HNSW: Json = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000, "max_indexing_threads": 0, "on_disk": False}
_OPTIMIZERS: Json = {
    "deleted_threshold": 0.2,
    "vacuum_min_vector_number": 1000,
    "default_segment_number": 0,
    "max_segment_size": None,
    "memmap_threshold": None,
    "indexing_threshold": 10_000,
    "flush_interval_sec": 5,
    "max_optimization_threads": None,
}
_WAL: Json = {"wal_capacity_mb": 32, "wal_segments_ahead": 0, "wal_retain_closed": 1}
_PARAMS: Json = {"shard_number": 1, "replication_factor": 1, "write_consistency_factor": 1, "on_disk_payload": True}


def described(body: Json) -> Json:
    """A request to create a collection, completed with Qdrant's defaults: what ``GET /collections/NAME`` tells."""
    params = _set(body, {**_PARAMS, "vectors": {}, "sparse_vectors": None, "payload": None, "id_tracker": None})
    config: Json = {
        "params": params,
        "hnsw_config": {**_HNSW, **_set(body.get("hnsw_config"))},
        "optimizer_config": {**_OPTIMIZERS, **_set(body.get("optimizers_config"))},
        "wal_config": {**_WAL, **_set(body.get("wal_config"))},
        "quantization_config": body.get("quantization_config"),
    }
    if body.get("metadata") is not None:
        config["metadata"] = body["metadata"]
    if body.get("strict_mode_config") is not None:
        config["strict_mode_config"] = body["strict_mode_config"]
    return config


def changed(config: Json, body: Json) -> Json:
    """The settings of a collection after a request to change them (``PATCH /collections/NAME``).

    Metadata are merged key by key; null removes a key.
    """
    config = {**config}
    for here, there in (("hnsw_config", "hnsw_config"), ("optimizer_config", "optimizers_config")):
        config[here] = {**config[here], **_set(body.get(there))}
    config["params"] = {**config["params"], **_set(body.get("params"))}
    for part in ("vectors", "sparse_vectors"):
        for name, given in (body.get(part) or {}).items():
            known = named_vectors(config) if part == "vectors" else config["params"].get(part) or {}
            if name not in known:
                raise wrong_input(f"Not existing vector name error: {name}")
            known[name].update(_set(given))
    if body.get("metadata") is not None:
        config["metadata"] = _set({**config.get("metadata", {}), **body["metadata"]})
    return config


def named_vectors(config: Json) -> dict[str, Json]:
    """The dense vectors of a collection by name; "" is the one without a name."""
    vectors = config["params"].get("vectors") or {}
    return {"": vectors} if "size" in vectors else vectors


def edge_config(config: Json) -> qe.EdgeConfig:
    """The engine's settings for a described collection."""
    params, optimizers = config["params"], config["optimizer_config"]
    sparse = {name: _sparse(given or {}) for name, given in (params.get("sparse_vectors") or {}).items()}
    dense = {name: _dense(given, config["hnsw_config"]) for name, given in named_vectors(config).items()}
    if not dense and not sparse:
        sparse = {NO_VECTOR: qe.EdgeSparseVectorParams()}
    on_disk = params["on_disk_payload"]
    return qe.EdgeConfig(
        vectors=dense or None,
        sparse_vectors=sparse or None,
        payload_memory=qe.Memory.Cold if on_disk else qe.Memory.Cached,
        hnsw_config=_hnsw(config["hnsw_config"], {}),
        quantization_config=_quantization(config.get("quantization_config")),
        optimizers=qe.EdgeOptimizersConfig(
            deleted_threshold=optimizers["deleted_threshold"],
            vacuum_min_vector_number=optimizers["vacuum_min_vector_number"],
            # One segment unless told otherwise: two cores give two, and an order of equals that depends on the machine.
            default_segment_number=optimizers["default_segment_number"] or 1,
            max_segment_size=optimizers["max_segment_size"],
            indexing_threshold=optimizers["indexing_threshold"],
        ),
        max_search_threads=1,
    )


def index_schema(schema: Any) -> Any:
    """The engine's form of a payload index: of ``"keyword"`` or of ``{"type": "keyword", "is_tenant": true}``."""
    kind = schema if isinstance(schema, str) else (schema or {}).get("type")
    if kind not in _SCHEMAS:
        raise Fault(400, f"Format error in JSON body: unknown payload schema {schema!r}")
    plain, params = _SCHEMAS[kind]
    if isinstance(schema, str):
        if kind == "text":
            return qe.TextIndexParams(tokenizer=qe.TokenizerType.Word)
        return plain
    given = {key: value for key, value in schema.items() if key != "type" and value is not None}
    if "memory" in given:
        given["memory"] = _MEMORIES[given["memory"]]
    if kind == "text":
        given["tokenizer"] = _TOKENIZERS[given.get("tokenizer", "word")]
    return params(**given)


def schema_kind(schema: Any) -> str:
    """The type of a payload index, as ``data_type`` of a collection's description."""
    return schema if isinstance(schema, str) else str(schema["type"])


def _dense(given: Json, hnsw: Json) -> qe.EdgeVectorParams:
    given = _set(given)
    if not 1 <= given["size"] <= 65_536:
        raise Fault(422, "Validation error in JSON body: [vectors.size: value must be from 1 to 65536]")
    multi = qe.MultiVectorConfig(qe.MultiVectorComparator.MaxSim) if "multivector_config" in given else None
    return qe.EdgeVectorParams(
        size=given["size"],
        distance=_DISTANCES[given["distance"]],
        multivector_config=multi,
        datatype=_DATATYPES[given.get("datatype", "float32")],
        quantization_config=_quantization(given.get("quantization_config")),
        hnsw_config=_hnsw(hnsw, given["hnsw_config"]) if "hnsw_config" in given else None,
        memory=_memory(given, qe.Memory.Cached),
    )


def _sparse(given: Json) -> qe.EdgeSparseVectorParams:
    index = _set(given.get("index"))
    return qe.EdgeSparseVectorParams(
        full_scan_threshold=index.get("full_scan_threshold"),
        modifier=qe.Modifier.Idf if given.get("modifier") == "idf" else None,
        datatype=_DATATYPES[index.get("datatype", "float32")],
        memory=_memory(index, qe.Memory.Pinned),
    )


def _hnsw(base: Json, diff: Json) -> qe.HnswIndexConfig:
    given = {**base, **_set(diff)}
    return qe.HnswIndexConfig(
        m=given["m"],
        ef_construct=given["ef_construct"],
        full_scan_threshold=given["full_scan_threshold"],
        # One thread unless told otherwise: the same graph every time.
        max_indexing_threads=given.get("max_indexing_threads") or 1,
        payload_m=given.get("payload_m"),
        memory=_memory(given, qe.Memory.Cached),
    )


def _quantization(given: Any) -> Any:
    if given is None:
        return None
    if "scalar" not in given:
        raise Fault(400, f"the stand-in does not know this quantisation: {given}")
    scalar = _set(given["scalar"])
    return qe.ScalarQuantizationConfig(
        type=qe.ScalarType.Int8, quantile=scalar.get("quantile"), always_ram=scalar.get("always_ram")
    )


def _memory(given: Json, usual: qe.Memory) -> qe.Memory:
    if given.get("memory") is not None:
        return _MEMORIES[given["memory"]]
    return qe.Memory.Cold if given.get("on_disk") else usual


def _set(given: Mapping[str, Any] | None, defaults: Json | None = None) -> Json:
    """The fields that are set; with defaults, those fields only, completed by them."""
    if defaults is None:
        return {key: value for key, value in (given or {}).items() if value is not None}
    found = {
        key: default if (given or {}).get(key) is None else (given or {})[key] for key, default in defaults.items()
    }
    return {key: value for key, value in found.items() if value is not None}
