"""Making, opening, migrating and removing a store on a server, and what is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient
from qdrant_client import models as qm

from engine.errors import IndexMismatchError, IndexMissingError, StoreError
from engine.schema import Model, ModelState, Performance
from engine.store import records
from engine.store.address import ServerAddress, connect
from engine.store.base import StoreFilter, StoreLayout
from engine.store.server import ServerChoices, ServerStore
from engine.store.server_migrate import migrate
from tests.support.output_tables import assert_same, fast_folder, make_table
from tests.support.qdrant_server import standin
from tests.support.stores import GRPC_KINDS, SERVER_KINDS, quick_patience, server_place, standin_url

LAYOUT = StoreLayout(probes=40, top_r=6, dimension=4)


@pytest.fixture(params=[*SERVER_KINDS, *GRPC_KINDS])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[QdrantClient, str]]:
    """A client of a server, and the name of an index to make there."""
    with fast_folder(tmp_path) as folder, server_place(request.param, folder) as (client, name):
        made = client()
        yield made, name
        made.close()


def refused(kind: type[Exception], request: Callable[[], object], words: str) -> str:
    with pytest.raises(kind, match=words) as caught:
        request()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


def test_a_new_store_is_made_by_the_documented_choices(server: tuple[QdrantClient, str]) -> None:
    client, name = server
    store = ServerStore.create(client, name, LAYOUT)
    store.upsert_knowledge([Performance(model="m", task="pets", value=0.5)])
    outputs = client.get_collection(f"{name}_outputs").config
    vectors, sparse = outputs.params.vectors, outputs.params.sparse_vectors
    assert isinstance(vectors, dict) and sparse is not None
    dense, local = vectors["global"], sparse["local"]
    assert (dense.size, dense.distance, dense.on_disk) == (5, qm.Distance.DOT, True)
    assert dense.hnsw_config is not None and dense.hnsw_config.m == 0
    assert local.index is not None
    assert local.index.on_disk is True and local.index.datatype == qm.Datatype.FLOAT32
    assert local.modifier in {None, qm.Modifier.NONE}
    assert dense.quantization_config is None and outputs.quantization_config is None
    metadata = client.get_collection(f"{name}_models").config.metadata or {}
    assert metadata["format"] == 2 and metadata["identity"] == store.identity and len(store.identity) == 36
    assert {key: metadata[key] for key in ("probes", "top_r", "dimension", "method")} == {
        "probes": 40,
        "top_r": 6,
        "dimension": 4,
        "method": "whitened",
    }
    again = ServerStore.open(client, name)
    assert (again.layout, again.identity, again.name) == (LAYOUT, store.identity, name)
    refused(StoreError, lambda: ServerStore.create(client, name, LAYOUT), "open it, or delete it first")


def test_fields_that_are_searched_by_have_indexes_and_the_choices_reach_the_server() -> None:
    client = connect(standin_url())
    name = "choices"
    ServerStore.create(client, name, LAYOUT, ServerChoices(shards=4, replicas=3, write_consistency=2))
    outputs, models = (client.get_collection(f"{name}_{part}") for part in ("outputs", "models"))
    fields = {"model", "library", "licence", "architecture", "parameters", "downloads"}
    own = {"repo", "revision", "labelled", "background", "written"}
    assert set(outputs.payload_schema) == {*own, *(f"holders[].{field}" for field in fields)}
    assert {"seq", "copy_of", "removed", "repo", "state", "calibration"} == set(models.payload_schema)
    for found, shards, consistency in ((outputs, 4, 2), (models, 1, 2)):
        params = found.config.params
        assert (params.shard_number, params.replication_factor) == (shards, 3)
        assert params.write_consistency_factor == consistency and params.on_disk_payload is True
    ServerStore.open(client, name).destroy()
    client.close()


@pytest.mark.parametrize("bad", [{"shards": 0}, {"replicas": -1}, {"replicas": 2, "write_consistency": 3}])
def test_choices_that_no_cluster_has_are_refused(bad: dict[str, int]) -> None:
    client = QdrantClient(":memory:")
    refused(StoreError, lambda: ServerStore.create(client, "x", LAYOUT, ServerChoices(**bad)), "use a")
    assert client.get_collections().collections == []


def test_an_interrupted_creation_is_made_good(server: tuple[QdrantClient, str]) -> None:
    client, name = server
    first = ServerStore.create(client, name, LAYOUT)
    client.delete_collection(f"{name}_models")
    refused(IndexMissingError, lambda: ServerStore.open(client, name), name)
    store = ServerStore.create(client, name, LAYOUT)
    assert store.identity != first.identity
    store.upsert_outputs(make_table(LAYOUT))
    client.delete_collection(f"{name}_models")
    store = ServerStore.create(client, name, replace(LAYOUT, dimension=9))
    assert store.layout.dimension == 9 and store.count_outputs() == 0


def test_two_creations_at_once_do_not_delete_what_the_first_has_written(
    server: tuple[QdrantClient, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, name = server
    exists = client.collection_exists
    asked: list[str] = []

    def overtaken(collection: str) -> bool:
        asked.append(collection)
        if len(asked) == 1:  # there is none yet; before the next question another has made one and filled it
            monkeypatch.setattr(client, "collection_exists", exists)
            ServerStore.create(client, name, LAYOUT).upsert_outputs(make_table(LAYOUT))
            return False
        return exists(collection)

    monkeypatch.setattr(client, "collection_exists", overtaken)
    refused(StoreError, lambda: ServerStore.create(client, name, LAYOUT), "open it, or delete it first")
    assert ServerStore.open(client, name).count_outputs() == 7


def test_an_index_is_removed_and_nothing_else(server: tuple[QdrantClient, str]) -> None:
    client, name = server
    store = ServerStore.create(client, name, LAYOUT)
    store.upsert_knowledge([Performance(model="m", task="pets", value=0.5)])
    plain: dict[str, Any] = {"vectors_config": {}, "sparse_vectors_config": {"none": qm.SparseVectorParams()}}
    client.create_collection(f"{name}_files", **plain, metadata={"hubhound": "files"})
    client.create_collection(f"{name}_joint", **plain)  # somebody else's
    store.destroy()
    left = [one.name for one in client.get_collections().collections if one.name.startswith(name)]
    assert left == [f"{name}_joint"]
    store.destroy()
    refused(StoreError, lambda: ServerStore.create(client, name, LAYOUT), "another project")


@pytest.mark.parametrize("part", ["models", "outputs"])
@pytest.mark.parametrize("metadata", [None, {"format": "2", "owner": "somebody"}], ids=["bare", "marked"])
def test_collections_of_others_are_neither_used_nor_deleted(
    server: tuple[QdrantClient, str], part: str, metadata: dict[str, Any] | None
) -> None:
    client, name = server
    size = qm.VectorParams(size=4, distance=qm.Distance.COSINE)
    client.create_collection(f"{name}_{part}", vectors_config=size, metadata=metadata)
    client.upsert(f"{name}_{part}", [qm.PointStruct(id=1, vector=[1, 2, 3, 4], payload={"precious": True})], wait=True)
    requests: list[Callable[[], object]] = [lambda: ServerStore.create(client, name, LAYOUT)]
    if part == "models":
        requests += [lambda: ServerStore.open(client, name), lambda: migrate(client, name)]
    for request in requests:
        message = refused(StoreError, request, "another project")
        assert f"{name}_{part}" in message and "choose another name" in message
    assert client.count(f"{name}_{part}").count == 1


def test_formats_of_the_future_and_of_the_past(server: tuple[QdrantClient, str]) -> None:
    client, name = server
    ServerStore.create(client, name, LAYOUT)
    for future in (3, 99):
        client.update_collection(f"{name}_models", metadata={"format": future})
        for request in (ServerStore.open, migrate):
            message = refused(IndexMismatchError, lambda request=request: request(client, name), f"format {future}")  # type: ignore[misc]
            assert "update hubhound" in message
        refused(IndexMismatchError, lambda: ServerStore.create(client, name, LAYOUT), "format")
    client.update_collection(f"{name}_models", metadata={"format": 1})
    assert "index migrate" in refused(IndexMismatchError, lambda: ServerStore.open(client, name), "format 1")
    client.update_collection(f"{name}_models", metadata={"format": 2, "top_r": "many"})
    refused(StoreError, lambda: ServerStore.open(client, name), "damaged")


def old_store(client: QdrantClient, name: str) -> list[Model]:
    """A store as the first format had it: no numbers, no holders, no marks, no identity."""
    plain: dict[str, Any] = {"vectors_config": {}, "sparse_vectors_config": {"none": qm.SparseVectorParams()}}
    dense = qm.VectorParams(size=5, distance=qm.Distance.DOT, on_disk=True, hnsw_config=qm.HnswConfigDiff(m=0))
    sparse = qm.SparseVectorParams(index=qm.SparseIndexParams(on_disk=True, datatype=qm.Datatype.FLOAT32))
    client.create_collection(
        f"{name}_outputs", vectors_config={"global": dense}, sparse_vectors_config={"local": sparse}
    )
    metadata = {"format": 1, "probes": 40, "top_r": 6, "dimension": 4, "method": "whitened"}
    client.create_collection(f"{name}_models", **plain, metadata=metadata)
    client.create_collection(f"{name}_profiles", **plain)
    models = []
    for repo in ("org/a", "org/b", "org/c"):
        points = [
            qm.PointStruct(
                id=point.id,
                vector={"local": qm.SparseVector(indices=point.indices, values=point.values), "global": point.dense},
                payload=point.payload,
            )
            for point in records.output_points(make_table(LAYOUT, repo), LAYOUT)
        ]
        client.upsert(f"{name}_outputs", points, wait=True)
        models.append(Model(repo=repo, revision="r1", outputs=7, library="Timm"))
    models.append(Model(repo="z/c", revision="x", state=ModelState.COPY, copy_of="org/b", copied_revision="r1"))
    for model in models:
        payload = records.model_payload(model)
        client.upsert(f"{name}_models", [qm.PointStruct(id=model.point_id, vector={}, payload=payload)], wait=True)
    return models


@pytest.mark.parametrize("killed", [False, True])
def test_the_first_format_is_migrated(
    server: tuple[QdrantClient, str], killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, name = server
    models = old_store(client, name)
    if killed:
        with monkeypatch.context() as patch:
            patch.setattr(client, "batch_update_points", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                migrate(client, name)
        refused(IndexMismatchError, lambda: ServerStore.open(client, name), "format 1")
    steps: list[tuple[int, int]] = []
    assert migrate(client, name, progress=lambda *step: steps.append(step)) == 1
    assert steps[-1] == (4, 4)
    store = ServerStore.open(client, name)
    assert store.layout == LAYOUT and len(store.identity) == 36
    assert store.models() == models
    assert {change.repo: change.model for change in store.changes(0)} == {model.repo: model for model in models}
    assert_same(store.outputs("org/b", "r1"), make_table(LAYOUT, "org/b"))
    query = np.ones(5, np.float32)
    assert {hit.repo for hit in store.query_global(query, 99, StoreFilter({"model": ("z/c",)}))} == {"org/b"}
    assert store.count_outputs(StoreFilter({"library": ("timm",)})) == 21
    assert store.count_outputs(StoreFilter({}, labelled=True)) == 12
    assert store.count_outputs(StoreFilter({}, labelled=False)) == 9
    newest, identity = store.newest(), store.identity
    assert migrate(client, name) == 2, "again: nothing but a check"
    assert (store.newest(), ServerStore.open(client, name).identity) == (newest, identity)
    store.destroy()
    refused(IndexMissingError, lambda: migrate(client, name), name)


def test_a_migration_mends_what_is_missing(server: tuple[QdrantClient, str]) -> None:
    client, name = server
    store = ServerStore.create(client, name, LAYOUT)
    store.upsert_outputs(make_table(LAYOUT))
    store.upsert_model(Model(repo="org/a", revision="r1", outputs=7, library="timm"))
    client.delete_payload(f"{name}_outputs", ["holders", "labelled"], points=qm.Filter(), wait=True)
    assert store.count_outputs(StoreFilter({"library": ("timm",)})) == 0
    assert migrate(client, name) == 2
    assert store.count_outputs(StoreFilter({"library": ("timm",)}, labelled=True)) == 4


def test_a_server_that_does_not_answer() -> None:
    for request in (
        ServerStore.open,
        lambda client, name, patience: ServerStore.create(client, name, LAYOUT, patience=patience),
    ):
        client = connect("http://127.0.0.1:9", timeout_s=2)
        patience = quick_patience("http://127.0.0.1:9", "x")
        refused(StoreError, lambda r=request, c=client, p=patience: r(c, "x", patience=p), "9 does not answer .* is it")  # type: ignore[misc]
    address = ServerAddress.parse("qdrant://no.such.host.invalid/x")
    refused(StoreError, lambda: ServerStore.open(address.connect(), "x"), "does not answer")


def test_a_server_that_is_too_old_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    client = QdrantClient(":memory:")
    with monkeypatch.context() as patch:
        create = client.create_collection
        patch.setattr(client, "create_collection", lambda name, **given: create(name, **{**given, "metadata": None}))
        refused(StoreError, lambda: ServerStore.create(client, "x", LAYOUT), "too old")
    ServerStore.create(client, "x", LAYOUT).close()


@contextmanager
def web_server(status: int, body: bytes, kind: str = "text/html") -> Iterator[str]:
    """A web server that is not Qdrant."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, b"<html>not found</html>"),
        (200, b"<html>welcome</html>"),
        (200, b'{"hello": "world"}'),
        (200, json.dumps({"result": 7}).encode()),
        (404, b'{"detail":"Not Found"}'),
        (405, b""),
        (301, b""),
    ],
)
def test_what_is_not_qdrant_is_recognised(status: int, body: bytes) -> None:
    with web_server(status, body) as authority:
        client = ServerAddress.parse(f"qdrant://{authority}/x").connect()
        message = refused(StoreError, lambda: ServerStore.open(client, "x"), "is no Qdrant server")
        assert authority in message
        client.close()


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fast_folder(tmp_path) as folder, standin(folder, api_key="good", read_only_api_key="looking") as server:
        address = ServerAddress.parse(f"qdrant://127.0.0.1:{server.port}/x")

        def use(key: str | None, request: Callable[[QdrantClient], object]) -> None:
            monkeypatch.setenv("HUBHOUND_QDRANT_API_KEY", key or "")
            client = address.connect()
            try:
                request(client)
            finally:
                client.close()

        use("good", lambda client: ServerStore.create(client, "x", LAYOUT))
        words = "wants an API key .*set HUBHOUND_QDRANT_API_KEY"
        refused(StoreError, lambda: use(None, lambda client: ServerStore.open(client, "x")), words)
        message = refused(
            StoreError, lambda: use("wrong-key", lambda client: ServerStore.open(client, "x")), "refuses the API key"
        )
        assert "wrong-key" not in message
        use("looking", lambda client: ServerStore.open(client, "x").models())
        model = Model(repo="org/a", revision="r1")
        refused(
            StoreError,
            lambda: use("looking", lambda client: ServerStore.open(client, "x").upsert_model(model)),
            "the API key may not write to the index x at .*Forbidden.* to one that may",
        )


@pytest.mark.parametrize("status", [500, 507])
def test_a_full_disk_is_reported_at_once(tmp_path: Path, status: int) -> None:
    with (
        fast_folder(tmp_path) as folder,
        standin(folder, disk_full_after=25, disk_full_status=status) as server,
    ):
        client = connect(server.url)
        store = ServerStore.create(client, "x", LAYOUT)
        tables = [make_table(LAYOUT, f"org/{i}") for i in range(30)]

        def write() -> None:
            for table in tables:
                store.upsert_outputs(table)

        message = refused(StoreError, write, "the disk of the Qdrant server at .* is full")
        assert "free some space" in message
        assert store.count_outputs() > 0 and store.outputs("org/0", "r1") is not None, "reading goes on"
        store.close()
