"""The stand-in server refuses as Qdrant does, keeps what it acknowledged, and builds its graphs."""

from __future__ import annotations

import json
import shutil
import ssl
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from qdrant_client.http.exceptions import UnexpectedResponse

from tests.support.fault_proxy import DROP, Rule, fault_proxy
from tests.support.output_tables import fast_folder
from tests.support.qdrant_server import Standin, standin, tls_files

DENSE = qm.VectorParams(size=3, distance=qm.Distance.DOT)


def _client(url: str, **options: Any) -> QdrantClient:
    # The check asks for the version from a thread of its own, which may outlive a test.
    return QdrantClient(url=url, check_compatibility=False, **options)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standin]:
    with fast_folder(tmp_path_factory.mktemp("standin")) as folder, standin(folder) as running:
        yield running


@pytest.fixture
def client(server: Standin) -> Iterator[QdrantClient]:
    made = _client(server.url)
    yield made
    made.close()


@pytest.fixture
def name(client: QdrantClient) -> str:
    made = f"test_{uuid.uuid4().hex}"
    sparse = {"sparse": qm.SparseVectorParams()}
    client.create_collection(made, vectors_config={"dense": DENSE}, sparse_vectors_config=sparse)
    return made


def _points(count: int, start: int = 0) -> list[qm.PointStruct]:
    return [
        qm.PointStruct(id=one, vector={"dense": [one, 1.0, 0.5]}, payload={"number": one})
        for one in range(start, start + count)
    ]


def _refused(ask: Callable[[], Any]) -> tuple[int, str]:
    with pytest.raises(UnexpectedResponse) as caught:
        ask()
    content = caught.value.content.decode()
    error: str = json.loads(content)["status"]["error"] if content.startswith("{") else content
    assert caught.value.status_code is not None
    return caught.value.status_code, error


def test_it_says_what_it_is(server: Standin) -> None:
    about = httpx.get(server.url).json()
    assert about["title"] == "qdrant - vector search engine"
    assert about["version"] == "1.20.0"
    for path in ("/healthz", "/livez", "/readyz"):
        assert httpx.get(server.url + path).status_code == 200
    assert httpx.get(server.url + "/nowhere").status_code == 404
    assert httpx.delete(server.url + "/collections").status_code == 405


def test_collections_that_are_not_there(client: QdrantClient) -> None:
    text = "Not found: Collection `none` doesn't exist!"
    asks: list[Callable[[], Any]] = [
        lambda: client.get_collection("none"),
        lambda: client.count("none"),
        lambda: client.upsert("none", _points(1)),
        lambda: client.query_points("none", query=[1.0, 0.0, 0.0]),
        lambda: client.create_payload_index("none", "number", "integer"),
    ]
    assert [_refused(ask) for ask in asks] == [(404, text)] * len(asks)
    assert client.delete_collection("none") is False


def test_wrong_requests(client: QdrantClient, name: str) -> None:
    point = qm.PointStruct
    sparse = qm.SparseVector(indices=[1, 1], values=[1.0, 2.0])
    short = qm.SparseVector(indices=[1, 2], values=[1.0])
    cases: list[tuple[Callable[[], Any], int, str]] = [
        (lambda: client.create_collection(name, vectors_config=DENSE), 409, "already exists"),
        (lambda: client.create_collection("a/b", vectors_config=DENSE), 422, "Validation error"),
        (lambda: client.upsert(name, [point(id=1, vector={"dense": [1.0]})]), 400, "expected dim: 3, got 1"),
        (lambda: client.upsert(name, [point(id=1, vector={"other": [1.0]})]), 400, "Not existing vector name"),
        (lambda: client.upsert(name, [point(id="text", vector={})]), 400, "not a valid point ID"),
        (lambda: client.upsert(name, [point(id=1, vector={"sparse": sparse})]), 422, "must be unique"),
        (lambda: client.upsert(name, [point(id=1, vector={"sparse": short})]), 422, "same length"),
        (lambda: client.query_points(name, query=[1.0], using="dense"), 400, "expected dim: 3, got 1"),
        (lambda: client.query_points(name, query=[1.0, 1.0, 1.0], using="none"), 400, "Not existing vector name"),
        (lambda: client.query_points(name, query=7, using="dense"), 404, "No point with id 7"),
        (lambda: client.query_points(name, query=[1.0, 1.0, 1.0], using="dense", limit=0), 422, "limit"),
        (lambda: client.set_payload(name, {"a": 1}, points=[999]), 404, "No point with id 999"),
        (lambda: client.create_payload_index(name, "a b..", "integer"), 400, "invalid JSON path"),
    ]
    for ask, status, text in cases:
        got = _refused(ask)
        assert got[0] == status
        assert text in got[1]
    assert client.count(name).count == 0


def test_what_needs_a_payload_index_says_so(client: QdrantClient, name: str) -> None:
    client.upsert(name, _points(1), wait=True)
    for ask, text in (
        (lambda: client.facet(name, "number"), "Bad request: No appropriate index for faceting"),
        (lambda: client.scroll(name, order_by="number"), "Bad request: No range index"),
    ):
        status, error = _refused(ask)
        assert status == 400
        assert error.startswith(text)
    client.create_payload_index(name, "number", "integer", wait=True)
    assert [(hit.value, hit.count) for hit in client.facet(name, "number").hits] == [(0, 1)]
    assert [record.id for record in client.scroll(name, order_by="number")[0]] == [0]
    client.delete_payload_index(name, "number", wait=True)
    assert client.get_collection(name).payload_schema == {}
    assert _refused(lambda: client.facet(name, "number"))[0] == 400


def test_a_body_that_is_not_json_or_too_long(server: Standin, tmp_path: Path, name: str) -> None:
    path = f"/collections/{name}/points"
    answer = httpx.put(server.url + path, content=b"{")
    assert answer.status_code == 400
    assert answer.json()["status"]["error"].startswith("Format error in JSON body")
    assert httpx.put(server.url + path, content=b'{"points": 3}').status_code == 400
    with standin(tmp_path / "small", max_request_bytes=1000) as small:
        client = _client(small.url)
        client.create_collection("x", vectors_config={"dense": DENSE})
        status, text = _refused(lambda: client.upsert("x", _points(50)))
        assert status == 400
        assert text.startswith("Payload error: JSON payload (")
        assert text.endswith("bytes) is larger than allowed (limit: 1000 bytes).")
        assert client.upsert("x", _points(2), wait=False).status == qm.UpdateStatus.ACKNOWLEDGED
        assert client.upsert("x", _points(2), wait=True).status == qm.UpdateStatus.COMPLETED
        client.close()


def test_keys(tmp_path: Path) -> None:
    with (
        standin(tmp_path, api_key="whole", read_only_api_key="half") as server,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
        keys = ["whole", "half", "wrong", None]
        whole, half, wrong, none = clients = [_client(server.url, api_key=key) for key in keys]
        assert whole.create_collection("x", vectors_config={"dense": DENSE})
        assert half.count("x").count == 0
        assert _refused(lambda: half.upsert("x", _points(1))) == (403, "Forbidden: Global manage access is required")
        assert _refused(lambda: wrong.count("x")) == (401, "Invalid API key or JWT")
        missing = "Must provide an API key or an Authorization bearer token"
        assert _refused(none.get_collections) == (401, missing)
        bearer = httpx.get(f"{server.url}/collections", headers={"Authorization": "Bearer whole"})
        assert bearer.json()["result"] == {"collections": [{"name": "x"}]}
        assert httpx.get(server.url).status_code == 200
        for client in clients:
            client.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_https(tmp_path: Path) -> None:
    certificate, key = tls_files(tmp_path)
    with standin(tmp_path / "data", tls_certificate=certificate, tls_key=key) as server:
        assert server.url.startswith("https://")
        client = _client(server.url, verify=ssl.create_default_context(cafile=certificate))
        assert client.get_collections().collections == []
        client.close()
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(server.url)
        with pytest.raises(httpx.TransportError):
            httpx.get(server.url.replace("https", "http"))
        assert httpx.get(server.url, verify=ssl.create_default_context(cafile=certificate)).status_code == 200


@pytest.mark.parametrize("status", [500, 507])
def test_a_full_disk(status: int, tmp_path: Path) -> None:
    with standin(tmp_path, disk_full_after=2, disk_full_status=status) as server:
        client = _client(server.url)
        client.create_collection("x", vectors_config={"dense": DENSE})
        client.upsert("x", _points(3), wait=True)
        got = _refused(lambda: client.upsert("x", _points(3, 3), wait=True))
        assert got[0] == status
        assert "No space left on device" in got[1]
        assert client.count("x").count == 3  # what is there can be read
        client.close()


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    with standin(tmp_path) as server:
        client = _client(server.url)
        client.create_collection("x", vectors_config={"dense": DENSE}, metadata={"format": 2, "identity": "a-b"})
        client.create_payload_index("x", "number", qm.IntegerIndexParams(type="integer", lookup=True, range=True))
        alias = qm.CreateAlias(collection_name="x", alias_name="y")
        client.update_collection_aliases([qm.CreateAliasOperation(create_alias=alias)])
        for start in range(0, 500, 50):
            client.upsert("x", _points(50, start), wait=True)
        client.delete("x", [3], wait=True)
        client.set_payload("x", {"late": [1]}, points=[4], wait=True)
        server.kill()
        (tmp_path / "collections" / "half" / "shard").mkdir(parents=True)  # a creation that the kill came in between
        server.restart()
        assert client.count("y").count == 499
        assert client.retrieve("x", [3, 4])[0].payload == {"number": 4, "late": [1]}
        info = client.get_collection("x")
        assert info.config.metadata == {"format": 2, "identity": "a-b"}
        assert info.payload_schema["number"].points == 499
        assert info.payload_schema["number"].params.range is True
        assert client.scroll("x", limit=1, order_by="number")[0][0].id == 0
        assert client.get_collections().collections == [qm.CollectionDescription(name="x")]
        client.close()


def test_a_deleted_collection_leaves_nothing(client: QdrantClient, name: str, server: Standin) -> None:
    folder = server.folder / "collections" / name
    client.upsert(name, _points(3), wait=True)
    alias = qm.CreateAlias(collection_name=name, alias_name=f"{name}-alias")
    client.update_collection_aliases([qm.CreateAliasOperation(create_alias=alias)])
    assert folder.exists()
    assert client.delete_collection(name) is True
    assert not folder.exists()
    assert f"{name}-alias" not in [one.alias_name for one in client.get_aliases().aliases]
    client.create_collection(name, vectors_config={"dense": DENSE})
    assert client.count(name).count == 0


def test_metadata_are_merged_and_settings_reported(client: QdrantClient) -> None:
    name = f"test_{uuid.uuid4().hex}"
    dense = qm.VectorParams(size=3, distance=qm.Distance.DOT, on_disk=True, hnsw_config=qm.HnswConfigDiff(m=0))
    sparse = qm.SparseVectorParams(index=qm.SparseIndexParams(on_disk=True, datatype=qm.Datatype.FLOAT32))
    client.create_collection(
        name,
        vectors_config={"dense": dense},
        sparse_vectors_config={"sparse": sparse},
        shard_number=2,
        replication_factor=3,
        write_consistency_factor=2,
        on_disk_payload=True,
        metadata={"format": 1, "old": True},
    )
    client.update_collection(name, metadata={"format": 2, "old": None, "new": {"a": 1}})
    config = client.get_collection(name).config
    assert config.metadata == {"format": 2, "new": {"a": 1}}
    assert config.params.vectors == {"dense": dense}
    assert config.params.sparse_vectors == {"sparse": sparse}
    chosen = (config.params.shard_number, config.params.replication_factor, config.params.write_consistency_factor)
    assert chosen == (2, 3, 2)
    assert config.params.on_disk_payload is True


def test_a_collection_without_vectors(client: QdrantClient) -> None:
    name = f"test_{uuid.uuid4().hex}"
    client.create_collection(name, vectors_config={})
    client.upsert(name, [qm.PointStruct(id=1, vector={}, payload={"a": 1})], wait=True)
    (record,) = client.retrieve(name, [1], with_vectors=True)
    assert (record.payload, record.vector) == ({"a": 1}, {})


def test_a_graph_is_built_by_itself(client: QdrantClient, server: Standin) -> None:
    name = f"test_{uuid.uuid4().hex}"
    vectors = np.random.default_rng(1).normal(size=(3000, 64)).astype(np.float32)
    client.create_collection(
        name,
        vectors_config=qm.VectorParams(size=64, distance=qm.Distance.COSINE),
        hnsw_config=qm.HnswConfigDiff(m=4, ef_construct=16, full_scan_threshold=10),
        optimizers_config=qm.OptimizersConfigDiff(indexing_threshold=100),
    )
    client.upsert(name, [qm.PointStruct(id=one, vector=row.tolist()) for one, row in enumerate(vectors)], wait=True)
    info = client.get_collection(name)
    assert (info.status, info.indexed_vectors_count) == (qm.CollectionStatus.YELLOW, 0)
    deadline = time.monotonic() + 60
    while info.status != qm.CollectionStatus.GREEN:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        assert httpx.get(server.url + "/healthz").status_code == 200
        info = client.get_collection(name)
    assert info.indexed_vectors_count == 3000
    near = [_ids(client, name, row, hnsw_ef=1000) for row in vectors[:20]]
    exact = [_ids(client, name, row, exact=True) for row in vectors[:20]]
    rough = [_ids(client, name, row, hnsw_ef=4) for row in vectors[:20]]
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert exact == [np.argsort(-(units @ row))[:10].tolist() for row in units[:20]]
    assert _shared(near, exact) > 0.9 > _shared(rough, exact)  # the width of the search counts: it is the graph


def _ids(client: QdrantClient, name: str, row: Any, **params: Any) -> list[Any]:
    found = client.query_points(name, query=row.tolist(), limit=10, search_params=qm.SearchParams(**params))
    return [point.id for point in found.points]


def _shared(some: list[list[Any]], others: list[list[Any]]) -> float:
    return float(np.mean([len(set(one) & set(other)) / len(other) for one, other in zip(some, others, strict=True)]))


def test_a_write_whose_answer_is_lost_can_be_repeated(server: Standin, client: QdrantClient, name: str) -> None:
    with fault_proxy(server.url, Rule(DROP, method="PUT", path="/points$", times=1)) as proxy:
        through = _client(proxy.url)
        with pytest.raises(Exception, match=r"disconnected|reset"):
            through.upsert(name, _points(5), wait=True)
        assert client.count(name).count == 5
        through.upsert(name, _points(5), wait=True)
        assert client.count(name).count == 5
        assert proxy.count("PUT", "/points", executed=True) == 2
        through.close()


def test_who_does_not_wait_sees_it_later(client: QdrantClient, name: str) -> None:
    assert client.upsert(name, _points(3), wait=False).status == qm.UpdateStatus.ACKNOWLEDGED
    deadline = time.monotonic() + 10
    while client.count(name).count < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_updates_keep_their_order(tmp_path: Path) -> None:
    with standin(tmp_path, later_s=3600) as server:
        client = _client(server.url)
        client.create_collection("x", vectors_config={"dense": DENSE})
        client.upsert("x", _points(3), wait=False)
        client.set_payload("x", {"a": 1}, points=[7], wait=False)  # there is none: nobody is told
        assert client.count("x").count == 0
        client.set_payload("x", {"a": 1}, points=[0], wait=True)
        assert client.count("x").count == 3
        assert client.retrieve("x", [0])[0].payload == {"number": 0, "a": 1}
        client.delete("x", [0], wait=False)
        server.restart()  # an orderly end loses nothing
        assert client.count("x").count == 2
        client.close()


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    with standin(tmp_path) as server:
        assert server.process.stdin is not None
        server.process.stdin.close()  # as where that process was killed
        assert server.process.wait(30) == 0


def test_clients_at_the_same_time(server: Standin, name: str) -> None:
    clients = [_client(server.url) for _ in range(4)]  # each keeps its connection open
    for turn in range(5):
        for number, one in enumerate(clients):
            one.upsert(name, _points(10, 1000 * number + 10 * turn), wait=True)
    assert [one.count(name).count for one in clients] == [200] * 4
    for one in clients:
        one.close()


def test_a_kill_while_it_optimises(tmp_path: Path) -> None:
    vectors = np.random.default_rng(2).normal(size=(4000, 64)).astype(np.float32)
    with standin(tmp_path) as server:
        client = _client(server.url)
        client.create_collection(
            "x",
            vectors_config=qm.VectorParams(size=64, distance=qm.Distance.DOT),
            hnsw_config=qm.HnswConfigDiff(m=32, ef_construct=400),
            optimizers_config=qm.OptimizersConfigDiff(indexing_threshold=100),
        )
        client.upsert("x", [qm.PointStruct(id=one, vector=row.tolist()) for one, row in enumerate(vectors)], wait=True)
        building = tmp_path / "collections" / "x" / "shard" / "temp_segments"
        deadline = time.monotonic() + 30
        while not (building.exists() and any(building.iterdir())):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        server.kill()
        server.restart()
        assert client.get_collection("x").status == qm.CollectionStatus.YELLOW  # it goes on
        assert client.count("x").count == 4000
        assert _ids(client, "x", vectors[0], exact=True)[0] == int(np.argmax(vectors @ vectors[0]))
        client.close()
