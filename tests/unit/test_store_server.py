"""What only the store on a server has."""

from __future__ import annotations

from dataclasses import replace

import pytest
from qdrant_client import QdrantClient

from engine.errors import StoreError
from engine.store.base import StoreLayout
from engine.store.server import ServerStore, connect

LAYOUT = StoreLayout(probes=40, top_r=6, dimension=4)


def test_a_server_that_does_not_answer() -> None:
    for use in (
        lambda client: ServerStore.open(client, "x"),
        lambda client: ServerStore.create(client, "x", LAYOUT),
    ):
        with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:9 does not answer") as caught:
            use(connect("http://127.0.0.1:9", timeout_s=2))
        assert "\n" not in str(caught.value)


def test_a_server_that_is_too_old_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    client = QdrantClient(":memory:")
    with monkeypatch.context() as patch:
        create = client.create_collection
        patch.setattr(client, "create_collection", lambda name, **given: create(name, **{**given, "metadata": None}))
        with pytest.raises(StoreError, match="too old"):
            ServerStore.create(client, "x", LAYOUT)
    ServerStore.create(client, "x", LAYOUT).close()


def test_an_interrupted_creation_on_a_server() -> None:
    client = QdrantClient(":memory:")
    ServerStore.create(client, "x", LAYOUT)
    client.delete_collection("x_models")
    store = ServerStore.create(client, "x", replace(LAYOUT, dimension=9))
    assert store.layout.dimension == 9
    store.close()
