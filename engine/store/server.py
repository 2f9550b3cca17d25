"""The store on a Qdrant server or cluster: the same records as the embedded one in three collections.

``NAME_outputs`` has a point an output (:mod:`engine.store.records`), ``NAME_models`` a point a model. The layout is
metadata of ``NAME_models``, which is created last, so that a store is complete when it has one. ``NAME_profiles`` has a
point a task, profile or performance (:mod:`engine.store.knowledge`); it is made with the first of them.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from qdrant_client.http.exceptions import ResponseHandlingException

from engine.errors import HubhoundError, IndexMismatchError, IndexMissingError, StoreError
from engine.outputs import OutputTable
from engine.schema import Model
from engine.store import records
from engine.store.base import DescriptorStore, StoreHit, StoreLayout
from engine.store.knowledge import MODEL, Known, known_batches, known_order, known_record

_FORMAT = 1

_BATCH = 200
"""Outputs in one request: about 2 MB of JSON at d = 384, a server takes 32."""

_PAGE = 1000
"""Records in one answer."""


def connect(url: str, api_key: str | None = None, timeout_s: int = 60) -> QdrantClient:
    """A client for a server; whether it answers shows with the first request.

    Args:
        url: ``http(s)://host:port``.
        api_key: If the server wants one.
        timeout_s: Of one request.
    """
    # The client's own version check runs in a thread and can only warn; a request fails with a clear error.
    return QdrantClient(url=url, api_key=api_key, timeout=timeout_s, check_compatibility=False)


class ServerStore(DescriptorStore):
    """The store on a server; made by :meth:`create` or :meth:`open`. It closes its client.

    Writers are not kept apart: two may write different models at once, the points of one model are the same whoever
    writes them.

    Args:
        client: Of the server.
        name: Prefix of its collections.
        layout: What its vectors are made of.
    """

    def __init__(self, client: QdrantClient, name: str, layout: StoreLayout) -> None:
        self.layout = layout
        self._client = client
        self._name = name
        self._outputs, self._models, self._profiles = f"{name}_outputs", f"{name}_models", f"{name}_profiles"
        self._where = str(client.init_options.get("url") or client.init_options.get("path") or "this process")

    @classmethod
    def create(cls, client: QdrantClient, name: str, layout: StoreLayout) -> Self:
        """Makes the collections of an empty store.

        Args:
            client: Of the server.
            name: Prefix of the collections.
            layout: What its vectors are made of.

        Raises:
            StoreError: There is such a store already, or the server refused or did not answer.
        """
        store = cls(client, name, layout)
        with store._errors("create"):
            if client.collection_exists(store._models):
                raise StoreError(
                    f"there is a store {name} on the server already: open it, or delete it first", store._where
                )
            for left in (store._outputs, store._profiles):  # by an interrupted creation, or of a deleted store
                if client.collection_exists(left):
                    client.delete_collection(left)
            # As in the embedded store: no graph, it would silently miss most of the best inner products.
            dense = qm.VectorParams(
                size=layout.dimension + 1,
                distance=qm.Distance.DOT,
                on_disk=True,
                hnsw_config=qm.HnswConfigDiff(m=0),
            )
            sparse = qm.SparseVectorParams(index=qm.SparseIndexParams(on_disk=True, datatype=qm.Datatype.FLOAT32))
            client.create_collection(
                store._outputs,
                vectors_config={records.GLOBAL: dense},
                sparse_vectors_config={records.LOCAL: sparse},
            )
            store._create_tenant_index(store._outputs, records.REPO)
            metadata = {"format": _FORMAT, **dataclasses.asdict(layout)}
            client.create_collection(store._models, vectors_config={}, sparse_vectors_config=_none(), metadata=metadata)
            if client.get_collection(store._models).config.metadata != metadata:
                client.delete_collection(store._models)
                raise StoreError(
                    f"the Qdrant server at {store._where} is too old: it must be 1.16 or newer", store._where
                )
        return store

    @classmethod
    def open(cls, client: QdrantClient, name: str) -> Self:
        """Opens a store.

        Args:
            client: Of the server.
            name: Prefix of the collections.

        Raises:
            IndexMissingError: There is no such store.
            IndexMismatchError: Another version of the code made it.
            StoreError: The server refused or did not answer.
        """
        store = cls(client, name, StoreLayout(0, 0, 0))
        with store._errors("open"):
            if not client.collection_exists(store._models):
                raise IndexMissingError(f"{store._where}/{name}")
            metadata = dict(client.get_collection(store._models).config.metadata or {})
            found = metadata.pop("format", None)
            if found != _FORMAT:
                message = f"the store {name} has format {found}, this version reads {_FORMAT}: index its models again"
                raise IndexMismatchError(message, "store format", _FORMAT, found)
            return cls(client, name, StoreLayout(**metadata))

    def upsert_outputs(self, table: OutputTable) -> None:
        """See :meth:`DescriptorStore.upsert_outputs`."""
        with self._errors("write to"):
            records.check_table(table, self.layout)
            for start in range(0, len(table), _BATCH):
                points = [
                    qm.PointStruct(
                        id=point.id,
                        vector={
                            records.LOCAL: qm.SparseVector(indices=point.indices, values=point.values),
                            records.GLOBAL: point.dense,
                        },
                        payload=point.payload,
                    )
                    for point in records.output_points(table, self.layout, slice(start, start + _BATCH))
                ]
                self._client.upsert(self._outputs, points, wait=True)

    def upsert_model(self, model: Model) -> None:
        """See :meth:`DescriptorStore.upsert_model`."""
        with self._errors("write to"):
            point = qm.PointStruct(id=model.point_id, vector={}, payload=records.model_payload(model))
            self._client.upsert(self._models, [point], wait=True)

    def models(self) -> list[Model]:
        """See :meth:`DescriptorStore.models`."""
        return self._records(None)

    def model(self, repo: str) -> Model | None:
        """See :meth:`DescriptorStore.model`."""
        with self._errors("read"):
            found = self._client.retrieve(self._models, [records.model_point_id(repo)], with_payload=True)
            return records.model_record(found[0].payload or {}) if found else None

    def copies(self, repo: str) -> list[Model]:
        """See :meth:`DescriptorStore.copies`."""
        return self._records(_filter({records.COPY_OF: repo}))

    def _records(self, where: qm.Filter | None) -> list[Model]:
        with self._errors("read"):
            found = [records.model_record(r.payload or {}) for r in self._scroll(self._models, where, True, False)]
        return sorted(found, key=lambda model: model.repo)

    def outputs(self, repo: str, revision: str) -> OutputTable | None:
        """See :meth:`DescriptorStore.outputs`."""
        where = qm.Filter(must=[_equals(records.REPO, repo), _equals(records.REVISION, revision)])
        with self._errors("read"):
            return records.output_table(repo, revision, self._stored(where), self.layout)

    def delete_outputs(self, repo: str, keep_revision: str | None = None) -> None:
        """See :meth:`DescriptorStore.delete_outputs`."""
        kept: list[qm.Condition] = [] if keep_revision is None else [_equals(records.REVISION, keep_revision)]
        where = qm.Filter(must=[_equals(records.REPO, repo)], must_not=kept)
        with self._errors("write to"):
            self._client.delete(self._outputs, qm.FilterSelector(filter=where), wait=True)

    def delete_model(self, repo: str) -> None:
        """See :meth:`DescriptorStore.delete_model`."""
        with self._errors("write to"):
            self._client.delete(self._models, qm.PointIdsList(points=[records.model_point_id(repo)]), wait=True)

    def count_outputs(self) -> int:
        """See :meth:`DescriptorStore.count_outputs`."""
        with self._errors("read"):
            return self._client.count(self._outputs, exact=True).count

    def upsert_knowledge(self, records: Sequence[Known]) -> None:
        """See :meth:`DescriptorStore.upsert_knowledge`."""
        with self._errors("write to"):
            for made, _ in known_batches(records):
                if not self._has_profiles():
                    self._create_profiles()
                points = [qm.PointStruct(id=point_id, vector={}, payload=payload) for point_id, payload in made]
                self._client.upsert(self._profiles, points, wait=True)

    def _knowledge(self, where: Mapping[str, str]) -> list[Known]:
        with self._errors("read"):
            if not self._has_profiles():
                return []
            stored = self._scroll(self._profiles, _filter(where), True, False)
            return sorted((known_record(record.payload or {}) for record in stored), key=known_order)

    def _delete_knowledge(self, where: Mapping[str, str]) -> None:
        with self._errors("write to"):
            if self._has_profiles():
                self._client.delete(self._profiles, qm.FilterSelector(filter=_filter(where)), wait=True)

    def _has_profiles(self) -> bool:
        return self._client.collection_exists(self._profiles)

    def _create_profiles(self) -> None:
        try:
            self._client.create_collection(self._profiles, vectors_config={}, sparse_vectors_config=_none())
        except Exception:
            if not self._has_profiles():  # another writer may have been quicker
                raise
        self._create_tenant_index(self._profiles, MODEL)

    def _create_tenant_index(self, collection: str, field: str) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Payload indexes have no effect in the local Qdrant")
            index = qm.KeywordIndexParams(type=qm.KeywordIndexType.KEYWORD, is_tenant=True)
            self._client.create_payload_index(collection, field, index)

    def query_local(
        self, indices: npt.NDArray[np.uint32], values: npt.NDArray[np.float32], limit: int
    ) -> list[StoreHit]:
        """See :meth:`DescriptorStore.query_local`."""
        return self._query(qm.SparseVector(indices=indices.tolist(), values=values.tolist()), records.LOCAL, limit)

    def query_global(self, vector: npt.NDArray[np.float32], limit: int) -> list[StoreHit]:
        """See :meth:`DescriptorStore.query_global`."""
        return self._query(vector.tolist(), records.GLOBAL, limit)

    def optimize(self) -> None:
        """Nothing to do: a server optimises on its own."""

    def flush(self) -> None:
        """Nothing to do: a server acknowledges what is in its log, and flushes on its own."""

    def close(self) -> None:
        """Closes the client."""
        with self._errors("close"):
            self._client.close()

    def _query(self, query: qm.SparseVector | list[float], using: str, limit: int) -> list[StoreHit]:
        with self._errors("search"):
            answer = self._client.query_points(
                self._outputs, query=query, using=using, limit=limit, with_payload=records.HIT_FIELDS
            )
            return records.hits((point.payload or {}, point.score) for point in answer.points)

    def _stored(self, where: qm.Filter) -> Iterator[records.StoredOutput]:
        for record in self._scroll(self._outputs, where, records.TABLE_FIELDS, [records.GLOBAL]):
            vectors: Any = record.vector
            yield records.StoredOutput(record.payload or {}, vectors[records.GLOBAL])

    def _scroll(
        self, collection: str, where: qm.Filter | None, payload: list[str] | bool, vectors: list[str] | bool
    ) -> Iterator[qm.Record]:
        offset = None
        while True:
            found, offset = self._client.scroll(
                collection, where, limit=_PAGE, offset=offset, with_payload=payload, with_vectors=vectors
            )
            yield from found
            if offset is None:
                return

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Turns whatever the client raises (transport, server, bad input) into a StoreError of one line."""
        try:
            yield
        except HubhoundError:
            raise
        except Exception as error:
            text = " ".join(str(error).split())[:300] or type(error).__name__
            if isinstance(error, ResponseHandlingException):
                message = f"the Qdrant server at {self._where} does not answer ({text}): is it running at that address?"
            else:
                message = f"cannot {doing} the store {self._name} at {self._where}: {text}"
            raise StoreError(message, self._where) from error


def _none() -> dict[str, qm.SparseVectorParams]:
    return {"none": qm.SparseVectorParams()}  # as in the embedded store: a vector that stays empty


def _filter(where: Mapping[str, str]) -> qm.Filter:
    return qm.Filter(must=[_equals(field, value) for field, value in where.items()])


def _equals(field: str, value: str) -> qm.FieldCondition:
    return qm.FieldCondition(key=field, match=qm.MatchValue(value=value))
