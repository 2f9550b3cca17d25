"""Places for stores of every kind, so that one suite of tests runs on all of them."""

from __future__ import annotations

import atexit
import functools
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient

from engine.schema import Model, ModelState, Performance
from engine.store.base import DescriptorStore, StoreLayout
from engine.store.edge import EdgeStore
from engine.store.patience import Patience
from engine.store.server import ServerStore, connect
from tests.support.output_tables import fast_folder, make_table
from tests.support.qdrant_server import Standin, standin

URL = os.environ.get("HUBHOUND_TEST_QDRANT_URL")
GRPC_PORT = os.environ.get("HUBHOUND_TEST_QDRANT_GRPC_PORT")
"""Of the real server; without it nothing is asked of that over gRPC."""

SERVER_KINDS = ["local", "standin", pytest.param("server", marks=pytest.mark.server)]
"""Parameters of a fixture: qdrant-client's local mode, the stand-in server, a real server."""
GRPC_KINDS = ["standin-grpc", pytest.param("server-grpc", marks=pytest.mark.server)]
"""The two servers over gRPC."""
KINDS = ["edge", *SERVER_KINDS]
"""Those of a server, and the embedded store."""


@dataclass
class Place:
    """Where a store of one kind is made and found again."""

    create: Callable[[StoreLayout], DescriptorStore]
    open: Callable[[], DescriptorStore]


@functools.cache
def shared_standin(grpc: bool = False) -> Standin:
    """A stand-in server that the tests of this process share; it ends with the process.

    Args:
        grpc: It speaks gRPC as well.
    """
    held = ExitStack()
    folder = held.enter_context(fast_folder(Path(held.enter_context(tempfile.TemporaryDirectory()))))
    server = held.enter_context(standin(folder, grpc_port=0 if grpc else None))
    atexit.register(held.close)
    return server


def standin_url() -> str:
    """URL of a stand-in server that the tests of this process share."""
    return shared_standin().url


def quick_patience(where: str, name: str, deadline_s: float = 20.0, *, keyed: bool = False) -> Patience:
    """Patience that tries again at once, so that nobody waits for a test."""
    return Patience(where, name, keyed=keyed, deadline_s=deadline_s, contact_s=1.0, first_wait_s=0.01)


def server_client(kind: str) -> QdrantClient:
    """A client of the server of one of the kinds but ``local``; skips the test where there is none."""
    key = None
    grpc_port: int | str | None = None
    if kind.startswith("standin"):
        server = shared_standin(kind.endswith("grpc"))
        url, grpc_port = server.url, server.grpc_port
    else:
        if URL is None:
            pytest.skip("no Qdrant server: HUBHOUND_TEST_QDRANT_URL is not set")
        if kind.endswith("grpc") and GRPC_PORT is None:
            pytest.skip("no gRPC: HUBHOUND_TEST_QDRANT_GRPC_PORT is not set")
        url, grpc_port = URL, GRPC_PORT
        key = os.environ.get("HUBHOUND_TEST_QDRANT_API_KEY")
    return connect(url, key, grpc_port=int(grpc_port or 0) if kind.endswith("grpc") else None)


@contextmanager
def server_place(kind: str, folder: Path) -> Iterator[tuple[Callable[[], QdrantClient], str]]:
    """Makes clients of a server of one of the kinds for an index of its own, removed at the end.

    Clients of the local mode share what they hold as long as the first is not closed: there is only one at a time.
    """
    name = f"test_{uuid.uuid4().hex}"
    if kind == "local":
        yield (lambda: QdrantClient(path=str(folder / "local"))), name
        return
    yield (lambda: server_client(kind)), name
    client = server_client(kind)
    for part in ("outputs", "models", "profiles", "files", "joint"):
        client.delete_collection(f"{name}_{part}")
    client.close()


@contextmanager
def store_place(kind: str, folder: Path) -> Iterator[Place]:
    """A place of one of the kinds; a test that needs a server is skipped where there is none."""
    if kind == "edge":
        path = folder / "store"
        yield Place(lambda layout: EdgeStore.create(path, layout), lambda: EdgeStore.open(path))
        return
    with server_place(kind, folder) as (client, name):

        def make(build: Callable[[QdrantClient], DescriptorStore]) -> DescriptorStore:
            fresh = client()
            try:
                return build(fresh)
            except Exception:
                fresh.close()
                raise

        yield Place(
            lambda layout: make(lambda fresh: ServerStore.create(fresh, name, layout)),
            lambda: make(lambda fresh: ServerStore.open(fresh, name)),
        )


_WHEN: Any = "2024-02-29T01:02:03Z"


def work(store: DescriptorStore) -> None:
    """Models come, change, are copied and go; tasks are told of."""
    for i in range(4):
        store.upsert_outputs(make_table(store.layout, f"org/{i}", seed=i, m=5))
        store.upsert_model(Model(repo=f"org/{i}", revision="r1", outputs=5, library="timm", indexed_at=_WHEN))
    store.upsert_outputs(make_table(store.layout, "org/1", "r2", m=3, seed=9))
    store.upsert_model(Model(repo="org/1", revision="r2", outputs=3, indexed_at=_WHEN))
    store.delete_outputs("org/1", keep_revision="r2")
    store.upsert_model(
        Model(repo="z/c", revision="x", state=ModelState.COPY, copy_of="org/0", copied_revision="r1", indexed_at=_WHEN)
    )
    store.delete_model("org/3")
    store.delete_outputs("org/3")
    store.upsert_knowledge([Performance(model="org/0", task="pets", value=0.25)])
