"""Filters and queries of Qdrant's REST API as the engine's."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import qdrant_edge as qe

from tests.support.qdrant_standin_faults import Fault, wrong_input

Json = dict[str, Any]


def _match_value(given: Any) -> Any:
    if isinstance(given, bool):
        # The bindings take a bool for an int, and an int matches no bool; numpy's bool is no int.
        import numpy as np  # here: most servers start without it, in half the time

        given = np.bool_(given)
    return qe.MatchValue(given)


_MATCHES: dict[str, Callable[[Any], Any]] = {
    "value": _match_value,
    "any": qe.MatchAny,
    "except": qe.MatchExcept,
    "text": qe.MatchText,
    "text_any": qe.MatchTextAny,
    "phrase": qe.MatchPhrase,
    "prefix": qe.MatchPrefix,
    "substring": qe.MatchSubstring,
}
_CLAUSES = ("must", "should", "must_not", "min_should")


def point_id(given: Any) -> int | str:
    """The id of a point: an integer from 0 or a UUID.

    Raises:
        Fault: It is neither.
    """
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < 2**64:
        return given
    try:
        return str(uuid.UUID(given))
    except (ValueError, AttributeError, TypeError):
        text = f"value {given} is not a valid point ID, valid values are either an unsigned integer or a UUID"
        raise Fault(400, f"Format error in JSON body: {text}") from None


def edge_filter(given: Json | None) -> qe.Filter | None:
    """A filter; None selects everything."""
    if not given:
        return None
    parts: dict[str, Any] = {}
    for clause in ("must", "should", "must_not"):
        conditions = given.get(clause)
        if conditions:
            conditions = conditions if isinstance(conditions, list) else [conditions]
            parts[clause] = [_condition(condition) for condition in conditions]
    if given.get("min_should"):
        least = given["min_should"]
        parts["min_should"] = qe.MinShould([_condition(part) for part in least["conditions"]], least["min_count"])
    return qe.Filter(**parts)


def _condition(given: Json) -> Any:
    for name, make in _CONDITIONS.items():
        if given.get(name) is not None and "key" not in given:
            return make(given[name])
    if "key" in given:
        return _field(given)
    if not given or any(clause in given for clause in _CLAUSES):
        return edge_filter(given) or qe.Filter()
    raise Fault(400, f"Format error in JSON body: unknown condition {given}")


_CONDITIONS: dict[str, Callable[[Any], Any]] = {
    "nested": lambda given: qe.NestedCondition(given["key"], edge_filter(given["filter"]) or qe.Filter()),
    "has_id": lambda given: qe.HasIdCondition({point_id(one) for one in given}),
    "has_vector": qe.HasVectorCondition,
    "is_empty": lambda given: qe.IsEmptyCondition(given["key"]),
    "is_null": lambda given: qe.IsNullCondition(given["key"]),
}


def _field(given: Json) -> qe.FieldCondition:
    parts: dict[str, Any] = {}
    if given.get("match") is not None:
        ((kind, value),) = given["match"].items()
        parts["match"] = _MATCHES[kind](value)
    if given.get("range") is not None:
        limits = {name: limit for name, limit in given["range"].items() if limit is not None}
        texts = any(isinstance(limit, str) for limit in limits.values())
        parts["range"] = qe.RangeDateTime(**limits) if texts else qe.RangeFloat(**limits)
    if given.get("values_count") is not None:
        parts["values_count"] = qe.ValuesCount(**given["values_count"])
    for name in ("is_empty", "is_null"):
        if given.get(name) is not None:
            parts[name] = given[name]
    if not parts:
        raise Fault(400, f"the stand-in does not know this condition: {given}")
    return qe.FieldCondition(given["key"], **parts)


def order_by(given: Any) -> qe.OrderBy:
    """An order by a payload field, of ``"field"`` or of ``{"key", "direction", "start_from"}``."""
    if isinstance(given, str):
        return qe.OrderBy(given)
    downwards = given.get("direction") == "desc"
    direction = qe.Direction.Desc if downwards else qe.Direction.Asc
    return qe.OrderBy(given["key"], direction=direction, start_from=given.get("start_from"))


def search_params(given: Json | None) -> qe.SearchParams | None:
    """How to search: graph width, exactness."""
    if not given:
        return None
    quantization = given.get("quantization")
    return qe.SearchParams(
        hnsw_ef=given.get("hnsw_ef"),
        exact=given.get("exact") or False,
        indexed_only=given.get("indexed_only") or False,
        quantization=qe.QuantizationSearchParams(**quantization) if quantization else None,
    )


def vector(given: Any) -> Any:
    """A dense, sparse or multiple vector as the engine's.

    Raises:
        Fault: A sparse vector's indices are not unique, or are not as many as its values.
    """
    if not isinstance(given, dict):
        return given
    indices, values = given["indices"], given["values"]
    if len(indices) != len(values):
        raise Fault(422, "Validation error in JSON body: [indices: must be the same length as values]")
    if len(set(indices)) != len(indices):
        raise Fault(422, "Validation error in JSON body: [indices: must be unique]")
    return qe.SparseVector(indices, values)


def is_sparse(given: Any) -> bool:
    """Whether JSON is a sparse vector."""
    return isinstance(given, dict) and given.keys() == {"indices", "values"}


def scoring(given: Any, using: str | None, stored: Callable[[Any, str], Any]) -> Any:
    """A query of ``POST /points/query``; None returns points by id.

    Args:
        given: The query.
        using: Name of the vector.
        stored: Gives the vector of a point by its id and the vector's name.
    """
    if given is None:
        return None
    if isinstance(given, dict) and "nearest" in given and given.get("mmr") is None:
        given = given["nearest"]
    if isinstance(given, (int, str)):
        return qe.Query.Nearest(stored(point_id(given), using or ""), using=using)
    if isinstance(given, list) or is_sparse(given):
        return qe.Query.Nearest(vector(given), using=using)
    for name, make in _QUERIES.items():
        if name in given:
            return make(given)
    raise Fault(400, f"the stand-in does not know this query: {sorted(given)}")


_QUERIES: dict[str, Callable[[Json], Any]] = {
    "order_by": lambda given: order_by(given["order_by"]),
    "fusion": lambda given: qe.Fusion.Dbsf() if given["fusion"] == "dbsf" else qe.Fusion.Rrf(2),
    "rrf": lambda given: qe.Fusion.Rrf(given["rrf"].get("k") or 2, weights=given["rrf"].get("weights")),
    "formula": lambda given: qe.Formula(_expression(given["formula"]), given.get("defaults") or {}),
    "sample": lambda _: qe.Sample.Random,
}


def _expression(given: Any) -> Any:
    if isinstance(given, (int, float)):
        return qe.Expression.Constant(given)
    if isinstance(given, str):
        return qe.Expression.Variable(given)
    name = next(iter(given))
    make = _EXPRESSIONS.get(name)
    return qe.Expression.Condition(_condition(given)) if make is None else make(given[name])


def _divided(given: Json) -> Any:
    left, right = _expression(given["left"]), _expression(given["right"])
    return qe.Expression.Div(left, right, by_zero_default=given.get("by_zero_default"))


def _many(make: Callable[[list[Any]], Any]) -> Callable[[Any], Any]:
    return lambda given: make([_expression(part) for part in given])


def _one(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda given: make(_expression(given))


_EXPRESSIONS: dict[str, Callable[[Any], Any]] = {
    "sum": _many(qe.Expression.Sum),
    "mult": _many(qe.Expression.Mult),
    "max": _many(qe.Expression.Max),
    "min": _many(qe.Expression.Min),
    "neg": _one(qe.Expression.Neg),
    "abs": _one(qe.Expression.Abs),
    "sqrt": _one(qe.Expression.Sqrt),
    "exp": _one(qe.Expression.Exp),
    "log10": _one(qe.Expression.Log10),
    "ln": _one(qe.Expression.Ln),
    "div": _divided,
    "pow": lambda given: qe.Expression.Pow(_expression(given["base"]), _expression(given["exponent"])),
}


def prefetches(given: Any, stored: Callable[[Any, str], Any]) -> list[qe.Prefetch]:
    """The stages before a query, each with those before it."""
    if given is None:
        return []
    stages = given if isinstance(given, list) else [given]
    for stage in stages:
        if stage.get("lookup_from") is not None:
            raise wrong_input("the stand-in does not look vectors up in other collections")
    return [
        qe.Prefetch(
            limit=10 if stage.get("limit") is None else stage["limit"],
            query=scoring(stage.get("query"), stage.get("using"), stored),
            prefetches=prefetches(stage.get("prefetch"), stored),
            params=search_params(stage.get("params")),
            filter=edge_filter(stage.get("filter")),
            score_threshold=stage.get("score_threshold"),
        )
        for stage in stages
    ]
