"""The embedded store: shards of the Qdrant engine in a folder, no server.

::

    FOLDER/layout.json   what the vectors are made of; written last, so that a folder with it is complete
    FOLDER/write.lock    held by the one process that has the store open
    FOLDER/outputs/      a shard with a point an output (:mod:`engine.store.records`)
    FOLDER/models/       a shard with a point a model
    FOLDER/profiles/     a shard with a point a task, profile or performance; made with the first of them
"""

from __future__ import annotations

import dataclasses
import json
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

from engine.errors import IndexLockedError, IndexMismatchError, IndexMissingError, StoreError
from engine.outputs import OutputTable
from engine.schema import Model
from engine.store import records
from engine.store.base import DescriptorStore, StoreHit, StoreLayout
from engine.store.knowledge import MODEL, Known, known_batches, known_order, known_record
from engine.store.shard import Shard, engine_errors

_FORMAT = 1
_LAYOUT_FILE = "layout.json"
_LOCK_FILE = "write.lock"

_BATCH = 200
"""Outputs in one operation: with its log entry of 0.7 MB (d = 384) it fits a segment of the log."""

_INDEX_FROM_KB = 64_000
"""Size of the vectors of a segment from which its sparse index is written to disk: 40,000 outputs at d = 384. Below,
the index is made in memory on opening, within a second; on disk its short lists would take 850 bytes an
output, above they pack into 550 to 600."""


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
        with _locked(path) as held:
            if (path / _LAYOUT_FILE).exists():
                raise StoreError(f"there is a store in {path} already: open it, or remove the folder first", path)
            models = Shard.create(path / "models", _models_config())
            held.callback(models.close)
            outputs = Shard.create(path / "outputs", _outputs_config(layout), indexed=records.REPO)
            held.callback(outputs.close)
            with engine_errors("create", path):
                _write_layout(path / _LAYOUT_FILE, layout)
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
        if not (path / _LAYOUT_FILE).exists():
            raise IndexMissingError(path)
        with _locked(path) as held:
            layout = _read_layout(path / _LAYOUT_FILE)
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
            Shard.create(new, _models_config(), indexed=MODEL).close()
            new.rename(path)
        shard = Shard.open(path)
        self._held.callback(shard.close)
        return shard

    def query_local(
        self, indices: npt.NDArray[np.uint32], values: npt.NDArray[np.float32], limit: int
    ) -> list[StoreHit]:
        """See :meth:`DescriptorStore.query_local`."""
        outputs, _ = self._open()
        vector = qe.SparseVector(indices.tolist(), values.tolist())
        found = outputs.query(qe.Query.Nearest(vector, using=records.LOCAL), records.HIT_FIELDS, limit)
        return records.hits((point.payload, point.score) for point in found)

    def query_global(self, vector: npt.NDArray[np.float32], limit: int) -> list[StoreHit]:
        """See :meth:`DescriptorStore.query_global`."""
        outputs, _ = self._open()
        query = qe.Query.Nearest(vector.tolist(), using=records.GLOBAL)
        found = outputs.query(query, records.HIT_FIELDS, limit, exact=True)
        return records.hits((point.payload, point.score) for point in found)

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


def _outputs_config(layout: StoreLayout) -> qe.EdgeConfig:
    # Everything that can be large stays on disk (Cold: memory-mapped, without read-ahead): an indexer that opens an
    # index of a million outputs must not load gigabytes, and searches go to the snapshot.
    # No graph over the dense vectors (m = 0): it takes minutes to build, and a graph over raw inner products of vectors
    # of such different lengths silently misses most of the best.
    dense = qe.EdgeVectorParams(
        size=layout.dimension + 1,
        distance=qe.Distance.Dot,
        memory=qe.Memory.Cold,
        hnsw_config=qe.HnswIndexConfig(m=0, ef_construct=4, full_scan_threshold=10_000),
    )
    # float32: halving the weights loses one per cent of the true top hits.
    sparse = qe.EdgeSparseVectorParams(memory=qe.Memory.Cold, datatype=qe.VectorStorageDatatype.Float32)
    return qe.EdgeConfig(
        vectors={records.GLOBAL: dense},
        sparse_vectors={records.LOCAL: sparse},
        payload_memory=qe.Memory.Cold,
        id_tracker_memory=qe.Memory.Cold,
        optimizers=qe.EdgeOptimizersConfig(indexing_threshold=_INDEX_FROM_KB),
    )


def _models_config() -> qe.EdgeConfig:
    # The engine insists on a vector; this one stays empty.
    return qe.EdgeConfig(sparse_vectors={"none": qe.EdgeSparseVectorParams()}, payload_memory=qe.Memory.Cold)


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
def _locked(path: Path) -> Iterator[ExitStack]:
    """Takes the lock of a store; what else is to be let go of with it goes on the stack."""
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


def _write_layout(file: Path, layout: StoreLayout) -> None:
    temporary = file.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as handle:
        json.dump({"format": _FORMAT, **dataclasses.asdict(layout)}, handle)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(file)


def _read_layout(file: Path) -> StoreLayout:
    with engine_errors("open", file.parent):
        stored = json.loads(file.read_text(encoding="utf-8"))
        found = stored.pop("format")
        if found != _FORMAT:
            message = (
                f"the store in {file.parent} has format {found}, this version reads {_FORMAT}: index its models again"
            )
            raise IndexMismatchError(message, "store format", _FORMAT, found)
        return StoreLayout(**stored)
