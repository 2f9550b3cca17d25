"""A Qdrant server for tests of indexes on one: the real one that is named, or the stand-in."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from engine.errors import IndexMissingError
from engine.remote import index_folder
from engine.remote_creation import create_remote
from engine.store.address import ServerAddress
from engine.store.server import ServerChoices, ServerStore
from tests.support.qdrant_server import standin
from tests.support.small_index import make_index
from tests.support.stores import GRPC_PORT, URL

Machines = Callable[[], Path]
"""Gives the working folder of another machine each time."""


@contextmanager
def server_addresses(folder: Path, api_key: str | None = None, grpc: bool = False) -> Iterator[Addresses]:
    """Addresses of indexes on a server, which are removed from a real one at the end.

    Args:
        folder: For the stand-in's data.
        api_key: What the stand-in asks for; the real server has its own.
        grpc: Addresses over gRPC can be asked for, too; of the real server they are of REST where none is known.
    """
    if URL is not None:
        made = Addresses(URL, int(GRPC_PORT) if grpc and GRPC_PORT else None)
        try:
            yield made
        finally:
            made.remove()
        return
    with standin(folder, api_key=api_key, grpc_port=0 if grpc else None) as server:
        yield Addresses(server.url, server.grpc_port)


class Addresses:
    """Makes addresses that nobody uses."""

    def __init__(self, url: str, grpc_port: int | None = None) -> None:
        self._url = urlsplit(url)
        self._grpc_port = grpc_port
        self._made: list[str] = []

    def __call__(self, url: str | None = None, grpc: bool = False) -> str:
        """The address of an index that is not there yet.

        Args:
            url: Seen through a proxy there.
            grpc: Over gRPC, if the server speaks it.
        """
        place = self._url if url is None else urlsplit(url)
        query = f"?grpc={self._grpc_port}" if grpc and self._grpc_port is not None else ""
        self._made.append(f"qdrant://{place.netloc}/t{uuid.uuid4().hex}{query}")
        return self._made[-1]

    def remove(self) -> None:
        for address in map(ServerAddress.parse, self._made):
            try:
                with ServerStore.open(address.connect(), address.name) as store:
                    store.destroy()
            except IndexMissingError:
                continue


def machines(address: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    """Gives working folders of machines that know nothing of each other.

    Args:
        address: Of the index.
        folder: For what the machines keep.
        monkeypatch: Sets which machine this process is.
    """
    numbers = count()

    def another() -> Path:
        monkeypatch.setenv("HUBHOUND_DATA", str(folder / f"machine{next(numbers)}"))
        return index_folder(address)

    return another


def new_zoo(address: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes an empty index at an address, on a machine that is none of ``machines``; the address."""
    monkeypatch.setenv("HUBHOUND_DATA", str(folder / "first"))
    to_server(make_index(folder / "embedded" / "zoo").folder, address)
    return address


def to_server(empty: Path, address: str) -> Path:
    """Moves an empty embedded index to a server; its working folder."""
    return create_remote(ServerAddress.parse(address), empty, ServerChoices()).folder
