"""What an index on a server knows about tasks: a point a task, profile or performance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qdrant_client import models as qm

from engine.store.base import StoredPoint
from engine.store.knowledge import Known, known_batches, known_order, known_record
from engine.store.patience import Pace
from engine.store.server_client import Collections, equal_all
from engine.store.server_config import OUR_MARK, ServerChoices, plain_options

_PART = "profiles"
_PAGE = 1000


class KnowledgePoints:
    """The tasks, profiles and performance of one index on a server; their collection is made with the first of them.

    Args:
        collections: Of the index.
    """

    def __init__(self, collections: Collections) -> None:
        self._on = collections
        self._pace = Pace(_PAGE)

    def write(self, known: Sequence[Known]) -> None:
        """Writes records, each in place of what has its id; acknowledged when it returns."""
        for i, (made, _) in enumerate(known_batches(known)):
            if i == 0:
                self._need_collection()
            points = [qm.PointStruct(id=point_id, vector={}, payload=payload) for point_id, payload in made]
            self._on.put(_PART, points, self._pace)

    def restore(self, points: Sequence[StoredPoint]) -> None:
        """Writes records as another store had them."""
        self._need_collection()
        self._on.put(_PART, [qm.PointStruct(id=p.id, vector={}, payload=p.payload) for p in points], self._pace)

    def read(self, where: Mapping[str, str]) -> list[Known]:
        """The records whose payload fields have these values, in ``known_order``."""
        if not self._on.exists(_PART, "read"):
            return []
        stored = self._on.scroll(_PART, equal_all(where), True, False, self._pace)
        return sorted((known_record(record.payload or {}) for record in stored), key=known_order)

    def remove(self, where: Mapping[str, str]) -> None:
        """Removes the records whose payload fields have these values."""
        if self._on.exists(_PART, "write to"):
            self._on.remove(_PART, equal_all(where))

    def _need_collection(self) -> None:
        if not self._on.exists(_PART, "write to"):
            outputs = self._on.of("outputs")
            found = self._on.patience.call("read", lambda: self._on.client.get_collection(outputs)).config.params
            choices = ServerChoices(
                found.shard_number or 1, found.replication_factor or 1, found.write_consistency_factor or 1
            )
            self._on.create(_PART, plain_options(), choices, {OUR_MARK: _PART})
