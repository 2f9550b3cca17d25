"""Where an ``--index`` is."""

from __future__ import annotations

from pathlib import Path


def index_folder(index: str) -> Path:
    """The folder to work in for an index: its own, or that of one on a server, brought up to date.

    Args:
        index: What ``--index`` was given: a folder or ``qdrant://HOST:PORT/NAME``.

    Raises:
        HubhoundError: See ``engine.remote.index_folder``.
    """
    from engine.remote import index_folder as found  # not before it is needed, as everything of the engine

    return found(index)
