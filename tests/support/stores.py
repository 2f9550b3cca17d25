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

import pytest
from qdrant_client import QdrantClient

from engine.store.base import DescriptorStore, StoreLayout
from engine.store.edge import EdgeStore
from engine.store.patience import Patience
from engine.store.server import ServerStore, connect
from tests.support.output_tables import fast_folder
from tests.support.qdrant_server import standin

URL = os.environ.get("HUBHOUND_TEST_QDRANT_URL")
SERVER_KINDS = ["local", "standin", pytest.param("server", marks=pytest.mark.server)]
"""Parameters of a fixture: qdrant-client's local mode, the stand-in server, a real server."""
KINDS = ["edge", *SERVER_KINDS]
"""The same, and the embedded store."""


@dataclass
class Place:
    """Where a store of one kind is made and found again."""

    create: Callable[[StoreLayout], DescriptorStore]
    open: Callable[[], DescriptorStore]


@functools.cache
def standin_url() -> str:
    """URL of a stand-in server that the tests of this process share; it ends with the process."""
    held = ExitStack()
    folder = held.enter_context(fast_folder(Path(held.enter_context(tempfile.TemporaryDirectory()))))
    server = held.enter_context(standin(folder))
    atexit.register(held.close)
    return server.url


def quick_patience(where: str, name: str, deadline_s: float = 20.0, *, keyed: bool = False) -> Patience:
    """Patience that tries again at once, so that nobody waits for a test."""
    return Patience(where, name, keyed=keyed, deadline_s=deadline_s, contact_s=1.0, first_wait_s=0.01)


def server_url(kind: str) -> str:
    """URL of the server of one of the ``SERVER_KINDS`` but ``local``; skips the test where there is none."""
    if kind == "standin":
        return standin_url()
    if URL is None:
        pytest.skip("no Qdrant server: HUBHOUND_TEST_QDRANT_URL is not set")
    return URL


@contextmanager
def server_place(kind: str, folder: Path) -> Iterator[tuple[Callable[[], QdrantClient], str]]:
    """Makes clients of a server of one of the ``SERVER_KINDS`` for an index of its own, removed at the end.

    Clients of the local mode share what they hold as long as the first is not closed: there is only one at a time.
    """
    name = f"test_{uuid.uuid4().hex}"
    if kind == "local":
        yield (lambda: QdrantClient(path=str(folder / "local"))), name
        return
    url = server_url(kind)
    key = os.environ.get("HUBHOUND_TEST_QDRANT_API_KEY") if kind == "server" else None
    yield (lambda: connect(url, key)), name
    client = connect(url, key)
    for part in ("outputs", "models", "profiles", "files", "joint"):
        client.delete_collection(f"{name}_{part}")
    client.close()


@contextmanager
def store_place(kind: str, folder: Path) -> Iterator[Place]:
    """A place of one of the ``KINDS``; a test that needs a server is skipped where there is none."""
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
