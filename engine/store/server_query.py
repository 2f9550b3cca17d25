"""Searching the outputs of an index on a server, and reading the few that matter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from qdrant_client import models as qm

from engine.outputs import OutputTable
from engine.schema import Model
from engine.store import records
from engine.store.base import StoreFilter, StoreHit, StoreLayout
from engine.store.patience import Pace
from engine.store.points import HOLDERS, LABELLED
from engine.store.server_client import Collections

_PAGE = 1000
_OUTPUTS = 4000
"""Outputs of several models that are read together: a few megabytes of JSON a page."""
_MODELS = 100

FloatArray = npt.NDArray[np.float32]


class OutputQueries:
    """Reads the outputs of one index on a server.

    Args:
        collections: Of the index.
        layout: Of the store.
    """

    def __init__(self, collections: Collections, layout: StoreLayout) -> None:
        self._on = collections
        self._layout = layout
        self._pace = Pace(_PAGE)

    def query(
        self,
        query: qm.SparseVector | list[float],
        using: str,
        limit: int,
        threshold: float | None = None,
        where: StoreFilter | None = None,
        ids: Sequence[str] | None = None,
    ) -> list[StoreHit]:
        """The outputs that score highest, compared with every one.

        Args:
            query: A sparse or dense vector.
            using: Name of the stored one.
            limit: Most hits.
            threshold: Only scores above it.
            where: Only outputs that satisfy conditions.
            ids: Only these outputs.
        """
        if limit < 1:
            return []
        conditions = server_filter(where)
        if ids is not None:
            conditions = qm.Filter(must=[*_must(conditions), qm.HasIdCondition(has_id=list(ids))])
        bound = None if threshold is None else records.just_below(threshold)
        answer = self._on.patience.call(
            "search",
            lambda: self._on.client.query_points(
                self._on.of("outputs"),
                query=query,
                using=using,
                limit=limit,
                query_filter=conditions,
                score_threshold=bound,
                with_payload=records.HIT_FIELDS,
                # The imitation warns that it is always exact.
                search_params=None if self._on.is_local else qm.SearchParams(exact=True),
            ),
        )
        found = records.hits((point.payload or {}, point.score) for point in answer.points)
        return found if threshold is None else [hit for hit in found if hit.score > np.float32(threshold)]

    def global_scores(self, hits: Sequence[StoreHit], vector: FloatArray) -> FloatArray:
        """See ``DescriptorStore.global_scores``."""
        scores: dict[tuple[str, str, int], float] = {}
        for start in range(0, len(hits), _PAGE):
            part = hits[start : start + _PAGE]
            for hit in self.query(vector.tolist(), records.GLOBAL, len(part), ids=records.hit_ids(part)):
                scores[hit.repo, hit.revision, hit.output] = hit.score
        return np.array([scores.get((h.repo, h.revision, h.output), -np.inf) for h in hits], np.float32)

    def rows(self, hits: Sequence[StoreHit], anchors: bool) -> list[OutputTable]:
        """See ``DescriptorStore.rows``."""
        ids = list(dict.fromkeys(records.hit_ids(hits)))
        options: dict[str, Any] = {"with_vectors": [records.GLOBAL] if anchors else False}
        found = self._on.retrieve("outputs", ids, self._pace, with_payload=records.ROW_FIELDS, **options)
        return records.output_tables((_output(record) for record in found), self._layout)

    def outputs_of(self, models: Sequence[Model]) -> Iterator[OutputTable]:
        """The outputs of many models in few requests, one table a model in the order given.

        Models whose revision has no outputs are left out.
        """
        for part in _portions(models):
            where = qm.Filter(
                must=[
                    qm.FieldCondition(key=records.REPO, match=qm.MatchAny(any=sorted({m.repo for m in part}))),
                    qm.FieldCondition(key=records.REVISION, match=qm.MatchAny(any=sorted({m.revision for m in part}))),
                ]
            )
            found = self._on.scroll("outputs", where, records.ROW_FIELDS, [records.GLOBAL], self._pace)
            tables = {
                (table.repo, table.revision): table
                for table in records.output_tables((_output(record) for record in found), self._layout)
            }
            for model in part:
                table = tables.get((model.repo, model.revision))
                if table is not None:
                    yield table

    def distinct(self, field: str, limit: int) -> list[str] | None:
        """The values of a field of the holders in order, None if there are more than a limit."""
        name = self._on.of("outputs")
        answer = self._on.patience.call(
            "read", lambda: self._on.client.facet(name, f"{HOLDERS}[].{field}", limit=limit + 1, exact=True)
        )
        return None if len(answer.hits) > limit else sorted(str(hit.value) for hit in answer.hits)


def server_filter(where: StoreFilter | None) -> qm.Filter | None:
    """Conditions as the server takes them, None if there are none."""
    if where is None:
        return None
    facts: list[Any] = [
        qm.FieldCondition(key=field, match=qm.MatchAny(any=list(values))) for field, values in where.texts.items()
    ]
    if where.max_parameters is not None:
        facts.append(qm.FieldCondition(key="parameters", range=qm.Range(lte=where.max_parameters)))
    if where.min_downloads is not None:
        facts.append(qm.FieldCondition(key="downloads", range=qm.Range(gte=where.min_downloads)))
    must: list[Any] = []
    if facts:  # of one and the same holder
        must.append(qm.NestedCondition(nested=qm.Nested(key=HOLDERS, filter=qm.Filter(must=facts))))
    if where.labelled is not None:
        must.append(qm.FieldCondition(key=LABELLED, match=qm.MatchValue(value=where.labelled)))
    return qm.Filter(must=must) if must else None


def _must(conditions: qm.Filter | None) -> list[Any]:
    must: Any = conditions.must if conditions else []
    return list(must or [])


def _portions(models: Sequence[Model]) -> Iterator[list[Model]]:
    """Models whose outputs are read together, in order."""
    part: list[Model] = []
    outputs = 0
    for model in models:
        if part and (len(part) >= _MODELS or outputs + model.outputs > _OUTPUTS):
            yield part
            part, outputs = [], 0
        part.append(model)
        outputs += model.outputs
    if part:
        yield part


def _output(record: qm.Record) -> records.StoredOutput:
    vectors: Any = record.vector
    return records.StoredOutput(record.payload or {}, vectors[records.GLOBAL] if vectors else [])
