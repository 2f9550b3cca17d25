"""What runs that were killed have left in an index: outputs and responses of revisions that no record names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.index import Index
from engine.responses import FOLDER
from engine.schema import Model, ModelState
from engine.store import records
from engine.store.base import DescriptorStore, Shared

if TYPE_CHECKING:
    from engine.store.server import ServerStore

FRESH_S = 600.0
"""Outputs on a server that were written since then may be somebody's who is about to write the record."""


@dataclass(frozen=True)
class Leftover:
    """Outputs of a revision that no record names.

    Attributes:
        repo: Whose they are.
        revision: Which.
        outputs: How many.
        fresh: Another writer may have them in hand.
    """

    repo: str
    revision: str
    outputs: int
    fresh: bool


def find_leftovers(
    store: DescriptorStore, models: Iterable[Model], progress: Callable[[int], None] | None = None
) -> list[Leftover]:
    """The outputs of a store that do not count, by repository and revision.

    Args:
        store: The store.
        models: All of its records.
        progress: Called with the outputs looked at.

    Raises:
        StoreError: The store cannot be read.
    """
    named = {(model.repo, model.revision) for model in models if model.state is ModelState.INDEXED}
    if isinstance(store, Shared):
        return _on_server(store, named, progress)  # type: ignore[arg-type]
    found: dict[tuple[str, str], int] = {}
    for done, point in enumerate(store.stored("outputs"), 1):
        name = (str(point.payload[records.REPO]), str(point.payload[records.REVISION]))
        if name not in named:
            found[name] = found.get(name, 0) + 1
        if progress and done % 1000 == 0:
            progress(done)
    return [Leftover(*name, outputs, fresh=False) for name, outputs in sorted(found.items())]


def _on_server(
    store: ServerStore, named: set[tuple[str, str]], progress: Callable[[int], None] | None
) -> list[Leftover]:
    held = store.held(progress)
    since = store.stamp() - int(FRESH_S * 1e6)
    found = {name: one for name, one in sorted(held.items()) if name not in named}
    return [Leftover(*name, one.outputs, one.written > since) for name, one in found.items()]


def kept_responses(index: Index) -> list[str]:
    """The names of all files of responses, in order.

    Raises:
        StoreError: The server refused or did not answer.
    """
    if index.remote is not None:
        return sorted(path.removeprefix(f"{FOLDER}/") for path in index.remote.shelf.entries([FOLDER]))
    folder = index.folder / FOLDER
    return sorted(path.name for path in folder.glob("*@*.npy")) if folder.is_dir() else []


def remove_forgotten(
    index: Index, kept: Iterable[str], models: Iterable[Model], leftovers: Iterable[Leftover], before: int | None = None
) -> int:
    """Removes responses of revisions that no record names, but none that somebody may have in hand.

    Args:
        index: The index.
        kept: As ``kept_responses`` found them before the others were read: whoever had just written one has written
            outputs by then, or a record.
        models: All of the records.
        leftovers: As ``find_leftovers`` found them: responses of a repository with fresh ones stay, those of the others
            have gone with their outputs.
        before: Of an index on a server: a number that the store gave before all of that was read. What was written
            since stays.

    Returns:
        How many were removed.

    Raises:
        StoreError: The server refused or did not answer.
        OSError: A file cannot be removed.
    """
    indexed = [model for model in models if model.state is ModelState.INDEXED]
    named = {index.responses.path(model.repo, model.revision).name for model in indexed}
    leftovers = list(leftovers)
    named |= {index.responses.path(one.repo, one.revision).name for one in leftovers}
    fresh = {one.repo.replace("/", "--") for one in leftovers if one.fresh}
    due = [name for name in kept if name not in named and name.rpartition("@")[0] not in fresh]
    if index.remote is not None and due:
        index.remote.shelf.remove([f"{FOLDER}/{name}" for name in due], before)
    for name in due:
        (index.folder / FOLDER / name).unlink(missing_ok=True)
    return len(due)
