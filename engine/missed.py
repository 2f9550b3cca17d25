"""Changes of an index on a server that a reader has missed, as their writer was killed before it saw to them."""

from __future__ import annotations

from collections.abc import Mapping

from engine.schema import Model, ModelState
from engine.store.server import ServerStore


def missed(store: ServerStore, records: Mapping[str, Model], upto: int) -> dict[str, Model | None]:
    """What became of models under numbers that a reader had passed already.

    A writer sees to it that nobody misses its record; but one that is killed in the middle does not, and nobody may
    ever write that record again. The number of records tells it.

    Args:
        store: On the server.
        records: What the reader knows, by repository: all models that are indexed or copies.
        upto: The number up to which it has asked for changes.

    Returns:
        By repository the records that it does not know as they are, None where there is none any more. Nothing while
        others are writing: the next time will tell.

    Raises:
        StoreError: The server refused or did not answer.
    """
    if len(records) == store.count_shown() or store.newest() != upto:
        return {}
    kinds = {ModelState.INDEXED, ModelState.COPY}
    there = {model.repo: model for model in store.models() if model.state in kinds}
    if store.newest() != upto:
        return {}
    gone: dict[str, Model | None] = {repo: None for repo in records if repo not in there}
    return gone | {repo: model for repo, model in there.items() if records.get(repo) != model}
