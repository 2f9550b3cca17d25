"""The requests that the stand-in server answers, by method and path of Qdrant's REST API."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import qdrant_edge as qe

from tests.support.qdrant_standin_collections import Collection, Collections
from tests.support.qdrant_standin_faults import Fault, wrong_input
from tests.support.qdrant_standin_filters import edge_filter, order_by, point_id, prefetches, scoring, search_params
from tests.support.qdrant_standin_points import json_id, payload_wanted, record, records

Json = dict[str, Any]


@dataclass
class Request:
    """A request, its body parsed.

    Attributes:
        path: Parts of the path that the route leaves open.
        query: Parameters of the URL.
        body: JSON, None for an empty body.
        size_bytes: Length of the body.
    """

    path: list[str]
    query: dict[str, str]
    body: Any
    size_bytes: int = 0

    @property
    def waits(self) -> bool:
        """Whether the client waits for the effect of an update."""
        return self.query.get("wait") == "true"

    @property
    def acknowledged(self) -> str:
        """What an update says of itself: whether the client asked to wait for its effect."""
        return "completed" if self.waits else "acknowledged"


@dataclass
class Route:
    """How one kind of request is answered.

    Attributes:
        method: HTTP method.
        pattern: Of the whole path.
        answer: Makes the ``result``.
        writes: It changes data: refused where the disk is full or the key may only read.
        raw: The answer is not wrapped in ``{"result": ...}``.
    """

    method: str
    pattern: re.Pattern[str]
    answer: Callable[[Collections, Request], Any]
    writes: bool = False
    raw: bool = False


@dataclass
class Routes:
    """All of them."""

    version: str
    found: list[Route] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.found = _routes(self.version)

    def match(self, method: str, path: str) -> tuple[Route, list[str]]:
        """The route of a request and the open parts of its path.

        Raises:
            Fault: There is none.
        """
        other = False
        for route in self.found:
            matched = route.pattern.fullmatch(path)
            if matched and route.method == method:
                return route, [unquote(part) for part in matched.groups()]
            other = other or matched is not None
        raise Fault(405 if other else 404, "", plain=True)


def _routes(version: str) -> list[Route]:
    about = {"title": "qdrant - vector search engine", "version": version, "commit": "stand-in"}

    def route(method: str, path: str, answer: Callable[[Collections, Request], Any], **options: bool) -> Route:
        return Route(method, re.compile(path.replace("{}", "([^/]+)")), answer, **options)

    name, points = "/collections/{}", "/collections/{}/points"
    return [
        route("GET", "/", lambda _, __: about, raw=True),
        *[
            route("GET", path, lambda _, __: "healthz check passed", raw=True)
            for path in ("/healthz", "/livez", "/readyz")
        ],
        route("GET", "/collections", lambda all_, _: {"collections": [{"name": one} for one in all_.names()]}),
        route("GET", "/aliases", lambda all_, _: {"aliases": _aliases(all_, None)}),
        route("POST", "/collections/aliases", _change_aliases, writes=True),
        route("GET", name + "/exists", lambda all_, request: {"exists": request.path[0] in all_}),
        route("GET", name + "/aliases", lambda all_, request: {"aliases": _aliases(all_, request.path[0])}),
        route("GET", name, lambda all_, request: all_[request.path[0]].info()),
        route("PUT", name, _create, writes=True),
        route("PATCH", name, _change, writes=True),
        route("DELETE", name, lambda all_, request: all_.delete(request.path[0]), writes=True),
        route("PUT", name + "/index", _create_index, writes=True),
        route("DELETE", name + "/index/{}", _delete_index, writes=True),
        route("PUT", points, _update("upsert"), writes=True),
        route("POST", points, _retrieve),
        route("POST", points + "/delete", _update("delete"), writes=True),
        route("POST", points + "/payload", _update("set_payload"), writes=True),
        route("PUT", points + "/payload", _update("overwrite_payload"), writes=True),
        route("POST", points + "/payload/delete", _update("delete_payload"), writes=True),
        route("POST", points + "/payload/clear", _update("clear_payload"), writes=True),
        route("PUT", points + "/vectors", _update("update_vectors"), writes=True),
        route("POST", points + "/vectors/delete", _update("delete_vectors"), writes=True),
        route("POST", points + "/batch", _batch, writes=True),
        route("POST", points + "/scroll", _scroll),
        route("POST", points + "/count", _count),
        route("POST", points + "/query", lambda all_, request: _query(all_[request.path[0]], request.body)),
        route("POST", points + "/query/batch", _queries),
        route("POST", name + "/facet", _facet),
        route("GET", points + "/{}", _point),
    ]


def _create(collections: Collections, request: Request) -> bool:
    collections.create(request.path[0], request.body or {})
    return True


def _change(collections: Collections, request: Request) -> bool:
    collections[request.path[0]].change(request.body or {})
    return True


def _aliases(collections: Collections, name: str | None) -> list[Json]:
    return [
        {"alias_name": alias, "collection_name": of}
        for alias, of in sorted(collections.aliases.items())
        if name is None or of == name
    ]


def _change_aliases(collections: Collections, request: Request) -> bool:
    collections.change_aliases(request.body["actions"])
    return True


def _create_index(collections: Collections, request: Request) -> Json:
    schema = request.body.get("field_schema")
    number = collections[request.path[0]].create_index(request.body["field_name"], schema)
    return {"operation_id": number, "status": request.acknowledged}


def _delete_index(collections: Collections, request: Request) -> Json:
    return {
        "operation_id": collections[request.path[0]].delete_index(request.path[1]),
        "status": request.acknowledged,
    }


def _update(kind: str) -> Callable[[Collections, Request], Json]:
    def answer(collections: Collections, request: Request) -> Json:
        number = collections[request.path[0]].update(kind, request.body, request.size_bytes, request.waits)
        return {"operation_id": number, "status": request.acknowledged}

    return answer


def _batch(collections: Collections, request: Request) -> list[Json]:
    collection = collections[request.path[0]]
    done = []
    for operation in request.body["operations"]:
        ((kind, body),) = operation.items()
        size_bytes = request.size_bytes // len(request.body["operations"])
        number = collection.update(kind, body, size_bytes, request.waits)
        done.append({"operation_id": number, "status": request.acknowledged})
    return done


def _point(collections: Collections, request: Request) -> Json:
    given = request.path[1]
    with collections[request.path[0]].engine() as engine:
        found = engine.retrieve([point_id(int(given) if given.isdigit() else given)], True, True)
    if not found:
        raise Fault(404, f"Not found: Point with id {given} does not exists!")
    return record(found[0], True)


def _retrieve(collections: Collections, request: Request) -> list[Json]:
    body = request.body
    wanted = payload_wanted(body.get("with_payload"), True)
    ids: list[Any] = [point_id(one) for one in body["ids"]]
    with collections[request.path[0]].engine() as engine:
        return records(engine.retrieve(ids, wanted, _vector_wanted(body)), wanted)


def _scroll(collections: Collections, request: Request) -> Json:
    body = request.body
    wanted = payload_wanted(body.get("with_payload"), True)
    offset = body.get("offset")
    if offset is not None and body.get("order_by") is not None:
        raise wrong_input("Cannot use an `offset` when using `order_by`. The alternative for paging is to use")
    made = qe.ScrollRequest(
        offset=None if offset is None else point_id(offset),
        limit=_limit(body),
        filter=edge_filter(body.get("filter")),
        with_payload=wanted,
        with_vector=_vector_wanted(body),
        order_by=None if body.get("order_by") is None else order_by(body["order_by"]),
    )
    with collections[request.path[0]].engine() as engine:
        found, following = engine.scroll(made)
        return {"points": records(found, wanted), "next_page_offset": json_id(following)}


def _count(collections: Collections, request: Request) -> Json:
    exact = request.body.get("exact")
    made = qe.CountRequest(exact=True if exact is None else exact, filter=edge_filter(request.body.get("filter")))
    with collections[request.path[0]].engine() as engine:
        return {"count": engine.count(made)}


def _facet(collections: Collections, request: Request) -> Json:
    body = request.body
    made = qe.FacetRequest(body["key"], _limit(body), bool(body.get("exact")), edge_filter(body.get("filter")))
    with collections[request.path[0]].engine() as engine:
        return {"hits": [{"value": hit.value, "count": hit.count} for hit in engine.facet(made)]}


def _query(collection: Collection, body: Json) -> Json:
    if body.get("lookup_from") is not None:
        raise wrong_input("the stand-in does not look vectors up in other collections")
    wanted = payload_wanted(body.get("with_payload"), False)
    with collection.engine() as engine:

        def stored(one: Any, name: str) -> Any:
            found = engine.retrieve([one], False, True)
            if not found:
                raise Fault(404, f"Not found: No point with id {one} found")
            vectors = found[0].vector
            return vectors[name] if isinstance(vectors, dict) else vectors

        where = edge_filter(body.get("filter"))
        query = body.get("query")
        query = query["nearest"] if isinstance(query, dict) and "nearest" in query else query
        if isinstance(query, (int, str)):  # a point is not among those nearest to it
            itself = qe.Filter(must_not=[qe.HasIdCondition({point_id(query)})])
            where = itself if where is None else qe.Filter(must=[where, itself])
        made = qe.QueryRequest(
            limit=_limit(body),
            offset=body.get("offset") or 0,
            query=scoring(body.get("query"), body.get("using"), stored),
            prefetches=prefetches(body.get("prefetch"), stored),
            with_vector=_vector_wanted(body),
            with_payload=wanted,
            filter=where,
            score_threshold=body.get("score_threshold"),
            params=search_params(body.get("params")),
        )
        return {"points": records(engine.query(made), wanted)}


def _queries(collections: Collections, request: Request) -> list[Json]:
    collection = collections[request.path[0]]
    return [_query(collection, body) for body in request.body["searches"]]


def _limit(body: Json) -> int:
    limit = 10 if body.get("limit") is None else body["limit"]
    if not isinstance(limit, int) or limit < 1:
        raise Fault(422, f"Validation error in JSON body: [limit: value {limit} invalid, must be 1 or larger]")
    return limit


def _vector_wanted(body: Json) -> Any:
    return False if body.get("with_vector") is None else body["with_vector"]
