"""The gRPC front of the stand-in server: each call becomes the REST request that does the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import grpc as transport
from qdrant_client import grpc

from tests.support import qdrant_standin_messages as messages
from tests.support.qdrant_standin_faults import Fault

Json = dict[str, Any]

_CODES = {
    400: transport.StatusCode.INVALID_ARGUMENT,
    401: transport.StatusCode.UNAUTHENTICATED,
    403: transport.StatusCode.PERMISSION_DENIED,
    404: transport.StatusCode.NOT_FOUND,
    409: transport.StatusCode.ALREADY_EXISTS,
    422: transport.StatusCode.INVALID_ARGUMENT,
    500: transport.StatusCode.INTERNAL,
    507: transport.StatusCode.RESOURCE_EXHAUSTED,
}
"""Qdrant's codes by the HTTP status of the same refusal."""

_THREADS = 16


class Backend(Protocol):
    """What answers REST requests."""

    def respond(self, method: str, target: str, headers: Mapping[str, str], body: Any, size_bytes: int) -> Any:
        """The ``result`` of the answer to a request.

        Raises:
            Fault: It is refused.
        """


@dataclass(frozen=True)
class Call:
    """The REST request that does the same as a call.

    Attributes:
        method: HTTP method.
        path: With the name of the collection in place of ``{}``.
        body: Made of the call's message.
        answer: The answering message, made of ``result``.
    """

    method: str
    path: str
    body: Callable[[Any], Json | None]
    answer: Callable[[Any], Any]


def _update(method: str, path: str, body: Callable[[Any], Json | None]) -> Call:
    return Call(method, "/collections/{}" + path, body, messages.updated)


def _read(path: str, body: Callable[[Any], Json], answer: Callable[[Any], Any]) -> Call:
    return Call("POST", "/collections/{}" + path, body, answer)


def _nothing(_: Any) -> None:
    return None


_ROOT = {"HealthCheck": Call("GET", "/", _nothing, lambda about: grpc.HealthCheckReply(**messages.about(about)))}
_COLLECTIONS = {
    "Get": Call("GET", "/collections/{}", _nothing, messages.collection_info),
    "List": Call("GET", "/collections", _nothing, messages.collections),
    "CollectionExists": Call("GET", "/collections/{}/exists", _nothing, messages.existence),
    "Create": Call("PUT", "/collections/{}", messages.creation, messages.done),
    "Update": Call("PATCH", "/collections/{}", messages.alteration, messages.done),
    "Delete": Call("DELETE", "/collections/{}", _nothing, messages.done),
    "UpdateAliases": Call("POST", "/collections/aliases", messages.alias_actions, messages.done),
    "ListAliases": Call("GET", "/aliases", _nothing, messages.aliases),
    "ListCollectionAliases": Call("GET", "/collections/{}/aliases", _nothing, messages.aliases),
}
_POINTS = {
    "Upsert": _update("PUT", "/points", messages.upsert),
    "Delete": _update("POST", "/points/delete", messages.selection),
    "ClearPayload": _update("POST", "/points/payload/clear", messages.selection),
    "SetPayload": _update("POST", "/points/payload", messages.payload),
    "OverwritePayload": _update("PUT", "/points/payload", messages.payload),
    "DeletePayload": _update("POST", "/points/payload/delete", messages.payload_keys),
    "UpdateVectors": _update("PUT", "/points/vectors", messages.vectors_of),
    "DeleteVectors": _update("POST", "/points/vectors/delete", messages.vector_names),
    "CreateFieldIndex": _update("PUT", "/index", messages.field_index),
    "DeleteFieldIndex": _update("DELETE", "/index/{field_name}", _nothing),
    "UpdateBatch": Call("POST", "/collections/{}/points/batch", messages.operations, messages.updated_all),
    "Get": _read("/points", messages.retrieval, messages.got),
    "Scroll": _read("/points/scroll", messages.scrolling, messages.scrolled),
    "Count": _read("/points/count", messages.counting, messages.counted),
    "Facet": _read("/facet", messages.faceting, messages.faceted),
    "Query": _read("/points/query", messages.query, messages.queried),
    "QueryBatch": _read("/points/query/batch", messages.queries, messages.queried_all),
}

CALLS: dict[type[Any], dict[str, Call]] = {
    grpc.QdrantServicer: _ROOT,
    grpc.CollectionsServicer: _COLLECTIONS,
    grpc.PointsServicer: _POINTS,
}
"""What is answered, by the generated class of each service."""


def grpc_server(
    backend: Backend, port: int, max_message_bytes: int, tls_certificate: Path | None, tls_key: Path | None
) -> tuple[transport.Server, int]:
    """A server that listens but does not answer yet, and its port.

    Args:
        backend: Answers.
        port: Where it listens on the loopback interface; 0 takes a free one.
        max_message_bytes: Longer requests are refused; -1: no limit, as Qdrant has none.
        tls_certificate: PEM file; with it the server speaks TLS.
        tls_key: PEM file of its key.
    """
    options = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
    ]
    server = transport.server(ThreadPoolExecutor(_THREADS), options=options)
    grpc.add_QdrantServicer_to_server(_service(grpc.QdrantServicer, _ROOT, backend), server)
    grpc.add_CollectionsServicer_to_server(_service(grpc.CollectionsServicer, _COLLECTIONS, backend), server)
    grpc.add_PointsServicer_to_server(_service(grpc.PointsServicer, _POINTS, backend), server)
    where = f"127.0.0.1:{port}"
    if tls_certificate is None or tls_key is None:
        return server, server.add_insecure_port(where)
    pair = (tls_key.read_bytes(), tls_certificate.read_bytes())
    return server, server.add_secure_port(where, transport.ssl_server_credentials([pair]))


def _service(kind: type[Any], calls: dict[str, Call], backend: Backend) -> Any:
    """A servicer; the calls that are not listed are answered as unknown by the generated class."""
    made = kind()
    for name, call in calls.items():
        setattr(made, name, _behaviour(call, backend))
    return made


def _behaviour(call: Call, backend: Backend) -> Callable[[Any, Any], Any]:
    def answer(request: Any, context: Any) -> Any:
        headers = {name: value for name, value in context.invocation_metadata() if isinstance(value, str)}
        try:
            body = call.body(request)
            result = backend.respond(call.method, _target(call.path, request), headers, body, request.ByteSize())
            return call.answer(result)
        except Fault as fault:
            context.abort(_CODES[fault.status], fault.text)
        except ValueError as error:  # a message that the conversions do not take
            context.abort(transport.StatusCode.INVALID_ARGUMENT, f"Malformed request: {error}")

    return answer


def _target(path: str, request: Any) -> str:
    """Path and query of the REST request."""
    fields = request.DESCRIPTOR.fields_by_name
    name = quote(request.collection_name, safe="") if "collection_name" in fields else ""
    field = quote(request.field_name, safe="") if "field_name" in fields else ""
    wait = f"?wait={'true' if request.wait else 'false'}" if "wait" in fields else ""
    return path.format(name, field_name=field) + wait
