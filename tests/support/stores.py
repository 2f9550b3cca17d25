"""Places for stores of every kind, so that one suite of tests runs on all of them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from engine.store.base import DescriptorStore, StoreLayout
from engine.store.edge import EdgeStore
from engine.store.server import ServerStore, connect

URL = os.environ.get("HUBHOUND_TEST_QDRANT_URL")
KINDS = ["edge", "local", pytest.param("server", marks=pytest.mark.server)]
"""Parameters of a fixture: embedded, qdrant-client's local mode, a real server."""


@dataclass
class Place:
    """Where a store of one kind is made and found again."""

    create: Callable[[StoreLayout], DescriptorStore]
    open: Callable[[], DescriptorStore]


@contextmanager
def store_place(kind: str, folder: Path) -> Iterator[Place]:
    """A place of one of the ``KINDS``; a test that needs a server is skipped where there is none."""
    if kind == "edge":
        path = folder / "store"
        yield Place(lambda layout: EdgeStore.create(path, layout), lambda: EdgeStore.open(path))
        return
    if kind == "server" and URL is None:
        pytest.skip("no Qdrant server: HUBHOUND_TEST_QDRANT_URL is not set")
    name = f"test_{uuid.uuid4().hex}"

    def client() -> QdrantClient:
        return QdrantClient(path=str(folder / "local")) if URL is None or kind == "local" else connect(URL)

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
    if kind == "server":
        for collection in (f"{name}_outputs", f"{name}_models", f"{name}_profiles"):
            client().delete_collection(collection)
