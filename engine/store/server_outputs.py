"""The outputs of an index on a server: written with what a server adds to them, counted and removed.

Every output says when it was written (``written``, see ``base.Shared``) and which background its constants are of
(``background``). So constants of two backgrounds can lie side by side, while an index is calibrated anew or two do so
at once, and nobody takes one for the other: the model's record says what somebody has completed, the outputs what is
so. Outputs of a restored copy do not say it; then the record counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qdrant_client import models as qm

from engine.outputs import MIXED, OutputTable
from engine.schema import Model, ModelState
from engine.store import records
from engine.store.base import StoredPoint, StoreLayout
from engine.store.patience import Pace
from engine.store.points import HOLDERS, LABELLED, WRITTEN
from engine.store.server_client import Collections, equals
from engine.store.server_models import ModelRecords

_BATCH = 200
"""Outputs in one request at best: about 2 MB of JSON at d = 384, a server takes 32."""
_PAGE = 10_000
"""Names of outputs in one answer at best."""
_MOST_MODELS = 100_000
"""Models of which an answer tells that their constants are of other backgrounds."""


@dataclass
class Held:
    """The outputs of one revision of a model, as they lie on a server.

    Attributes:
        outputs: How many.
        written: When the last of them was written, 0 if they do not say it.
    """

    outputs: int = 0
    written: int = 0


class OutputPoints:
    """Writes, counts and removes the outputs of one index on a server.

    Args:
        collections: Of the index.
        layout: Of the store.
        models: Its records.
    """

    def __init__(self, collections: Collections, layout: StoreLayout, models: ModelRecords) -> None:
        self._on = collections
        self._layout = layout
        self._models = models
        self._pace = Pace(_BATCH)
        self._indexed = False

    def write(self, table: OutputTable) -> None:
        """Writes the outputs of one model; they keep their holders, if the model's record is there already."""
        if not len(table):
            return
        self._need_indexes()
        added: dict[str, Any] = {WRITTEN: self._models.stamp()}
        if table.background not in {None, MIXED}:
            added[records.BACKGROUND] = table.background
        added |= self._holders([table.repo], [(table.repo, table.revision)])[0]
        for start in range(0, len(table), _BATCH):
            points = [
                _point(StoredPoint(p.id, p.payload, p.indices, p.values, p.dense), added)
                for p in records.output_points(table, self._layout, slice(start, start + _BATCH))
            ]
            self._on.put("outputs", points, self._pace)

    def restore(self, points: Sequence[StoredPoint]) -> None:
        """Writes outputs as another store had them."""
        names = [(str(point.payload[records.REPO]), str(point.payload[records.REVISION])) for point in points]
        added = self._holders({repo for repo, _ in names}, names)
        made = [_point(point, one) for point, one in zip(points, added, strict=True)]
        self._on.put("outputs", made, self._pace)

    def count_revision(self, repo: str, revision: str, since: int) -> int:
        """See :meth:`Shared.count_revision`."""
        must: list[Any] = [equals(records.REPO, repo), equals(records.REVISION, revision)]
        if since:
            must.append(qm.FieldCondition(key=WRITTEN, range=qm.Range(gt=since)))
        return self._on.count("outputs", qm.Filter(must=must))

    def clear(self, repo: str, keep_revision: str | None, before: int | None) -> None:
        """See :meth:`Shared.clear`; whenever they were written for None."""
        must: list[Any] = [equals(records.REPO, repo)]
        if before is not None:
            old = qm.FieldCondition(key=WRITTEN, range=qm.Range(lt=before))
            unknown = qm.IsEmptyCondition(is_empty=qm.PayloadField(key=WRITTEN))
            must.append(qm.Filter(should=[old, unknown]))
        kept: list[Any] = [] if keep_revision is None else [equals(records.REVISION, keep_revision)]
        self._on.remove("outputs", qm.Filter(must=must, must_not=kept))

    def any_of(self, repo: str) -> bool:
        """Whether there is an output of a repository."""
        return self._on.count("outputs", qm.Filter(must=[equals(records.REPO, repo)])) > 0

    def mixed(self, fingerprint: str) -> list[Model]:
        """See :meth:`Shared.mixed`."""
        if not self._has_indexes():  # nobody has written any output that says it
            return []
        others = qm.MatchExcept(**{"except": [fingerprint]})
        other = qm.FieldCondition(key=records.BACKGROUND, match=others)
        name = self._on.of("outputs")
        answer = self._on.patience.call(
            "read",
            lambda: self._on.client.facet(
                name, records.REPO, facet_filter=qm.Filter(must=[other]), limit=_MOST_MODELS, exact=True
            ),
        )
        known = self._models.of(str(hit.value) for hit in answer.hits) if answer.hits else {}
        found = []
        for model in known.values():
            if model.state is ModelState.INDEXED and model.calibration == fingerprint:
                own = [equals(records.REPO, model.repo), equals(records.REVISION, model.revision), other]
                if self._on.count("outputs", qm.Filter(must=own)):
                    found.append(model)
        return found

    def held(self, progress: Callable[[int], None] | None = None) -> dict[tuple[str, str], Held]:
        """What lies there, by repository and revision; it reads three fields of every output.

        Args:
            progress: Called with the outputs read.
        """
        found: dict[tuple[str, str], Held] = {}
        fields = [records.REPO, records.REVISION, WRITTEN]
        for done, point in enumerate(self._on.scroll("outputs", None, fields, False, Pace(_PAGE)), 1):
            payload = point.payload or {}
            held = found.setdefault((payload[records.REPO], payload[records.REVISION]), Held())
            held.outputs += 1
            held.written = max(held.written, int(payload.get(WRITTEN) or 0))
            if progress and done % _PAGE == 0:
                progress(done)
        return found

    def _holders(self, repos: Sequence[str] | set[str], names: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """What outputs of some revisions have for holders, where the record names that revision."""
        made = self._models.holders_of(repos)
        return [
            {HOLDERS: made[repo][1]} if repo in made and made[repo][0] == revision else {} for repo, revision in names
        ]

    def _need_indexes(self) -> None:
        """Makes the indexes that an index of an earlier version has not, before anything relies on them."""
        if not self._has_indexes():
            self._on.index_payload("outputs")
            self._indexed = True

    def _has_indexes(self) -> bool:
        if not self._indexed and not self._on.is_local:
            name = self._on.of("outputs")
            info = self._on.patience.call("read", lambda: self._on.client.get_collection(name))
            self._indexed = {records.BACKGROUND, WRITTEN} <= set(info.payload_schema or {})
        return self._indexed or self._on.is_local


def _point(point: StoredPoint, added: dict[str, Any]) -> qm.PointStruct:
    """An output as a server keeps it."""
    labelled = {LABELLED: point.payload.get(records.LABEL) is not None}
    local = qm.SparseVector(indices=point.indices, values=point.values)
    return qm.PointStruct(
        id=point.id,
        vector={records.LOCAL: local, records.GLOBAL: point.dense},
        payload={**point.payload, **labelled, **added},
    )
