"""The collections of one index on a server, and requests to them that are repeated until they are answered."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qdrant_client import QdrantClient
from qdrant_client import models as qm

from engine.errors import StoreError
from engine.store import records
from engine.store.patience import Pace, Patience
from engine.store.server_config import OUR_MARK, PAYLOAD_INDEXES, ServerChoices


class Collections:
    """The collections of one index on one server, by their parts.

    Args:
        client: Of the server.
        name: Of the index.
        patience: With the server.

    Attributes:
        is_local: There is no server: the client's own imitation, for tests.
    """

    def __init__(self, client: QdrantClient, name: str, patience: Patience) -> None:
        self.client = client
        self.name = name
        self.patience = patience
        self.is_local = not (client.init_options.get("url") or client.init_options.get("host"))

    def of(self, part: str) -> str:
        """Name of the collection of a part."""
        return f"{self.name}_{part}"

    def exists(self, part: str, doing: str = "open") -> bool:
        """Whether there is one."""
        return self.patience.call(doing, lambda: self.client.collection_exists(self.of(part)))

    def metadata(self, part: str, doing: str = "open") -> dict[str, Any]:
        """Its metadata; empty if it has none."""
        found = self.patience.call(doing, lambda: self.client.get_collection(self.of(part)))
        return dict(found.config.metadata or {})

    def set_metadata(self, part: str, metadata: dict[str, Any]) -> None:
        """Says what a collection is; keys that are not given stay."""
        name = self.of(part)
        self.patience.call("write to", lambda: self.client.update_collection(name, metadata=metadata))

    def create(self, part: str, options: Mapping[str, Any], choices: ServerChoices, metadata: dict[str, Any]) -> bool:
        """Makes a collection and the indexes of its payload.

        Args:
            part: Which.
            options: Its vectors.
            choices: How it is spread over a cluster.
            metadata: What it is.

        Returns:
            Whether it was made; False if there was one already, possibly by this very request executed twice.
        """

        def request() -> bool:
            try:
                return self.client.create_collection(
                    self.of(part),
                    **options,
                    shard_number=choices.shards,
                    replication_factor=choices.replicas,
                    write_consistency_factor=choices.write_consistency,
                    on_disk_payload=True,
                    metadata=metadata,
                )
            except Exception:
                if self.client.collection_exists(self.of(part)):
                    return False
                raise

        made = self.patience.call("create", request)
        self.index_payload(part)
        return made

    def index_payload(self, part: str) -> None:
        """Makes what indexes of the payload are missing."""
        known = self.patience.call("create", lambda: self.client.get_collection(self.of(part))).payload_schema or {}
        for field, params in PAYLOAD_INDEXES.get(part, {}).items():
            if field not in known:
                self.patience.call("create", lambda field=field, params=params: self._index(part, field, params))  # type: ignore[misc]

    def _index(self, part: str, field: str, params: Any) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Payload indexes have no effect in the local Qdrant")
            self.client.create_payload_index(self.of(part), field, params, wait=True)

    def remove_leftover(self, part: str, dimension: int | None = None) -> bool:
        """Deletes a collection of an interrupted creation or of a deleted index, never that of somebody else.

        Args:
            part: Which.
            dimension: If it is empty and has dense vectors of this length, it is left to be used.

        Returns:
            Whether there is one to be used.

        Raises:
            StoreError: It is not ours, or it is in use: another creation was quicker.
        """
        if not self.exists(part, "create"):
            return False
        name = self.of(part)
        config = self.patience.call("create", lambda: self.client.get_collection(name)).config
        if OUR_MARK not in (config.metadata or {}):
            raise StoreError(
                f"the collection {name} at {self.patience.where} is not part of an index, but of another project: "
                "choose another name for the index",
                self.patience.where,
            )
        vectors = config.params.vectors
        dense = vectors.get(records.GLOBAL) if isinstance(vectors, dict) else None
        if dimension is not None and dense is not None and dense.size == dimension:
            count = self.patience.call("create", lambda: self.client.count(name, exact=True).count)
            if count == 0:
                return True
        if self.exists("models", "create"):  # looked at again, since this is what must not go wrong
            raise self.taken()
        self.delete(part, "create")
        return False

    def taken(self) -> StoreError:
        """What to say where there is such an index already."""
        return StoreError(
            f"there is a store {self.name} on the server already: open it, or delete it first with "
            "'hubhound index delete'",
            self.patience.where,
        )

    def delete(self, part: str, doing: str = "write to") -> None:
        """Deletes a collection if there is one, and it is part of an index."""
        name = self.of(part)
        if self.exists(part, doing) and self.is_ours(part, self.metadata(part, doing)):
            self.patience.call(doing, lambda: self.client.delete_collection(name))

    @staticmethod
    def is_ours(part: str, metadata: Mapping[str, Any]) -> bool:
        """Whether a collection was made for an index: it says so, or it is the models of an index of format 1."""
        return OUR_MARK in metadata or (part == "models" and {"format", "top_r"} <= set(metadata))

    def scroll(
        self,
        part: str,
        where: qm.Filter | None,
        payload: list[str] | bool,
        vectors: list[str] | bool,
        pace: Pace,
        after: str | None = None,
    ) -> Iterator[qm.Record]:
        """The points that a filter selects, all for None, by ascending id.

        Args:
            part: Of which collection.
            where: The filter.
            payload: Fields to return.
            vectors: Vectors to return.
            pace: How many at once.
            after: Only ids greater than this one.
        """
        name = self.of(part)
        offset: Any = after

        def page(size: int) -> tuple[list[qm.Record], bool]:
            nonlocal offset
            found, following = self.client.scroll(
                name, where, limit=size, offset=offset, with_payload=payload, with_vectors=vectors
            )
            offset = following
            return found, following is not None

        for record in self.patience.pages("read", pace, page):
            if record.id != after:
                yield record

    def retrieve(self, part: str, ids: Sequence[str], pace: Pace, **options: Any) -> list[qm.Record]:
        """The points with some ids, in no order; those that are not there are left out."""
        name = self.of(part)
        found: list[qm.Record] = []
        self.patience.each(
            "read", ids, pace, lambda some: found.extend(self.client.retrieve(name, list(some), **options))
        )
        return found

    def put(self, part: str, points: Sequence[qm.PointStruct], pace: Pace, **options: Any) -> None:
        """Writes points, each in place of what has its id; acknowledged when it returns."""
        name = self.of(part)
        self.patience.each(
            "write to", points, pace, lambda some: self.client.upsert(name, list(some), wait=True, **options)
        )

    def remove(self, part: str, where: qm.Filter) -> None:
        """Removes the points that a filter selects."""
        name = self.of(part)
        self.patience.call("write to", lambda: self.client.delete(name, qm.FilterSelector(filter=where), wait=True))

    def count(self, part: str, where: qm.Filter | None = None) -> int:
        """How many points a filter selects, exactly."""
        name = self.of(part)
        return self.patience.call("read", lambda: self.client.count(name, count_filter=where, exact=True).count)


def equals(field: str, value: str) -> qm.FieldCondition:
    """The condition that a payload field has a value."""
    return qm.FieldCondition(key=field, match=qm.MatchValue(value=value))


def equal_all(where: Mapping[str, str]) -> qm.Filter:
    """The condition that payload fields have these values."""
    return qm.Filter(must=[equals(field, value) for field, value in where.items()])
