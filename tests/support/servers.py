"""A Qdrant server for tests of indexes on one: the real one that is named, or the stand-in."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from engine.errors import IndexMissingError
from engine.remote_creation import create_remote
from engine.store.address import ServerAddress
from engine.store.server import ServerChoices, ServerStore
from tests.support.qdrant_server import standin
from tests.support.stores import URL


@contextmanager
def server_addresses(folder: Path, api_key: str | None = None) -> Iterator[Addresses]:
    """Addresses of indexes on a server, which are removed from a real one at the end.

    Args:
        folder: For the stand-in's data.
        api_key: What the stand-in asks for; the real server has its own.
    """
    if URL is not None:
        made = Addresses(URL)
        try:
            yield made
        finally:
            made.remove()
        return
    with standin(folder, api_key=api_key) as server:
        yield Addresses(server.url)


class Addresses:
    """Makes addresses that nobody uses."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._made: list[str] = []

    def __call__(self, url: str | None = None) -> str:
        """The address of an index that is not there yet; with a url, seen through a proxy there."""
        place = self._url if url is None else urlsplit(url)
        self._made.append(f"qdrant://{place.netloc}/t{uuid.uuid4().hex}")
        return self._made[-1]

    def remove(self) -> None:
        for address in map(ServerAddress.parse, self._made):
            try:
                with ServerStore.open(address.connect(), address.name) as store:
                    store.destroy()
            except IndexMissingError:
                continue


def to_server(empty: Path, address: str) -> Path:
    """Moves an empty embedded index to a server; its working folder."""
    return create_remote(ServerAddress.parse(address), empty, ServerChoices()).folder
