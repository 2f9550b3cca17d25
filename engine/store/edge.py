"""The embedded store: shards of the Qdrant engine in a folder, no server.

::

    FOLDER/layout.json   what the vectors are made of; written last, so that a folder with it is complete
    FOLDER/write.lock    held by the one process that has the store open
    FOLDER/outputs/      a shard with a point an output (:mod:`engine.store.records`)
    FOLDER/models/       a shard with a point a model
    FOLDER/profiles/     a shard with a point a task, profile or performance; made with the first of them
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import qdrant_edge as qe
from filelock import FileLock, Timeout

from engine.errors import IndexLockedError, IndexMissingError, StoreError
from engine.outputs import OutputTable
from engine.schema import Model
from engine.store import records
from engine.store.base import DescriptorStore, Part, StoredPoint, StoreHit, StoreLayout
from engine.store.edge_config import LAYOUT_FILE, outputs_config, plain_config, read_layout, write_layout
from engine.store.knowledge import MODEL, Known, known_batches, known_order, known_record
from engine.store.points import check_points, plain_payload, stored_output
from engine.store.shard import Shard, engine_errors

_LOCK_FILE = "write.lock"

_BATCH = 200
"""Outputs in one operation: with its log entry of 0.7 MB (d = 384) it fits a segment of the log."""


class EdgeStore(DescriptorStore):
    """The embedded store; made by :meth:`create` or :meth:`open`.

    Args:
        path: Its folder.
        layout: What its vectors are made of.
        outputs: Shard of the outputs.
        models: Shard of the models.
        profiles: Shard of tasks, profiles and performance, None before the first.
        held: Closes the shards and releases the lock.
    """

    def __init__(
        self, path: Path, layout: StoreLayout, outputs: Shard, models: Shard, profiles: Shard | None, held: ExitStack
    ) -> None:
        self.layout = layout
        self._path = path
        self._shards: tuple[Shard, Shard] | None = (outputs, models)
        self._profiles = profiles
        self._held = held

    @classmethod
    def create(cls, path: Path | str, layout: StoreLayout) -> Self:
        """Makes an empty store and opens it.

        Args:
            path: Its folder; it is made if it does not exist.
            layout: What its vectors are made of.

        Raises:
            StoreError: There is a store already, or the folder cannot be written.
            IndexLockedError: Another process is writing there.
        """
        path = Path(path)
        with engine_errors("create", path):
            path.mkdir(parents=True, exist_ok=True)
        with locked(path) as held:
            if (path / LAYOUT_FILE).exists():
                raise StoreError(f"there is a store in {path} already: open it, or remove the folder first", path)
            models = Shard.create(path / "models", plain_config())
            held.callback(models.close)
            outputs = Shard.create(path / "outputs", outputs_config(layout), indexed=records.REPO)
            held.callback(outputs.close)
            with engine_errors("create", path):
                write_layout(path / LAYOUT_FILE, layout)
            return cls(path, layout, outputs, models, None, held.pop_all())

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Opens a store for reading and writing; one process at a time.

        Args:
            path: Its folder.

        Raises:
            IndexMissingError: There is no store.
            IndexLockedError: Another process has it open.
            StoreError: It is damaged, or the folder cannot be written.
        """
        path = Path(path)
        if not (path / LAYOUT_FILE).exists():
            raise IndexMissingError(path)
        with locked(path) as held:
            layout = read_layout(path / LAYOUT_FILE)
            models = Shard.open(path / "models")
            held.callback(models.close)
            outputs = Shard.open(path / "outputs")
            held.callback(outputs.close)  # closed in reverse: no record may reach the disk before what it vouches for
            profiles = None
            if (path / "profiles").exists():
                profiles = Shard.open(path / "profiles")
                held.callback(profiles.close)
            return cls(path, layout, outputs, models, profiles, held.pop_all())

    def upsert_outputs(self, table: OutputTable) -> None:
        """See :meth:`DescriptorStore.upsert_outputs`."""
        outputs, _ = self._open()
        with engine_errors("write to", self._path):
            records.check_table(table, self.layout)
        size_bytes = 16 * self.layout.top_r + 4 * self.layout.dimension + 1024
        for start in range(0, len(table), _BATCH):
            with engine_errors("write to", self._path):
                made = records.output_points(table, self.layout, slice(start, start + _BATCH))
                points = [_point(point) for point in made]
            outputs.upsert(points, len(points) * size_bytes)

    def upsert_model(self, model: Model) -> None:
        """See :meth:`DescriptorStore.upsert_model`."""
        _, models = self._open()
        with engine_errors("write to", self._path):
            payload = records.model_payload(model)
            point = qe.Point(model.point_id, {}, payload)
        models.upsert([point], len(str(payload)))

    def models(self) -> list[Model]:
        """See :meth:`DescriptorStore.models`."""
        return self._models(None)

    def model(self, repo: str) -> Model | None:
        """See :meth:`DescriptorStore.model`."""
        _, models = self._open()
        with engine_errors("read", self._path):
            payload = models.retrieve(records.model_point_id(repo))
            return None if payload is None else records.model_record(payload)

    def copies(self, repo: str) -> list[Model]:
        """See :meth:`DescriptorStore.copies`."""
        return self._models(_filter({records.COPY_OF: repo}))

    def _models(self, where: qe.Filter | None) -> list[Model]:
        _, models = self._open()
        with engine_errors("read", self._path):
            found = [records.model_record(r.payload) for r in models.scroll(where, payload=True, vectors=False)]
        return sorted(found, key=lambda model: model.repo)

    def outputs(self, repo: str, revision: str) -> OutputTable | None:
        """See :meth:`DescriptorStore.outputs`."""
        outputs, _ = self._open()
        where = qe.Filter(must=[_equals(records.REPO, repo), _equals(records.REVISION, revision)])
        with engine_errors("read", self._path):
            return records.output_table(repo, revision, _stored(outputs, where), self.layout)

    def delete_outputs(self, repo: str, keep_revision: str | None = None) -> None:
        """See :meth:`DescriptorStore.delete_outputs`."""
        outputs, _ = self._open()
        kept = None if keep_revision is None else [_equals(records.REVISION, keep_revision)]
        outputs.delete(qe.Filter(must=[_equals(records.REPO, repo)], must_not=kept))

    def delete_model(self, repo: str) -> None:
        """See :meth:`DescriptorStore.delete_model`."""
        _, models = self._open()
        models.delete_id(records.model_point_id(repo))

    def count_outputs(self) -> int:
        """See :meth:`DescriptorStore.count_outputs`."""
        outputs, _ = self._open()
        return outputs.count()

    def count(self, part: Part) -> int:
        """See :meth:`DescriptorStore.count`."""
        shard = self._shard(part)
        return 0 if shard is None else shard.count()

    def stored(self, part: Part, after: str | None = None, repos: Sequence[str] | None = None) -> Iterator[StoredPoint]:
        """See :meth:`DescriptorStore.stored`."""
        shard = self._shard(part)
        if shard is None:
            return
        any_of = None if repos is None else [qe.FieldCondition(key=records.REPO, match=qe.MatchAny(list(repos)))]
        where = None if any_of is None else qe.Filter(must=any_of)  # type: ignore[arg-type]
        for record in shard.scroll(where, payload=True, vectors=part == "outputs", start=after):
            if str(record.id) == after:
                continue
            if part == "outputs":
                local = record.vector[records.LOCAL]
                yield stored_output(
                    str(record.id), record.payload, local.indices, local.values, record.vector[records.GLOBAL]
                )
            else:
                yield StoredPoint(str(record.id), plain_payload(record.payload), [], [], [])

    def restore(self, part: Part, points: Sequence[StoredPoint]) -> None:
        """See :meth:`DescriptorStore.restore`."""
        self._open()
        check_points(part, points, self._path)
        if points and part == "profiles" and self._profiles is None:
            self._profiles = self._create_profiles()
        shard = self._shard(part)
        for start in range(0, len(points), _BATCH):
            some = points[start : start + _BATCH]
            with engine_errors("write to", self._path):
                made = [
                    _point(records.OutputPoint(p.id, p.indices, p.values, p.dense, p.payload))
                    if part == "outputs"
                    else qe.Point(p.id, {}, p.payload)
                    for p in some
                ]
            if shard is not None:
                size_bytes = sum(16 * len(p.indices) + 4 * len(p.dense) + len(str(p.payload)) for p in some)
                shard.upsert(made, size_bytes)

    def _shard(self, part: Part) -> Shard | None:
        outputs, models = self._open()
        return {"outputs": outputs, "models": models, "profiles": self._profiles}[part]

    def upsert_knowledge(self, records: Sequence[Known]) -> None:
        """See :meth:`DescriptorStore.upsert_knowledge`."""
        self._open()
        if not records:
            return
        if self._profiles is None:
            self._profiles = self._create_profiles()
        with engine_errors("write to", self._path):
            batches = [([qe.Point(i, {}, payload) for i, payload in made], n) for made, n in known_batches(records)]
        for points, size_bytes in batches:
            self._profiles.upsert(points, size_bytes)

    def _knowledge(self, where: Mapping[str, str]) -> list[Known]:
        self._open()
        if self._profiles is None:
            return []
        with engine_errors("read", self._path):
            stored = self._profiles.scroll(_filter(where), payload=True, vectors=False)
            return sorted((known_record(point.payload) for point in stored), key=known_order)

    def _delete_knowledge(self, where: Mapping[str, str]) -> None:
        self._open()
        if self._profiles is not None:
            self._profiles.delete(_filter(where))

    def _create_profiles(self) -> Shard:
        # Nothing but its folder says that this shard exists: it must not have the name before it is complete.
        new, path = self._path / "profiles.new", self._path / "profiles"
        with engine_errors("create", path):
            shutil.rmtree(new, ignore_errors=True)
            Shard.create(new, plain_config(), indexed=MODEL).close()
            new.rename(path)
        shard = Shard.open(path)
        self._held.callback(shard.close)
        return shard

    def query_local(
        self,
        indices: npt.NDArray[np.uint32],
        values: npt.NDArray[np.float32],
        limit: int,
        threshold: float | None = None,
    ) -> list[StoreHit]:
        """See :meth:`DescriptorStore.query_local`."""
        outputs, _ = self._open()
        query = qe.Query.Nearest(qe.SparseVector(indices.tolist(), values.tolist()), using=records.LOCAL)
        bound = None if threshold is None else records.just_below(threshold)
        found = outputs.query(query, records.HIT_FIELDS, limit, threshold=bound)
        hits = records.hits((point.payload, point.score) for point in found)
        return hits if threshold is None else [hit for hit in hits if hit.score > np.float32(threshold)]

    def query_global(self, vector: npt.NDArray[np.float32], limit: int) -> list[StoreHit]:
        """See :meth:`DescriptorStore.query_global`."""
        outputs, _ = self._open()
        query = qe.Query.Nearest(vector.tolist(), using=records.GLOBAL)
        found = outputs.query(query, records.HIT_FIELDS, limit, exact=True)
        return records.hits((point.payload, point.score) for point in found)

    def global_scores(self, hits: Sequence[StoreHit], vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See :meth:`DescriptorStore.global_scores`."""
        outputs, _ = self._open()
        ids = records.hit_ids(hits)
        query = qe.Query.Nearest(vector.tolist(), using=records.GLOBAL)
        # No ids are no condition to the engine, which would then score everything.
        found = outputs.query(query, [], len(ids), exact=True, ids=ids) if ids else []
        scores = {str(point.id): point.score for point in found}
        return np.array([scores.get(point_id, -np.inf) for point_id in ids], np.float32)

    def rows(self, hits: Sequence[StoreHit], anchors: bool = True) -> list[OutputTable]:
        """See :meth:`DescriptorStore.rows`."""
        outputs, _ = self._open()
        ids = list(dict.fromkeys(records.hit_ids(hits)))
        found = outputs.retrieve_all(ids, records.ROW_FIELDS, [records.GLOBAL] if anchors else [])
        with engine_errors("read", self._path):
            stored = (
                records.StoredOutput(point.payload, point.vector[records.GLOBAL] if anchors else []) for point in found
            )
            return records.output_tables(stored, self.layout)

    def optimize(self) -> None:
        """See :meth:`DescriptorStore.optimize`.

        Until then the newest outputs lie in a segment whose sparse index is in memory, 2 to 5 KB an output.
        """
        for shard in self._all():
            shard.optimize()

    def flush(self) -> None:
        """See :meth:`DescriptorStore.flush`."""
        for shard in self._all():  # the outputs before the models, as when closing
            shard.flush()

    def close(self) -> None:
        """See :meth:`DescriptorStore.close`."""
        self._shards = self._profiles = None
        self._held.close()

    def _open(self) -> tuple[Shard, Shard]:
        if self._shards is None:
            raise StoreError(f"the store in {self._path} is closed", self._path)
        return self._shards

    def _all(self) -> list[Shard]:
        profiles = [] if self._profiles is None else [self._profiles]
        return [*profiles, *self._open()]


def _equals(field: str, value: str) -> Any:  # the stubs' lists of conditions are invariant
    return qe.FieldCondition(key=field, match=qe.MatchValue(value))


def _filter(where: Mapping[str, str]) -> qe.Filter:
    return qe.Filter(must=[_equals(field, value) for field, value in where.items()])


def _point(point: records.OutputPoint) -> qe.Point:
    local = qe.SparseVector(point.indices, point.values)
    return qe.Point(point.id, {records.LOCAL: local, records.GLOBAL: point.dense}, point.payload)


def _stored(outputs: Shard, where: qe.Filter) -> Iterator[records.StoredOutput]:
    for record in outputs.scroll(where, payload=records.TABLE_FIELDS, vectors=[records.GLOBAL]):
        yield records.StoredOutput(record.payload, record.vector[records.GLOBAL])


@contextmanager
def locked(path: Path) -> Iterator[ExitStack]:
    """Takes the lock of a store; what else is to be let go of with it goes on the stack.

    Args:
        path: The store's folder, which may be damaged.

    Raises:
        IndexLockedError: Another process has it.
        StoreError: The folder cannot be written.
    """
    file = path / _LOCK_FILE
    with ExitStack() as held:
        with engine_errors("write to", path):
            # Without this, the lock of a folder that cannot be written looks like one that is taken.
            os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o644))
            lock = FileLock(file, thread_local=False)  # whichever thread closes the store
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                raise IndexLockedError(path) from error
        held.callback(lock.release)
        yield held
