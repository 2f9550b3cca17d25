"""Where an ``--index`` is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.store.server_config import ServerChoices


def index_folder(index: str) -> Path:
    """The folder to work in for an index: its own, or that of one on a server, brought up to date.

    Args:
        index: What ``--index`` was given: a folder or ``qdrant://HOST:PORT/NAME``.

    Raises:
        HubhoundError: See ``engine.remote.index_folder``.
    """
    from engine.remote import index_folder as found  # not before it is needed, as everything of the engine

    return found(index)


def server_choices(index: str, shards: int, replicas: int, write_consistency: int) -> ServerChoices:
    """How a new index is spread over a server.

    Args:
        index: The new index.
        shards: As given.
        replicas: As given.
        write_consistency: As given.

    Raises:
        InputError: The index is to be in a folder, which is not spread, or its address cannot be used.
        StoreError: No server can do that.
    """
    from engine.errors import InputError
    from engine.store.address import ServerAddress
    from engine.store.server_config import ServerChoices

    choices = ServerChoices(shards, replicas, write_consistency)
    if ServerAddress.is_server(index):
        choices.check(ServerAddress.parse(index).url)
    elif choices != ServerChoices():
        raise InputError(
            f"{index} is a folder: --shards, --replicas and --write-consistency are for an index on a server, "
            "leave them out"
        )
    return choices
