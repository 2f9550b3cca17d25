"""Which requests of qdrant-client's generated APIs the stand-in server answers."""

from __future__ import annotations

import ast
import inspect
import re
from types import ModuleType

import pytest
from qdrant_client.http.api import aliases_api, collections_api, indexes_api, points_api, search_api, service_api

from tests.support.qdrant_standin_faults import Fault
from tests.support.qdrant_standin_grpc import CALLS
from tests.support.qdrant_standin_routes import Routes

MODULES = [aliases_api, collections_api, indexes_api, points_api, search_api, service_api]

NOT_ANSWERED = {
    ("GET", "/collections/{collection_name}/optimizations"),
    ("PUT", "/collections/{collection_name}/vectors/{vector_name}"),
    ("DELETE", "/collections/{collection_name}/vectors/{vector_name}"),
    ("POST", "/collections/{collection_name}/points/query/groups"),
    ("POST", "/collections/{collection_name}/points/search/matrix/offsets"),
    ("POST", "/collections/{collection_name}/points/search/matrix/pairs"),
    ("GET", "/metrics"),
    ("GET", "/telemetry"),
}
"""What nobody here asks for. Cluster, snapshot, quota and beta requests are left out as wholes."""


CALLS_NOT_ANSWERED = {
    *("CreateVectorName", "DeleteVectorName", "QueryGroups", "SearchMatrixPairs", "SearchMatrixOffsets"),
    *("Search", "SearchBatch", "SearchGroups", "Recommend", "RecommendBatch", "RecommendGroups"),
    *("Discover", "DiscoverBatch"),
    *("CollectionClusterInfo", "UpdateCollectionClusterSetup", "CreateShardKey", "DeleteShardKey", "ListShardKeys"),
}
"""The same over gRPC, where searches of before ``Query`` and the cluster have calls of their own."""


def _requests(module: ModuleType) -> set[tuple[str, str]]:
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Call):
            given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
            if "method" in given and "url" in given:
                found.add((str(given["method"]), str(given["url"])))
    return found


def test_every_request_is_answered_or_named_here() -> None:
    asked = {request for module in MODULES for request in _requests(module)}
    assert len(asked) > 30
    routes = Routes("1.0.0")
    missing = set()
    for method, url in asked:
        try:
            routes.match(method, re.sub(r"\{\w+\}", "x", url))
        except Fault:
            missing.add((method, url))
    assert missing == NOT_ANSWERED


def test_the_parts_of_a_path_are_unquoted() -> None:
    route, parts = Routes("1.0.0").match("DELETE", "/collections/a%2Fb/index/holders%5B%5D.library")
    assert parts == ["a/b", "holders[].library"]
    assert route.writes
    with pytest.raises(Fault) as caught:
        Routes("1.0.0").match("GET", "/collections/a/b/c")
    assert caught.value.status == 404


def test_every_call_over_grpc_is_answered_or_named_here() -> None:
    known: set[str] = set()
    for kind, answered in CALLS.items():
        calls = {name for name in vars(kind) if name[0].isupper()}
        assert answered.keys() <= calls
        known |= calls - answered.keys()
    assert known == CALLS_NOT_ANSWERED
    assert sum(len(answered) for answered in CALLS.values()) == 27
